#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <numeric>
#include <optional>
#include <system_error>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/safetensors.h"
#include "engine/safetensors_header.h"

namespace osdn {
namespace {

constexpr uint64_t kAlignment = 64;  // a cache line, and the widest vector

std::string TemporaryPath(const std::string& path) { return absl::StrCat(path, ".tmp"); }

// Sizes of the declared tensors, with everything a header must not contain refused.
absl::StatusOr<std::vector<uint64_t>> CheckDeclarations(
    const std::vector<SafetensorsWriter::Declaration>& tensors) {
  std::vector<uint64_t> sizes;
  std::map<std::string, int> seen;
  uint64_t total = 0;
  for (const auto& tensor : tensors) {
    if (seen[tensor.name]++ > 0) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", tensor.name, " declared twice"));
    }
    if (SafetensorsDTypeSize(tensor.dtype) == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor ", tensor.name, ": unknown dtype \"", tensor.dtype, "\""));
    }
    // A negative dimension becomes one beyond 2^63, which TensorBytes refuses.
    const std::vector<uint64_t> shape(tensor.shape.begin(), tensor.shape.end());
    const std::optional<uint64_t> bytes = internal::TensorBytes(tensor.dtype, shape);
    constexpr uint64_t kMaxTotal = std::numeric_limits<int64_t>::max() / 2;
    if (!bytes.has_value() || *bytes > kMaxTotal - total) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor ", tensor.name, ": shape does not fit a file"));
    }
    total += *bytes;
    sizes.push_back(*bytes);
  }
  return sizes;
}

// Declared indices in file order (see SafetensorsWriter: Placement).
std::vector<size_t> FileOrder(const std::vector<SafetensorsWriter::Declaration>& tensors,
                              const std::vector<uint64_t>& sizes) {
  std::vector<size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), size_t{0});
  const auto rank = [&](size_t i) -> size_t {
    if (sizes[i] % kAlignment == 0) return 0;
    return kAlignment - SafetensorsDTypeSize(tensors[i].dtype);
  };
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return rank(a) < rank(b); });
  return order;
}

absl::Status WriteAt(int fd, const std::string& path, absl::Span<const std::byte> data,
                     uint64_t offset) {
  while (!data.empty()) {
    const ssize_t written = ::pwrite(fd, data.data(), data.size(), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot write ", path));
    data.remove_prefix(static_cast<size_t>(written));
    offset += static_cast<uint64_t>(written);
  }
  return absl::OkStatus();
}

// Makes the rename itself durable. Some filesystems cannot sync folders: not an error.
void SyncFolder(const std::string& path) {
  std::error_code error;
  const std::filesystem::path folder = std::filesystem::absolute(path, error).parent_path();
  const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  ::fsync(fd);
  ::close(fd);
}

}  // namespace

absl::StatusOr<SafetensorsWriter> SafetensorsWriter::Create(
    const std::string& path, const std::vector<Declaration>& tensors,
    const std::map<std::string, std::string>& metadata) {
  const absl::StatusOr<std::vector<uint64_t>> sizes = CheckDeclarations(tensors);
  if (!sizes.ok()) return sizes.status();

  SafetensorsWriter writer;
  writer.path_ = path;
  writer.placements_.resize(tensors.size());
  internal::RawHeader header;
  header.metadata = metadata;
  uint64_t offset = 0;
  for (const size_t i : FileOrder(tensors, *sizes)) {
    const Declaration& tensor = tensors[i];
    const uint64_t end = offset + (*sizes)[i];
    header.tensors[tensor.name] = {
        tensor.dtype, {tensor.shape.begin(), tensor.shape.end()}, offset, end};
    writer.placements_[i] = {tensor.name, offset, (*sizes)[i]};
    offset = end;
  }

  // Spaces after the JSON are part of the format's header and align the data.
  std::string text(sizeof(uint64_t), '\0');
  text += internal::HeaderToJson(header);
  text.append((kAlignment - text.size() % kAlignment) % kAlignment, ' ');
  const uint64_t header_size = text.size() - sizeof(uint64_t);
  if (header_size > internal::kMaxHeaderBytes) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": header of ", header_size,
                                                   " bytes, at most ", internal::kMaxHeaderBytes));
  }
  for (size_t i = 0; i < sizeof(uint64_t); ++i) {
    text[i] = static_cast<char>(header_size >> (8 * i) & 0xFF);
  }
  for (Placement& placement : writer.placements_) placement.offset += text.size();

  const std::string temporary = TemporaryPath(path);
  writer.fd_ = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (writer.fd_ < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot create ", temporary));
  const auto bytes =
      absl::MakeConstSpan(reinterpret_cast<const std::byte*>(text.data()), text.size());
  if (absl::Status s = WriteAt(writer.fd_, temporary, bytes, 0); !s.ok()) return s;
  return writer;
}

SafetensorsWriter::~SafetensorsWriter() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(TemporaryPath(path_).c_str());
}

SafetensorsWriter::SafetensorsWriter(SafetensorsWriter&& other) noexcept
    : path_(std::move(other.path_)),
      fd_(std::exchange(other.fd_, -1)),
      placements_(std::move(other.placements_)),
      next_(other.next_),
      part_(other.part_) {}

SafetensorsWriter& SafetensorsWriter::operator=(SafetensorsWriter&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(fd_, other.fd_);
  std::swap(placements_, other.placements_);
  std::swap(next_, other.next_);
  std::swap(part_, other.part_);
  return *this;
}

absl::Status SafetensorsWriter::Write(absl::Span<const std::byte> data) {
  if (next_ < placements_.size() && (part_ != 0 || data.size() != placements_[next_].size)) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor ", placements_[next_].name, ": got ", data.size(), " bytes, declared ",
                     placements_[next_].size, ", of which ", part_, " are written"));
  }
  return WritePart(data);
}

absl::Status SafetensorsWriter::WritePart(absl::Span<const std::byte> data) {
  if (fd_ < 0 || next_ == placements_.size()) {
    return absl::FailedPreconditionError(
        absl::StrCat(path_, ": all ", placements_.size(), " declared tensors are written"));
  }
  const Placement& placement = placements_[next_];
  if (data.size() > placement.size - part_) {
    return absl::InvalidArgumentError(absl::StrCat("tensor ", placement.name, ": got ",
                                                   part_ + data.size(), " bytes, declared ",
                                                   placement.size));
  }
  const uint64_t offset = placement.offset + part_;
  if (absl::Status s = WriteAt(fd_, TemporaryPath(path_), data, offset); !s.ok()) return s;
  part_ += data.size();
  if (part_ == placement.size) {
    ++next_;
    part_ = 0;
  }
  return absl::OkStatus();
}

absl::Status SafetensorsWriter::Finish() {
  if (fd_ < 0) return absl::FailedPreconditionError(absl::StrCat(path_, ": already finished"));
  if (next_ != placements_.size()) {
    return absl::FailedPreconditionError(
        absl::StrCat(path_, ": ", next_, " of ", placements_.size(), " tensors written, next is ",
                     placements_[next_].name));
  }
  const std::string temporary = TemporaryPath(path_);
  if (::fsync(fd_) != 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot sync ", temporary));
  if (::rename(temporary.c_str(), path_.c_str()) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot rename ", temporary, " to ", path_));
  }
  ::close(std::exchange(fd_, -1));
  SyncFolder(path_);
  return absl::OkStatus();
}

}  // namespace osdn
