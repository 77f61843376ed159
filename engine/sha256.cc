#include "engine/sha256.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <memory>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace osdn {

struct Sha256::Context {
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> evp{EVP_MD_CTX_new(), &EVP_MD_CTX_free};
};

// EVP calls fail only without memory or without the algorithm; a digest left empty then matches no
// expected one.
Sha256::Sha256() : context_(std::make_unique<Context>()) {
  EVP_DigestInit_ex(context_->evp.get(), EVP_sha256(), nullptr);
}

Sha256::~Sha256() = default;

void Sha256::Update(absl::Span<const std::byte> data) {
  EVP_DigestUpdate(context_->evp.get(), data.data(), data.size());
}

std::string Sha256::Finish() {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest = {};
  unsigned int size = 0;
  if (EVP_DigestFinal_ex(context_->evp.get(), digest.data(), &size) != 1) return "";
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(digest.data()), size));
}

std::string Sha256Hex(absl::Span<const std::byte> data) {
  Sha256 hash;
  hash.Update(data);
  return hash.Finish();
}

std::string Sha256Digest(absl::Span<const std::byte> data) {
  return absl::HexStringToBytes(Sha256Hex(data));
}

std::string HmacSha256(absl::string_view key, absl::Span<const std::byte> data) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest = {};
  unsigned int size = 0;
  const unsigned char* made =
      HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()),
           reinterpret_cast<const unsigned char*>(data.data()), data.size(), digest.data(), &size);
  if (made == nullptr) return "";  // no memory or no algorithm: matches no signature
  return {reinterpret_cast<const char*>(digest.data()), size};
}

absl::StatusOr<FileHash> HashFile(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", path));
  const absl::Cleanup close_fd = [fd] { ::close(fd); };

  constexpr size_t kPiece = 1 << 20;  // large enough that read(2) does not show in profiles
  std::vector<std::byte> piece(kPiece);
  Sha256 hash;
  FileHash result;
  while (true) {
    const ssize_t got = ::read(fd, piece.data(), piece.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot read ", path));
    if (got == 0) break;
    hash.Update(absl::MakeConstSpan(piece.data(), static_cast<size_t>(got)));
    result.bytes += got;
  }
  result.sha256 = hash.Finish();
  return result;
}

}  // namespace osdn
