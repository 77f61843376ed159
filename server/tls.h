// TLS for the server's ports, from PEM files that may be replaced while it runs.
#ifndef OSDN_SERVER_TLS_H_
#define OSDN_SERVER_TLS_H_

#include <grpcpp/security/server_credentials.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/tls_files.h"

typedef struct ssl_ctx_st SSL_CTX;  // <openssl/ssl.h> is not for headers

namespace osdn {

// OK when the files are there, can be parsed and belong together. FAILED_PRECONDITION naming the
// file and what is wrong.
absl::Status CheckTlsFiles(const TlsFiles& files);

// OpenSSL's side of it, for servers of our own. Thread-safe.
class TlsContexts {
 public:
  // CheckTlsFiles' errors.
  static absl::StatusOr<std::unique_ptr<TlsContexts>> Create(const TlsFiles& files);

  // What new connections use: files are read again when they have changed, looked at once a second.
  // What does not fit together is passed over.
  std::shared_ptr<SSL_CTX> Current();

 private:
  explicit TlsContexts(TlsFiles files) : files_(std::move(files)) {}

  const TlsFiles files_;
  std::mutex mutex_;  // guards all below
  std::shared_ptr<SSL_CTX> context_;
  std::vector<int64_t> stamps_;  // of the files that context_ was made from
  absl::Time next_look_ = absl::InfinitePast();
};

// For gRPC: files are read again every few seconds, and new connections get what was read last.
// What does not fit together is passed over. CheckTlsFiles' errors.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> TlsCredentials(const TlsFiles& files);

}  // namespace osdn

#endif  // OSDN_SERVER_TLS_H_
