#include "server/tls.h"

#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/stat.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"

namespace osdn {
namespace {

constexpr unsigned kReloadSeconds = 5;

// The first thing that OpenSSL noted about `file`.
absl::Status TlsError(absl::string_view option, const std::string& file) {
  char text[256] = "";
  const unsigned long code = ERR_get_error();
  ERR_error_string_n(code, text, sizeof(text));
  ERR_clear_error();
  const char* reason = ERR_reason_error_string(code);
  return absl::FailedPreconditionError(
      absl::StrCat(option, ": ", file, ": ", reason != nullptr ? reason : text));
}

absl::StatusOr<std::shared_ptr<SSL_CTX>> MakeContext(const TlsFiles& files) {
  const std::shared_ptr<SSL_CTX> context(SSL_CTX_new(TLS_server_method()), &SSL_CTX_free);
  if (context == nullptr) return absl::ResourceExhaustedError("TLS: out of memory");
  SSL_CTX* const raw = context.get();
  ERR_clear_error();
  SSL_CTX_set_min_proto_version(raw, TLS1_2_VERSION);
  SSL_CTX_set_mode(raw, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  if (SSL_CTX_use_certificate_chain_file(raw, files.cert.c_str()) != 1) {
    return TlsError("tls.cert_file", files.cert);
  }
  if (SSL_CTX_use_PrivateKey_file(raw, files.key.c_str(), SSL_FILETYPE_PEM) != 1 ||
      SSL_CTX_check_private_key(raw) != 1) {
    return TlsError("tls.key_file", files.key);
  }
  if (files.client_ca.empty()) return context;
  if (SSL_CTX_load_verify_locations(raw, files.client_ca.c_str(), nullptr) != 1) {
    return TlsError("tls.client_ca_file", files.client_ca);
  }
  SSL_CTX_set_client_CA_list(raw, SSL_load_client_CA_file(files.client_ca.c_str()));
  SSL_CTX_set_verify(raw, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  // A session that is taken up again must have been begun under the same demand.
  constexpr unsigned char kSessions[] = "osdn";
  SSL_CTX_set_session_id_context(raw, kSessions, sizeof(kSessions));
  return context;
}

// Tells one content of the files from another; -1 for what is not there.
std::vector<int64_t> Stamps(const TlsFiles& files) {
  std::vector<int64_t> stamps;
  for (const std::string& path : {files.cert, files.key, files.client_ca}) {
    struct stat info {};
    const bool there = ::stat(path.c_str(), &info) == 0;
    stamps.push_back(there ? info.st_mtim.tv_sec * 1'000'000'000 + info.st_mtim.tv_nsec : -1);
    stamps.push_back(there ? static_cast<int64_t>(info.st_ino) : -1);
  }
  return stamps;
}

}  // namespace

absl::Status CheckTlsFiles(const TlsFiles& files) { return MakeContext(files).status(); }

absl::StatusOr<std::unique_ptr<TlsContexts>> TlsContexts::Create(const TlsFiles& files) {
  std::unique_ptr<TlsContexts> contexts(new TlsContexts(files));
  // Before they are read: what changes in between is read again.
  contexts->stamps_ = Stamps(files);
  absl::StatusOr<std::shared_ptr<SSL_CTX>> context = MakeContext(files);
  if (!context.ok()) return context.status();
  contexts->context_ = *std::move(context);
  return contexts;
}

std::shared_ptr<SSL_CTX> TlsContexts::Current() {
  const absl::Time now = absl::Now();
  std::lock_guard<std::mutex> lock(mutex_);
  if (now < next_look_) return context_;
  next_look_ = now + absl::Seconds(1);
  std::vector<int64_t> stamps = Stamps(files_);
  if (stamps == stamps_) return context_;
  absl::StatusOr<std::shared_ptr<SSL_CTX>> context = MakeContext(files_);
  if (!context.ok()) return context_;  // perhaps half written: looked at again
  context_ = *std::move(context);
  stamps_ = std::move(stamps);
  return context_;
}

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> TlsCredentials(const TlsFiles& files) {
  if (absl::Status s = CheckTlsFiles(files); !s.ok()) return s;
  namespace tls = grpc::experimental;
  tls::TlsServerCredentialsOptions options(std::make_shared<tls::FileWatcherCertificateProvider>(
      files.key, files.cert, files.client_ca, kReloadSeconds));
  options.watch_identity_key_cert_pairs();
  if (!files.client_ca.empty()) {
    options.watch_root_certs();
    options.set_cert_request_type(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  }
  return tls::TlsServerCredentials(options);
}

}  // namespace osdn
