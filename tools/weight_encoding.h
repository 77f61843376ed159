// Rows of float32 weights to any stored dtype and back.
#ifndef OSDN_TOOLS_WEIGHT_ENCODING_H_
#define OSDN_TOOLS_WEIGHT_ENCODING_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/types/span.h"
#include "kernels/include/tensor.h"

namespace osdn::tools {

// What rounding took away: sums over weights of (stored - w)^2 and w^2.
struct RoundingError {
  double error = 0;
  double signal = 0;

  void Add(const RoundingError& other) {
    error += other.error;
    signal += other.signal;
  }
  // Root of the ratio; 0 where there is no signal.
  double relative_rms() const;
};

struct EncodedRows {
  std::vector<std::byte> data;
  std::vector<std::byte> scales;  // empty unless the dtype is quantized
};

// Encodes `values`, whole rows of `columns` float32, as `to`, replacing `*out` and adding to
// `*total`. Returns the index of the first value that is not finite in `to`, if any; `*out` is then
// undefined. Formats: kernels/include/tensor.h, docs/model-format.md.
//
// Scales minimise the squared error over a few clip ratios: a little clipping of the largest weight
// often pays by finer steps for the rest. int8: of each row. int4: of each group of 32, with the
// scale rounded to bf16 before weights are, and refitted by least squares to the chosen codes.
// The result does not depend on how rows are cut into calls or on the number of threads.
std::optional<size_t> EncodeRows(absl::Span<const float> values, int64_t columns, kernels::DType to,
                                 EncodedRows* out, RoundingError* total);

// Elements of rows [first, first + out.size() / columns) of a [rows, columns] tensor.
void DecodeRows(const kernels::HostTensor& tensor, int64_t first, absl::Span<float> out);

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_WEIGHT_ENCODING_H_
