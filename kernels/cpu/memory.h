// Memory of the CPU backend.
#ifndef OSDN_KERNELS_CPU_MEMORY_H_
#define OSDN_KERNELS_CPU_MEMORY_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace osdn::kernels::cpu {

// Zeroed, 64-byte aligned. Large blocks come from mmap, so pages cost nothing until they are
// touched (state pools are large and fill slowly). RESOURCE_EXHAUSTED with the size.
absl::StatusOr<Buffer> AllocateZeroed(size_t bytes);

// Grow-only working memory: after the largest shape has been seen, nothing is allocated.
class Scratch {
 public:
  // Contents are lost when it grows.
  absl::Status Reserve(size_t bytes);
  template <class T>
  T* As() const {
    return static_cast<T*>(buffer_.data());
  }

 private:
  Buffer buffer_;
};

// One equal block a thread.
class ThreadScratch {
 public:
  explicit ThreadScratch(int threads) : threads_(threads) {}

  absl::Status Reserve(int64_t floats_per_thread);
  float* at(int thread) const { return scratch_.As<float>() + thread * stride_; }

 private:
  int threads_;
  int64_t stride_ = 0;
  Scratch scratch_;
};

}  // namespace osdn::kernels::cpu

#endif  // OSDN_KERNELS_CPU_MEMORY_H_
