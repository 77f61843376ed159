// SHA-256 over memory and files (OpenSSL).
#ifndef OSDN_ENGINE_SHA256_H_
#define OSDN_ENGINE_SHA256_H_

#include <cstddef>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace osdn {

// Streaming digest. Not thread-safe.
class Sha256 {
 public:
  Sha256();
  ~Sha256();

  void Update(absl::Span<const std::byte> data);
  // The digest of everything so far as 64 lower-case hex digits. Call once.
  std::string Finish();

 private:
  struct Context;
  std::unique_ptr<Context> context_;
};

std::string Sha256Hex(absl::Span<const std::byte> data);

// The digest as 32 bytes.
std::string Sha256Digest(absl::Span<const std::byte> data);
// HMAC-SHA256 of `data` under `key`, 32 bytes.
std::string HmacSha256(absl::string_view key, absl::Span<const std::byte> data);

struct FileHash {
  int64_t bytes = 0;
  std::string sha256;
};

// Reads the file in pieces. Errors of open(2) and read(2), naming the path.
absl::StatusOr<FileHash> HashFile(const std::string& path);

}  // namespace osdn

#endif  // OSDN_ENGINE_SHA256_H_
