// RMSNorm, the mixer's per-head output norm, and SwiGLU.
#ifndef OSDN_KERNELS_INCLUDE_NORM_H_
#define OSDN_KERNELS_INCLUDE_NORM_H_

#include "kernels/include/tensor.h"

namespace osdn::kernels {

// y[r, :] = x[r, :] * rsqrt(mean(x[r, :]^2) + eps) * weight. y may be x.
struct RmsNormArgs {
  int64_t rows = 0;
  int64_t dim = 0;
  float eps = 0;
  const float* x = nullptr;       // [rows, dim]
  const float* weight = nullptr;  // [dim]
  float* y = nullptr;             // [rows, dim]
};

// In place, for every row and head: o = rmsnorm(o over value_dim) * weight, then, when `gate` is
// not null, o *= silu(gate). (osdn-model.md section 4, o_norm and g_proj.)
struct OutputNormArgs {
  int64_t rows = 0;
  int64_t heads = 0;
  int64_t value_dim = 0;
  float eps = 0;
  const float* weight = nullptr;  // [value_dim]
  const float* gate = nullptr;    // [rows, heads * value_dim] or null
  float* o = nullptr;             // [rows, heads * value_dim]
};

// y = silu(gate) * up, elementwise over [rows, dim]. y may be gate or up.
struct SwiGluArgs {
  int64_t rows = 0;
  int64_t dim = 0;
  const float* gate = nullptr;
  const float* up = nullptr;
  float* y = nullptr;
};

}  // namespace osdn::kernels

#endif  // OSDN_KERNELS_INCLUDE_NORM_H_
