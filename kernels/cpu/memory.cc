#include "kernels/cpu/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/sizes.h"
#include "kernels/host_buffer.h"

namespace osdn::kernels::cpu {
namespace {

constexpr size_t kMapThreshold = size_t{1} << 20;

// The mapping's length travels as the deleter's context.
void Unmap(void* context, void* data) { munmap(data, reinterpret_cast<size_t>(context)); }

}  // namespace

absl::StatusOr<Buffer> AllocateZeroed(size_t bytes) {
  if (bytes < kMapThreshold) return AllocateHostBuffer(bytes);
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("host memory: mapping ", bytes, " bytes (", bytes >> 20,
                     " MiB) failed: ", std::strerror(errno),
                     "; lower the number of state slots, the batch limits ", "or the cache sizes"));
  }
  // Huge pages where the system has them: state and scratch are read in long runs. Best effort.
  madvise(data, bytes, MADV_HUGEPAGE);
  // NOLINTNEXTLINE(performance-no-int-to-ptr): a number that travels as a pointer, never followed
  return Buffer(data, bytes, &Unmap, reinterpret_cast<void*>(bytes));
}

absl::Status Scratch::Reserve(size_t bytes) {
  if (bytes <= buffer_.bytes()) return absl::OkStatus();
  absl::StatusOr<Buffer> grown = AllocateZeroed(bytes);
  if (!grown.ok()) return grown.status();
  buffer_ = *std::move(grown);
  return absl::OkStatus();
}

absl::Status ThreadScratch::Reserve(int64_t floats_per_thread) {
  // A line between blocks: neighbours never share one.
  const int64_t stride = std::max(stride_, RoundUp(floats_per_thread, kLineFloats) + kLineFloats);
  if (absl::Status status = scratch_.Reserve(stride * threads_ * sizeof(float)); !status.ok()) {
    return status;
  }
  stride_ = stride;
  return absl::OkStatus();
}

}  // namespace osdn::kernels::cpu
