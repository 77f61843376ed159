// Embedding lookup and row gather.
#ifndef OSDN_KERNELS_INCLUDE_EMBEDDING_H_
#define OSDN_KERNELS_INCLUDE_EMBEDDING_H_

#include "kernels/include/tensor.h"

namespace osdn::kernels {

// y[r, :] = table[ids[r], :] widened to float32. `ids` is host memory; the caller has checked
// 0 <= ids[r] < vocab.
struct EmbeddingArgs {
  absl::Span<const int32_t> ids;  // [rows]
  float* y = nullptr;             // [rows, dim]
};

// y[i, :] = x[indices[i], :]. `indices` is host memory, each in [0, rows of x).
struct GatherRowsArgs {
  absl::Span<const int64_t> indices;
  int64_t dim = 0;
  const float* x = nullptr;
  float* y = nullptr;
};

}  // namespace osdn::kernels

#endif  // OSDN_KERNELS_INCLUDE_EMBEDDING_H_
