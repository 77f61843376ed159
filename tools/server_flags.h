// How a command reaches a running server.
#ifndef OSDN_TOOLS_SERVER_FLAGS_H_
#define OSDN_TOOLS_SERVER_FLAGS_H_

#include <grpcpp/channel.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace osdn::tools {

struct ServerFlags {
  std::string address{};   // HOST:PORT or unix:PATH
  std::string api_key{};   // of a server with keys
  bool tls = false;        // trusting the system's authorities
  std::string tls_ca{};    // trusting these instead (PEM); means TLS
  std::string tls_cert{};  // the client's own, where the server asks for one (PEM)
  std::string tls_key{};
};

// --address, --api-key (or the environment's OSDN_API_KEY), --tls, --tls-ca, --tls-cert, --tls-key.
// The result is --address, which is made in `group` where one is given.
CLI::Option* AddServerFlags(CLI::App* command, ServerFlags* flags, CLI::App* group = nullptr);

// Does not connect yet: the first call does. Sends the API key with every call. Errors: files that
// cannot be read, a client's certificate without its key.
absl::StatusOr<std::shared_ptr<grpc::Channel>> OpenChannel(const ServerFlags& flags);

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_SERVER_FLAGS_H_
