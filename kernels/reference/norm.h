// RMSNorm, the mixer's per-head output norm, and SwiGLU (contracts in kernels/include/norm.h).
#ifndef OSDN_KERNELS_REFERENCE_NORM_H_
#define OSDN_KERNELS_REFERENCE_NORM_H_

#include <cmath>
#include <cstdint>

#include "kernels/reference/activation.h"

namespace osdn::kernels::reference {

// One row: y = x * rsqrt(mean(x^2) + eps) * weight. y may be x.
template <typename T>
void RmsNormRow(int64_t dim, T eps, const T* weight, const T* x, T* y) {
  T sum = 0;
  for (int64_t i = 0; i < dim; ++i) sum += x[i] * x[i];
  const T scale = T(1) / std::sqrt(sum / static_cast<T>(dim) + eps);
  for (int64_t i = 0; i < dim; ++i) y[i] = x[i] * scale * weight[i];
}

// One row of `heads` outputs of value_dim each; gate may be null.
template <typename T>
struct OutputNormRowArgs {
  int64_t heads = 0;
  int64_t value_dim = 0;
  T eps = 0;
  const T* weight = nullptr;  // [value_dim]
  const T* gate = nullptr;    // [heads * value_dim] or null
  T* o = nullptr;             // [heads * value_dim], in place
};

template <typename T>
void OutputNormRow(const OutputNormRowArgs<T>& args) {
  for (int64_t h = 0; h < args.heads; ++h) {
    T* o = args.o + h * args.value_dim;
    RmsNormRow(args.value_dim, args.eps, args.weight, o, o);
    if (args.gate == nullptr) continue;
    for (int64_t i = 0; i < args.value_dim; ++i) o[i] *= Silu(args.gate[h * args.value_dim + i]);
  }
}

// y may be gate or up.
template <typename T>
void SwiGlu(int64_t count, const T* gate, const T* up, T* y) {
  for (int64_t i = 0; i < count; ++i) y[i] = Silu(gate[i]) * up[i];
}

}  // namespace osdn::kernels::reference

#endif  // OSDN_KERNELS_REFERENCE_NORM_H_
