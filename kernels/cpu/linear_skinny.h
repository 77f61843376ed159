// Products of few rows with plain row-major weights, straight from the mapping (decode).
#ifndef OSDN_KERNELS_CPU_LINEAR_SKINNY_H_
#define OSDN_KERNELS_CPU_LINEAR_SKINNY_H_

#include <cstdint>

#include "absl/types/span.h"
#include "kernels/include/tensor.h"

namespace osdn::kernels::cpu {

// y[row, o] = (y[row, o] +) sum_i x[row, i] * weight[o, i] for every row in `rows`.
struct SkinnyProduct {
  const void* weight = nullptr;  // [out, in]
  DType dtype = DType::kF32;
  int64_t out_features = 0;
  int64_t in_features = 0;
  absl::Span<const int64_t> rows;
  const float* x = nullptr;  // [*, in]
  float* y = nullptr;        // [*, out]
  bool accumulate = false;
};

// Computes outputs [begin, end). A result's bits depend on its x row and weight row alone: each is
// one dot product with a fixed number of accumulators and a fixed order, whatever tile it falls in.
void MultiplySkinny(const SkinnyProduct& product, int64_t begin, int64_t end);

}  // namespace osdn::kernels::cpu

#endif  // OSDN_KERNELS_CPU_LINEAR_SKINNY_H_
