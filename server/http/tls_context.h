// TLS for HTTP, from files that may be replaced while the server runs.
#ifndef OSDN_SERVER_HTTP_TLS_CONTEXT_H_
#define OSDN_SERVER_HTTP_TLS_CONTEXT_H_

#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/tls_files.h"

struct ssl_ctx_st;  // OpenSSL's SSL_CTX

namespace osdn {

// Thread-safe.
class TlsContexts {
 public:
  // CheckTlsFiles' errors.
  static absl::StatusOr<std::unique_ptr<TlsContexts>> Create(const TlsFiles& files);

  // For a new connection, of the files as they are: looked at every few seconds. What does not fit
  // together is passed over until it does.
  std::shared_ptr<ssl_ctx_st> Current();

 private:
  explicit TlsContexts(TlsFiles files) : files_(std::move(files)) {}
  // What tells one content of the files from another.
  std::string Stamp() const;
  absl::StatusOr<std::shared_ptr<ssl_ctx_st>> Load() const;

  const TlsFiles files_;
  absl::Mutex mutex_;
  std::shared_ptr<ssl_ctx_st> current_ ABSL_GUARDED_BY(mutex_);
  std::string stamp_ ABSL_GUARDED_BY(mutex_);
  absl::Time looked_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace osdn

#endif  // OSDN_SERVER_HTTP_TLS_CONTEXT_H_
