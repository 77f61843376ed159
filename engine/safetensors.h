// The safetensors container: reading by memory mapping, writing as a stream.
// Format: u64 little-endian header size, JSON header, data. Everything in the header is checked
// against the file before use: sizes, dtype x shape == bytes, ranges inside the file, no overlap.
#ifndef OSDN_ENGINE_SAFETENSORS_H_
#define OSDN_ENGINE_SAFETENSORS_H_

#include <cstdint>
#include <fstream>
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

 private:
  MappedFile file_;
  std::map<std::string, SafetensorsEntry> tensors_;
  std::map<std::string, std::string> metadata_;
};

// Bytes of one element, or 0 for an unknown safetensors dtype name.
size_t SafetensorsDTypeSize(std::string_view dtype);

// Writes tensors in the declared order, each aligned to 64 bytes from the start of the file, into
// `path`.tmp and renames on Finish, so a half-written file never has the final name.
class SafetensorsWriter {
 public:
  struct Declaration {
    std::string name;
    std::string dtype;
    std::vector<int64_t> shape;
  };

  static absl::StatusOr<SafetensorsWriter> Create(const std::string& path,
                                                  const std::vector<Declaration>& tensors,
                                                  const std::map<std::string, std::string>& metadata);

  SafetensorsWriter(SafetensorsWriter&&) = default;
  SafetensorsWriter& operator=(SafetensorsWriter&&) = default;

  // The next declared tensor's bytes; the size must match its declaration.
  absl::Status Write(absl::Span<const std::byte> data);
  absl::Status Finish();

 private:
  SafetensorsWriter() = default;

  std::string path_;
  std::ofstream out_;
  std::vector<size_t> offsets_;  // from the start of the data section
  std::vector<size_t> sizes_;
  size_t next_ = 0;
  size_t written_ = 0;
};

}  // namespace osdn

#endif  // OSDN_ENGINE_SAFETENSORS_H_
