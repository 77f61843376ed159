// A tensor of a checkpoint wherever its elements lie: whole, strided, or in pieces over several
// files. Name maps turn, cut and join tensors by arithmetic on this description; elements are
// touched only when rows are read.
#ifndef OSDN_TOOLS_SOURCE_TENSOR_H_
#define OSDN_TOOLS_SOURCE_TENSOR_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace osdn::tools {

// A box of a tensor. All four have one entry a dimension, except `data`.
struct TensorPiece {
  std::vector<int64_t> offset;  // of the box in the tensor
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;      // in elements, never negative
  absl::Span<const std::byte> data;  // element [0, ...] first; the last one lies inside
};

// Points into mapped files, which must outlive it.
struct SourceTensor {
  std::string dtype;  // safetensors' names: "F32", "BF16", "I64", ...
  std::vector<int64_t> shape;
  std::vector<TensorPiece> pieces;  // cover every element once

  int64_t elements() const;
};

std::string ShapeText(absl::Span<const int64_t> shape);

// `data` must hold exactly the elements of `shape`, in order.
SourceTensor WholeTensor(std::string dtype, std::vector<int64_t> shape,
                         absl::Span<const std::byte> data);

// A view of a storage, as PyTorch describes it: `offset` and `strides` in elements.
// INVALID_ARGUMENT for what reaches beyond the storage, however large the numbers.
absl::StatusOr<SourceTensor> StridedTensor(std::string dtype, std::vector<int64_t> shape,
                                           std::vector<int64_t> strides, int64_t offset,
                                           absl::Span<const std::byte> storage);

// INVALID_ARGUMENT unless the pieces cover every element exactly once.
absl::Status CheckPieces(const SourceTensor& tensor);

// The following check what they are asked and answer INVALID_ARGUMENT with shapes and dimension.
absl::StatusOr<SourceTensor> Transpose(const SourceTensor& tensor);  // of a matrix
absl::StatusOr<SourceTensor> Narrow(const SourceTensor& tensor, int64_t dim, int64_t first,
                                    int64_t size);
absl::StatusOr<SourceTensor> Concatenate(absl::Span<const SourceTensor> parts, int64_t dim);
// To a shape that differs by dimensions of size 1 only.
absl::StatusOr<SourceTensor> ReshapeUnits(const SourceTensor& tensor,
                                          const std::vector<int64_t>& shape);

// Fills `out` with whole rows (everything behind the first dimension) from row `first` on, widened
// to float32. The dtype must be F32, BF16 or F16 and the rows must exist.
void ReadRows(const SourceTensor& tensor, int64_t first, absl::Span<float> out);

// Same shape, same values bit for bit after widening.
bool SameElements(const SourceTensor& a, const SourceTensor& b);

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_SOURCE_TENSOR_H_
