// Device memory, copies through pinned host memory, and scratch.
#ifndef OSDN_KERNELS_CUDA_MEMORY_H_
#define OSDN_KERNELS_CUDA_MEMORY_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/backend.h"
#include "kernels/cuda/device.h"

namespace osdn::kernels::cuda {

// Exactly so many bytes of cudaMalloc, zeroed. RESOURCE_EXHAUSTED with what was asked for and what
// is free.
absl::StatusOr<Buffer> AllocateZeroed(Device* device, size_t bytes);

// Pinned host blocks used in turn, so that one is filled while another is still being copied.
class PinnedBlocks {
 public:
  PinnedBlocks(Device* device, int count);
  PinnedBlocks(const PinnedBlocks&) = delete;
  PinnedBlocks& operator=(const PinnedBlocks&) = delete;
  ~PinnedBlocks();

  // The next block, of at least `bytes`, once its last copy is done.
  absl::StatusOr<std::byte*> Next(size_t bytes);
  // Enqueue a copy from or to the block that Next gave last.
  absl::Status CopyToDevice(void* dst, size_t bytes);
  absl::Status CopyFromDevice(const void* src, size_t bytes);
  // The block given `back` calls of Next ago (0: the last), once its copy is done.
  absl::StatusOr<const std::byte*> Wait(int back);

 private:
  struct Block {
    std::byte* data = nullptr;
    size_t bytes = 0;
    cudaEvent_t done = nullptr;
    bool in_flight = false;
  };

  absl::Status WaitFor(Block* block);
  absl::Status Record(Block* block);

  Device* device_;
  std::vector<Block> blocks_;
  size_t current_ = 0;
};

// Copies between pageable host memory and the device, in pieces through pinned memory, so that the
// host's half of the work runs beside the device's.
class HostCopies {
 public:
  explicit HostCopies(Device* device) : blocks_(device, 2) {}

  // Returns when `src` has been read; the device gets it in stream order.
  absl::Status ToDevice(void* dst, const void* src, size_t bytes);
  // Writes `rows` rows of `row_bytes` at a stride of `dst_stride` bytes, with zeros in between.
  absl::Status RowsToDevice(void* dst, size_t dst_stride, const void* src, size_t row_bytes,
                            int64_t rows);
  // Returns when `dst` has been written.
  absl::Status ToHost(void* dst, const void* src, size_t bytes);

 private:
  PinnedBlocks blocks_;
};

// Grow-only device memory, zeroed when it grows. Growing is refused while a graph is recorded, and
// ends the life of the graphs that point into it.
class Scratch {
 public:
  explicit Scratch(Device* device) : device_(device) {}

  absl::Status Reserve(size_t bytes);
  void* data() const { return buffer_.data(); }
  size_t bytes() const { return buffer_.bytes(); }

 private:
  Device* device_;
  Buffer buffer_;
};

// Small arrays that an op needs on the device, copied in stream order. What Put gave is valid for
// what is enqueued before the next Put.
class Uploads {
 public:
  explicit Uploads(Device* device) : blocks_(device, 8), memory_(device) {}

  // Parts are laid out one behind the other at kAlignment; `addresses` gets where each is.
  absl::Status Put(absl::Span<const absl::Span<const std::byte>> parts,
                   absl::Span<const void*> addresses);

 private:
  static constexpr size_t kAlignment = 16;

  PinnedBlocks blocks_;
  Scratch memory_;
};

template <class T>
absl::Span<const std::byte> AsBytes(absl::Span<const T> values) {
  return {reinterpret_cast<const std::byte*>(values.data()), values.size() * sizeof(T)};
}

}  // namespace osdn::kernels::cuda

#endif  // OSDN_KERNELS_CUDA_MEMORY_H_
