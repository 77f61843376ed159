// Skinny products: few rows of activations against weights that are read once, at the speed of
// memory. Several products that share an input go in one launch; RMSNorm of the input, SwiGLU of
// two products, and accumulation into the output are fused.
//
// A row's result depends on that row alone: not on how many rows or products there are.
#ifndef OSDN_KERNELS_CUDA_GEMV_H_
#define OSDN_KERNELS_CUDA_GEMV_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/mixer.h"
#include "kernels/cuda/weights.h"

namespace osdn::kernels::cuda {

inline constexpr int kMaxGemvJobs = 6;
// Most rows that one launch takes.
inline constexpr int64_t kMaxGemvRows = 32;
inline constexpr int64_t kMaxGemvSwiGluRows = 16;

// Rows of activations in device memory, `stride` elements apart.
struct RowsView {
  const void* data = nullptr;
  ActivationType type = ActivationType::kF32;
  int64_t stride = 0;
};

// One product; out[row, feature] lies at y + row * row_stride + feature * feature_stride.
struct GemvJob {
  WeightView weight;
  void* y = nullptr;
  ActivationType y_type = ActivationType::kF32;
  int64_t row_stride = 0;
  int64_t feature_stride = 1;
  bool accumulate = false;  // f32 only
};

struct GemvArgs {
  int64_t rows = 0;  // 1 to GemvRows(...)
  RowsView x;
  // Not null: x is normed first, x * rsqrt(mean x^2 + eps) * norm. x is then float32.
  const float* norm = nullptr;
  float norm_eps = 0;
  // All weights of one type and one `in`. With `swiglu` there are two, gate and up, of the same
  // size, and y = silu(gate x) * (up x) goes to the first's y.
  absl::Span<const GemvJob> jobs;
  bool swiglu = false;
  // The weights were there long before the kernel in front of this one, which they then are read
  // ahead of.
  bool read_ahead = true;
};

// Rows of `in` elements that a launch takes for weights of `dtype`, at most kMaxGemvRows; 0 when
// not even one row fits into shared memory.
int64_t GemvRows(const Device& device, DType dtype, int64_t in);

// Raises the kernels' limits of shared memory; once a device, before anything else here.
absl::Status PrepareGemv(Device* device);

absl::Status LaunchGemv(Device* device, const GemvArgs& args);

}  // namespace osdn::kernels::cuda

#endif  // OSDN_KERNELS_CUDA_GEMV_H_
