// Weights on the device, in the layouts that the products and the embedding lookup read.
#ifndef OSDN_KERNELS_CUDA_WEIGHTS_H_
#define OSDN_KERNELS_CUDA_WEIGHTS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/memory.h"
#include "kernels/include/linear.h"

namespace osdn::kernels::cuda {

// A weight as kernels see it. Rows (outputs) are `stride` elements long, a multiple of what one
// step of the skinny product reads; what lies behind `in` is zero.
//   f32, bf16, int8   as in the file; int8's scales are float32, one a row
//   int4              blocks of 128 inputs (64 bytes): thread t of four reads 16 bytes, which are,
//   of
//                     each of the block's four groups of 32, the inputs 8 t to 8 t + 7. Within such
//                     four bytes the nibbles from the lowest are inputs 0 2 4 6 1 3 5 7, so that a
//                     mask and a shift give two neighbours. Scales are bf16, stride / 32 a row.
struct WeightView {
  const void* data = nullptr;
  const void* scales = nullptr;
  DType dtype = DType::kF32;
  int64_t out = 0;
  int64_t in = 0;
  int64_t stride = 0;
};

// Elements that the rows of a weight of `dtype` are padded to a multiple of.
constexpr int64_t StrideStep(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return 4;
    case DType::kBF16:
      return 32;
    case DType::kI8:
      return 64;
    case DType::kI4:
      return 128;
  }
  return 1;
}

class CudaWeight final : public LinearWeight {
 public:
  // `memory` keeps the chunk that `view` points into.
  CudaWeight(const WeightView& view, size_t bytes, std::shared_ptr<Buffer> memory)
      : LinearWeight(view.out, view.in, view.dtype),
        view_(view),
        bytes_(bytes),
        memory_(std::move(memory)) {}

  const WeightView& view() const { return view_; }
  size_t extra_bytes() const override { return bytes_; }

 private:
  WeightView view_;
  size_t bytes_;
  std::shared_ptr<Buffer> memory_;
};

inline const WeightView& ViewOf(const LinearWeight& weight) {
  return static_cast<const CudaWeight&>(weight).view();
}

// Puts weights on the device, small ones several to an allocation, neighbours in the order of the
// calls: products whose weights lie at equal distances run as one batch (linear.h).
class WeightLoader {
 public:
  WeightLoader(Device* device, HostCopies* copies)
      : device_(device), copies_(copies), raw_(device) {}

  // Returns when `weight` has been read; the copy may still be on its way. INVALID_ARGUMENT for
  // what is no matrix, RESOURCE_EXHAUSTED when it does not fit.
  absl::StatusOr<std::unique_ptr<LinearWeight>> Load(const HostTensor& weight);

 private:
  // Zeroed memory for `bytes` in a chunk shared with others, and the chunk.
  struct Place {
    std::byte* data = nullptr;
    std::shared_ptr<Buffer> chunk;
  };
  absl::StatusOr<Place> Allocate(size_t bytes);
  absl::Status LoadInt4(const HostTensor& weight, const WeightView& view, std::byte* data);

  Device* device_;
  HostCopies* copies_;
  Scratch raw_;  // int4 as it is in the file, before it is rearranged
  std::weak_ptr<Buffer> chunk_;
  size_t chunk_used_ = 0;
};

}  // namespace osdn::kernels::cuda

#endif  // OSDN_KERNELS_CUDA_WEIGHTS_H_
