// y = x W^T (+ y), and the row gather that embeddings are made of.
#ifndef OSDN_KERNELS_REFERENCE_LINEAR_H_
#define OSDN_KERNELS_REFERENCE_LINEAR_H_

#include <cstdint>

#include "absl/types/span.h"

namespace osdn::kernels::reference {

template <typename T>
struct Matrix {
  int64_t out_features = 0;
  int64_t in_features = 0;
  const T* data = nullptr;  // [out_features, in_features]
};

template <typename T>
void Linear(const Matrix<T>& w, int64_t rows, const T* x, bool accumulate, T* y) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t n = 0; n < w.out_features; ++n) {
      T sum = 0;
      for (int64_t i = 0; i < w.in_features; ++i) {
        sum += x[r * w.in_features + i] * w.data[n * w.in_features + i];
      }
      T& out = y[r * w.out_features + n];
      out = accumulate ? out + sum : sum;
    }
  }
}

// y[i, :] = x[indices[i], :]
template <typename Index, typename T>
void GatherRows(absl::Span<const Index> indices, int64_t dim, const T* x, T* y) {
  for (const Index index : indices) {
    for (int64_t i = 0; i < dim; ++i) *y++ = x[index * dim + i];
  }
}

}  // namespace osdn::kernels::reference

#endif  // OSDN_KERNELS_REFERENCE_LINEAR_H_
