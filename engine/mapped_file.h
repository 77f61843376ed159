// Read-only memory mapping of a file.
#ifndef OSDN_ENGINE_MAPPED_FILE_H_
#define OSDN_ENGINE_MAPPED_FILE_H_

#include <cstddef>
#include <string>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace osdn {

// Owns the mapping. Move-only. A file that is truncated by someone else while mapped raises SIGBUS
// on access, as with any mapping: replace model files by rename, never in place.
class MappedFile {
 public:
  // NOT_FOUND, PERMISSION_DENIED or FAILED_PRECONDITION (not a regular file), naming the path.
  static absl::StatusOr<MappedFile> Open(const std::string& path);

  MappedFile() = default;
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;

  absl::Span<const std::byte> bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }

  // Gives back the memory of the pages that lie in `part` as a whole. They stay readable: the next
  // look brings them back from the page cache or the file.
  void Release(absl::Span<const std::byte> part) const;

 private:
  std::string path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace osdn

#endif  // OSDN_ENGINE_MAPPED_FILE_H_
