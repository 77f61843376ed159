// The safetensors container: reading by memory mapping, writing as a stream.
// Format: u64 little-endian header size, JSON header, data. Everything in the header is checked
// against the file before use: sizes, dtype x shape == bytes, ranges inside the file, no overlap
// and no hole, no name twice.
#ifndef OSDN_ENGINE_SAFETENSORS_H_
#define OSDN_ENGINE_SAFETENSORS_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/mapped_file.h"

namespace osdn {

struct SafetensorsEntry {
  std::string dtype;  // as in the header: "F32", "BF16", "F16", "I64", ...
  std::vector<int64_t> shape;
  absl::Span<const std::byte> data;  // into the mapping
};

// Immutable after Open; concurrent reads are safe. Entries live as long as the file object.
class SafetensorsFile {
 public:
  // DATA_LOSS for a truncated or malformed file, saying what contradicts what; MappedFile's errors.
  static absl::StatusOr<SafetensorsFile> Open(const std::string& path);

  const std::map<std::string, SafetensorsEntry>& tensors() const { return tensors_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const SafetensorsEntry* Find(const std::string& name) const;
  const std::string& path() const { return file_.path(); }
  // See MappedFile::Release.
  void Release(absl::Span<const std::byte> part) const { file_.Release(part); }

 private:
  MappedFile file_;
  std::map<std::string, SafetensorsEntry> tensors_;
  std::map<std::string, std::string> metadata_;
};

// Bytes of one element, or 0 for an unknown safetensors dtype name.
size_t SafetensorsDTypeSize(std::string_view dtype);

// Writes a file whose data start is 64-byte aligned, into `path`.tmp, and renames on Finish (after
// fsync), so a half-written file never has the final name; without Finish the temporary is removed.
//
// Placement: the format forbids holes between tensors, so tensors whose size is a multiple of 64
// come first, in declared order, and are all 64-byte aligned; the rest follow, widest elements
// first, and are aligned to their elements. (All matrices of real models are of the first kind.)
class SafetensorsWriter {
 public:
  struct Declaration {
    std::string name;
    std::string dtype;
    std::vector<int64_t> shape;
  };

  // INVALID_ARGUMENT for duplicate names, unknown dtypes or shapes that overflow; errors of
  // open(2).
  static absl::StatusOr<SafetensorsWriter> Create(
      const std::string& path, const std::vector<Declaration>& tensors,
      const std::map<std::string, std::string>& metadata);

  ~SafetensorsWriter();
  SafetensorsWriter(SafetensorsWriter&& other) noexcept;
  SafetensorsWriter& operator=(SafetensorsWriter&& other) noexcept;

  // The next declared tensor's bytes; the size must match its declaration.
  absl::Status Write(absl::Span<const std::byte> data);
  // The next bytes of the next declared tensor, for tensors too large to be held: pieces of any
  // size that together have the declared one.
  absl::Status WritePart(absl::Span<const std::byte> data);
  // FAILED_PRECONDITION when declared tensors are missing.
  absl::Status Finish();

 private:
  struct Placement {
    std::string name;
    uint64_t offset = 0;  // from the start of the file
    uint64_t size = 0;
  };

  SafetensorsWriter() = default;

  std::string path_;
  int fd_ = -1;  // of the temporary file; -1 once finished
  std::vector<Placement> placements_;
  size_t next_ = 0;
  uint64_t part_ = 0;  // bytes of the next tensor that WritePart has written
};

}  // namespace osdn

#endif  // OSDN_ENGINE_SAFETENSORS_H_
