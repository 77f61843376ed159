#include <cstdlib>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/backend.h"
#include "kernels/host_buffer.h"

namespace osdn::kernels {

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  if (this == &other) return *this;
  Reset();
  data_ = std::exchange(other.data_, nullptr);
  bytes_ = std::exchange(other.bytes_, 0);
  deleter_ = std::exchange(other.deleter_, nullptr);
  context_ = std::exchange(other.context_, nullptr);
  return *this;
}

void Buffer::Reset() {
  if (data_ != nullptr && deleter_ != nullptr) deleter_(context_, data_);
  data_ = nullptr;
  bytes_ = 0;
  deleter_ = nullptr;
  context_ = nullptr;
}

absl::StatusOr<Buffer> AllocateHostBuffer(size_t bytes) {
  if (bytes == 0) return Buffer();
  void* data = nullptr;
  if (bytes <= std::numeric_limits<size_t>::max() - kBufferAlignment) {
    const size_t rounded = (bytes + kBufferAlignment - 1) / kBufferAlignment * kBufferAlignment;
    data = std::aligned_alloc(kBufferAlignment, rounded);
  }
  if (data == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat("host memory: an allocation of ", bytes, " bytes failed; lower the number of ",
                     "state slots, the batch limits or the cache sizes"));
  }
  std::memset(data, 0, bytes);
  return Buffer(
      data, bytes, [](void*, void* memory) { std::free(memory); }, nullptr);
}

}  // namespace osdn::kernels
