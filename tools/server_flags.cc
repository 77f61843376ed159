#include "tools/server_flags.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>
#include <grpcpp/support/client_interceptor.h>

#include <CLI/CLI.hpp>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tools/file_util.h"

namespace osdn::tools {
namespace {

// Call credentials would be the way, but gRPC sends them over TLS only, and a server on this
// machine may well have keys and no TLS.
class SendKey final : public grpc::experimental::Interceptor {
 public:
  explicit SendKey(const std::string* authorization) : authorization_(authorization) {}

  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(
            grpc::experimental::InterceptionHookPoints::PRE_SEND_INITIAL_METADATA)) {
      methods->GetSendInitialMetadata()->insert({"authorization", *authorization_});
    }
    methods->Proceed();
  }

 private:
  const std::string* const authorization_;
};

class SendKeys final : public grpc::experimental::ClientInterceptorFactoryInterface {
 public:
  explicit SendKeys(const std::string& key) : authorization_(absl::StrCat("Bearer ", key)) {}

  grpc::experimental::Interceptor* CreateClientInterceptor(
      grpc::experimental::ClientRpcInfo*) override {
    return new SendKey(&authorization_);
  }

 private:
  const std::string authorization_;
};

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> Credentials(const ServerFlags& flags) {
  if (flags.tls_cert.empty() != flags.tls_key.empty()) {
    return absl::InvalidArgumentError("--tls-cert and --tls-key: one without the other");
  }
  if (!flags.tls && flags.tls_ca.empty() && flags.tls_cert.empty()) {
    return grpc::InsecureChannelCredentials();
  }
  grpc::SslCredentialsOptions options;
  const std::pair<const std::string&, std::string*> files[] = {
      {flags.tls_ca, &options.pem_root_certs},
      {flags.tls_cert, &options.pem_cert_chain},
      {flags.tls_key, &options.pem_private_key}};
  for (const auto& [path, text] : files) {
    if (path.empty()) continue;
    absl::StatusOr<std::string> read = ReadSmallFile(path);
    if (!read.ok()) return read.status();
    *text = *std::move(read);
  }
  return grpc::SslCredentials(options);
}

}  // namespace

CLI::Option* AddServerFlags(CLI::App* command, ServerFlags* flags, CLI::App* group) {
  command->add_option("--api-key", flags->api_key, "API key, where the server wants one")
      ->envname("OSDN_API_KEY");
  command->add_flag("--tls", flags->tls, "Connect by TLS");
  command->add_option("--tls-ca", flags->tls_ca,
                      "Connect by TLS and trust these authorities (PEM), not the system's");
  command->add_option("--tls-cert", flags->tls_cert, "The client's own certificate (PEM)");
  command->add_option("--tls-key", flags->tls_key, "The private key of --tls-cert (PEM)");
  if (group == nullptr) group = command;
  return group->add_option("--address", flags->address, "Server, HOST:PORT");
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> OpenChannel(const ServerFlags& flags) {
  absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> credentials = Credentials(flags);
  if (!credentials.ok()) return credentials.status();
  grpc::ChannelArguments arguments;
  // A proxy of the environment is for the web; it would also catch calls to this machine.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  std::vector<std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface>> interceptors;
  if (!flags.api_key.empty()) interceptors.push_back(std::make_unique<SendKeys>(flags.api_key));
  return grpc::experimental::CreateCustomChannelWithInterceptors(
      flags.address, *credentials, arguments, std::move(interceptors));
}

}  // namespace osdn::tools
