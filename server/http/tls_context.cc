#include "server/http/tls_context.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/stat.h>

#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/tls.h"

namespace osdn {
namespace {

constexpr absl::Duration kLookEvery = absl::Seconds(5);  // as gRPC's
// Sessions that are resumed were made by this server: any constant will do.
constexpr std::array<unsigned char, 4> kSessionContext = {'o', 's', 'd', 'n'};

}  // namespace

absl::StatusOr<std::unique_ptr<TlsContexts>> TlsContexts::Create(const TlsFiles& files) {
  std::unique_ptr<TlsContexts> contexts(new TlsContexts(files));
  const std::string stamp = contexts->Stamp();
  absl::StatusOr<std::shared_ptr<ssl_ctx_st>> context = contexts->Load();
  if (!context.ok()) return context.status();
  absl::MutexLock lock(&contexts->mutex_);
  contexts->current_ = *std::move(context);
  contexts->stamp_ = stamp;
  contexts->looked_ = absl::Now();
  return contexts;
}

std::shared_ptr<ssl_ctx_st> TlsContexts::Current() {
  absl::MutexLock lock(&mutex_);
  const absl::Time now = absl::Now();
  if (now - looked_ < kLookEvery) return current_;
  looked_ = now;
  const std::string stamp = Stamp();
  if (stamp == stamp_) return current_;
  absl::StatusOr<std::shared_ptr<ssl_ctx_st>> context = Load();
  if (!context.ok()) return current_;
  current_ = *std::move(context);
  stamp_ = stamp;
  return current_;
}

std::string TlsContexts::Stamp() const {
  std::string stamp;
  for (const std::string& path : {files_.cert, files_.key, files_.client_ca}) {
    struct stat about {};
    if (path.empty() || stat(path.c_str(), &about) != 0) continue;
    absl::StrAppend(&stamp, about.st_mtim.tv_sec, ".", about.st_mtim.tv_nsec, " ", about.st_size,
                    " ", about.st_ino, ";");
  }
  return stamp;
}

absl::StatusOr<std::shared_ptr<ssl_ctx_st>> TlsContexts::Load() const {
  if (absl::Status s = CheckTlsFiles(files_); !s.ok()) return s;
  std::shared_ptr<ssl_ctx_st> context(SSL_CTX_new(TLS_server_method()), &SSL_CTX_free);
  // Checked a moment ago: what fails now was replaced in between, or there is no memory.
  if (context == nullptr || SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION) != 1 ||
      SSL_CTX_use_certificate_chain_file(context.get(), files_.cert.c_str()) != 1 ||
      SSL_CTX_use_PrivateKey_file(context.get(), files_.key.c_str(), SSL_FILETYPE_PEM) != 1 ||
      SSL_CTX_set_session_id_context(context.get(), kSessionContext.data(),
                                     kSessionContext.size()) != 1) {
    ERR_clear_error();
    return absl::FailedPreconditionError("TLS: the certificate could not be used");
  }
  if (files_.client_ca.empty()) return context;
  if (SSL_CTX_load_verify_locations(context.get(), files_.client_ca.c_str(), nullptr) != 1) {
    ERR_clear_error();
    return absl::FailedPreconditionError("TLS: tls.client_ca_file could not be used");
  }
  SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  return context;
}

}  // namespace osdn
