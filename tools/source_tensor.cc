#include "tools/source_tensor.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/safetensors.h"
#include "tools/float_convert.h"

namespace osdn::tools {
namespace {

constexpr int64_t kMax = std::numeric_limits<int64_t>::max();

// Product of the dimensions; nullopt when one is negative or it overflows.
std::optional<int64_t> Volume(absl::Span<const int64_t> shape) {
  int64_t volume = 1;
  bool empty = false;
  for (const int64_t dim : shape) {
    if (dim < 0) return std::nullopt;
    if (dim == 0) {
      empty = true;
      continue;
    }
    if (volume > kMax / dim) return std::nullopt;
    volume *= dim;
  }
  return empty ? 0 : volume;
}

std::vector<int64_t> RowMajorStrides(absl::Span<const int64_t> shape) {
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= std::max<int64_t>(shape[i], 1);
  }
  return strides;
}

// Elements from the first to the last one of a strided box, both included; nullopt on overflow.
std::optional<int64_t> Extent(absl::Span<const int64_t> shape, absl::Span<const int64_t> strides) {
  int64_t last = 0;
  for (size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] == 0) return 0;
    if (strides[i] < 0) return std::nullopt;
    const int64_t steps = shape[i] - 1;
    if (steps > 0 && strides[i] > (kMax - 1 - last) / steps) return std::nullopt;
    last += steps * strides[i];
  }
  return last + 1;
}

bool Overlap(const TensorPiece& a, const TensorPiece& b) {
  for (size_t i = 0; i < a.shape.size(); ++i) {
    if (a.offset[i] >= b.offset[i] + b.shape[i] || b.offset[i] >= a.offset[i] + a.shape[i]) {
      return false;
    }
  }
  return true;
}

absl::Status BadDimension(const SourceTensor& tensor, int64_t dim) {
  return absl::InvalidArgumentError(
      absl::StrCat("shape ", ShapeText(tensor.shape), " has no dimension ", dim));
}

bool HasDimension(const SourceTensor& tensor, int64_t dim) {
  return dim >= 0 && dim < static_cast<int64_t>(tensor.shape.size());
}

// Copies rows [first, end) of one piece to where they belong in `out`, line by line: a line is the
// piece's last dimension.
class PieceReader {
 public:
  PieceReader(const SourceTensor& tensor, const TensorPiece& piece, SourceDType dtype)
      : piece_(piece), dtype_(dtype), out_strides_(RowMajorStrides(tensor.shape)) {}

  void Read(int64_t first, int64_t end, float* out) const {
    const int64_t from = std::max(first, piece_.offset[0]) - piece_.offset[0];
    const int64_t to = std::min(end, piece_.offset[0] + piece_.shape[0]) - piece_.offset[0];
    int64_t target = -first * out_strides_[0];
    for (size_t i = 0; i < out_strides_.size(); ++i) target += piece_.offset[i] * out_strides_[i];
    for (int64_t row = from; row < to; ++row) {
      Walk(1, row * piece_.strides[0], out + target + row * out_strides_[0]);
    }
  }

 private:
  // Depth is bounded by the number of dimensions, which the readers of checkpoints bound.
  void Walk(size_t dim, int64_t source, float* out) const {
    const size_t last = piece_.shape.size() - 1;
    if (dim > last) return Line(source, 1, 1, out);
    if (dim == last) return Line(source, piece_.shape[last], piece_.strides[last], out);
    for (int64_t i = 0; i < piece_.shape[dim]; ++i) {
      Walk(dim + 1, source + i * piece_.strides[dim], out + i * out_strides_[dim]);
    }
  }

  void Line(int64_t source, int64_t count, int64_t stride, float* out) const {
    if (count == 0) return;
    const auto bytes = static_cast<int64_t>(SourceDTypeSize(dtype_));
    WidenElements(piece_.data.data() + source * bytes, stride, dtype_, {out, size_t(count)});
  }

  const TensorPiece& piece_;
  const SourceDType dtype_;
  const std::vector<int64_t> out_strides_;
};

}  // namespace

int64_t SourceTensor::elements() const { return Volume(shape).value_or(0); }

std::string ShapeText(absl::Span<const int64_t> shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ","), "]");
}

SourceTensor WholeTensor(std::string dtype, std::vector<int64_t> shape,
                         absl::Span<const std::byte> data) {
  TensorPiece piece = {.offset = std::vector<int64_t>(shape.size()),
                       .shape = shape,
                       .strides = RowMajorStrides(shape),
                       .data = data};
  return {std::move(dtype), std::move(shape), {std::move(piece)}};
}

absl::StatusOr<SourceTensor> StridedTensor(std::string dtype, std::vector<int64_t> shape,
                                           std::vector<int64_t> strides, int64_t offset,
                                           absl::Span<const std::byte> storage) {
  const auto bytes = static_cast<int64_t>(SafetensorsDTypeSize(dtype));
  if (bytes == 0 || shape.size() != strides.size() || offset < 0 || !Volume(shape).has_value()) {
    return absl::InvalidArgumentError(absl::StrCat("dtype ", dtype, ", shape ", ShapeText(shape),
                                                   ", strides ", ShapeText(strides), " and offset ",
                                                   offset, " make no tensor"));
  }
  const std::optional<int64_t> extent = Extent(shape, strides);
  const int64_t capacity = static_cast<int64_t>(storage.size()) / bytes;
  if (!extent.has_value() || *extent > capacity || offset > capacity - *extent) {
    return absl::InvalidArgumentError(
        absl::StrCat("shape ", ShapeText(shape), ", strides ", ShapeText(strides), " and offset ",
                     offset, " reach beyond the storage of ", capacity, " elements"));
  }
  TensorPiece piece = {.offset = std::vector<int64_t>(shape.size()),
                       .shape = shape,
                       .strides = std::move(strides),
                       .data = storage.subspan(static_cast<size_t>(offset * bytes),
                                               static_cast<size_t>(*extent * bytes))};
  return SourceTensor{std::move(dtype), std::move(shape), {std::move(piece)}};
}

absl::Status CheckPieces(const SourceTensor& tensor) {
  constexpr size_t kMaxPieces = 4096;  // they are compared pair by pair
  if (tensor.pieces.size() > kMaxPieces) {
    return absl::InvalidArgumentError(
        absl::StrCat(tensor.pieces.size(), " pieces; at most ", kMaxPieces, " are read"));
  }
  int64_t covered = 0;
  for (const TensorPiece& piece : tensor.pieces) {
    const bool ranks = piece.offset.size() == tensor.shape.size() &&
                       piece.shape.size() == tensor.shape.size() &&
                       piece.strides.size() == tensor.shape.size();
    bool inside = ranks;
    for (size_t i = 0; inside && i < piece.shape.size(); ++i) {
      inside = piece.offset[i] >= 0 && piece.shape[i] >= 0 && piece.shape[i] <= tensor.shape[i] &&
               piece.offset[i] <= tensor.shape[i] - piece.shape[i];
    }
    if (!inside) {
      return absl::InvalidArgumentError(
          absl::StrCat("a piece of shape ", ShapeText(piece.shape), " at ", ShapeText(piece.offset),
                       " does not lie in shape ", ShapeText(tensor.shape)));
    }
    covered += *Volume(piece.shape);
    if (covered > tensor.elements()) break;
  }
  for (size_t a = 0; a < tensor.pieces.size(); ++a) {
    for (size_t b = a + 1; b < tensor.pieces.size(); ++b) {
      if (!Overlap(tensor.pieces[a], tensor.pieces[b])) continue;
      return absl::InvalidArgumentError(absl::StrCat(
          "pieces of shape ", ShapeText(tensor.pieces[a].shape), " at ",
          ShapeText(tensor.pieces[a].offset), " and of shape ", ShapeText(tensor.pieces[b].shape),
          " at ", ShapeText(tensor.pieces[b].offset), " overlap"));
    }
  }
  if (covered == tensor.elements()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("the pieces have ", covered, " of the ",
                                                 tensor.elements(), " elements of shape ",
                                                 ShapeText(tensor.shape)));
}

absl::StatusOr<SourceTensor> Transpose(const SourceTensor& tensor) {
  if (tensor.shape.size() != 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("only matrices can be transposed, not shape ", ShapeText(tensor.shape)));
  }
  SourceTensor turned = tensor;
  std::swap(turned.shape[0], turned.shape[1]);
  for (TensorPiece& piece : turned.pieces) {
    std::swap(piece.offset[0], piece.offset[1]);
    std::swap(piece.shape[0], piece.shape[1]);
    std::swap(piece.strides[0], piece.strides[1]);
  }
  return turned;
}

absl::StatusOr<SourceTensor> Narrow(const SourceTensor& tensor, int64_t dim, int64_t first,
                                    int64_t size) {
  if (!HasDimension(tensor, dim)) return BadDimension(tensor, dim);
  const auto d = static_cast<size_t>(dim);
  if (first < 0 || size < 0 || size > tensor.shape[d] || first > tensor.shape[d] - size) {
    return absl::InvalidArgumentError(absl::StrCat("shape ", ShapeText(tensor.shape), " has no ",
                                                   size, " entries from ", first,
                                                   " on in dimension ", dim));
  }
  const auto bytes = static_cast<int64_t>(SafetensorsDTypeSize(tensor.dtype));
  SourceTensor part{tensor.dtype, tensor.shape, {}};
  part.shape[d] = size;
  for (const TensorPiece& piece : tensor.pieces) {
    const int64_t begin = std::max(first, piece.offset[d]);
    const int64_t end = std::min(first + size, piece.offset[d] + piece.shape[d]);
    if (begin >= end) continue;
    TensorPiece cut = piece;
    const int64_t skipped = (begin - piece.offset[d]) * piece.strides[d] * bytes;
    cut.data.remove_prefix(static_cast<size_t>(skipped));
    cut.offset[d] = begin - first;
    cut.shape[d] = end - begin;
    part.pieces.push_back(std::move(cut));
  }
  return part;
}

absl::StatusOr<SourceTensor> Concatenate(absl::Span<const SourceTensor> parts, int64_t dim) {
  if (parts.empty()) return absl::InvalidArgumentError("nothing to join");
  SourceTensor joined{parts[0].dtype, parts[0].shape, {}};
  if (!HasDimension(joined, dim)) return BadDimension(joined, dim);
  const auto d = static_cast<size_t>(dim);
  joined.shape[d] = 0;
  for (const SourceTensor& part : parts) {
    std::vector<int64_t> rest = part.shape;
    if (rest.size() == joined.shape.size()) rest[d] = joined.shape[d];
    if (rest != joined.shape || part.dtype != joined.dtype) {
      return absl::InvalidArgumentError(
          absl::StrCat("cannot join ", part.dtype, ShapeText(part.shape), " to ", joined.dtype,
                       ShapeText(parts[0].shape), " in dimension ", dim));
    }
    if (part.shape[d] > kMax - joined.shape[d]) return BadDimension(joined, dim);
    for (TensorPiece piece : part.pieces) {
      piece.offset[d] += joined.shape[d];
      joined.pieces.push_back(std::move(piece));
    }
    joined.shape[d] += part.shape[d];
  }
  return joined;
}

absl::StatusOr<SourceTensor> ReshapeUnits(const SourceTensor& tensor,
                                          const std::vector<int64_t>& shape) {
  SourceTensor result{tensor.dtype, shape, {}};
  for (const TensorPiece& piece : tensor.pieces) {
    TensorPiece moved = {.offset = {}, .shape = {}, .strides = {}, .data = piece.data};
    size_t from = 0;
    const auto skip_units = [&] {
      while (from < tensor.shape.size() && tensor.shape[from] == 1) ++from;
    };
    bool matches = true;
    for (const int64_t dim : shape) {
      if (dim != 1) skip_units();
      const bool unit = dim == 1;
      matches = matches && (unit || (from < tensor.shape.size() && tensor.shape[from] == dim));
      if (!matches) break;
      moved.offset.push_back(unit ? 0 : piece.offset[from]);
      moved.shape.push_back(unit ? 1 : piece.shape[from]);
      moved.strides.push_back(unit ? 1 : piece.strides[from]);
      if (!unit) ++from;
    }
    skip_units();
    if (!matches || from != tensor.shape.size()) {
      return absl::InvalidArgumentError(absl::StrCat("shape ", ShapeText(tensor.shape),
                                                     " differs from ", ShapeText(shape),
                                                     " by more than dimensions of size 1"));
    }
    result.pieces.push_back(std::move(moved));
  }
  return result;
}

void ReadRows(const SourceTensor& tensor, int64_t first, absl::Span<float> out) {
  if (out.empty()) return;
  const SourceDType dtype = *ParseSourceDType(tensor.dtype);
  const int64_t columns = tensor.elements() / tensor.shape[0];
  const int64_t end = first + static_cast<int64_t>(out.size()) / columns;
  for (const TensorPiece& piece : tensor.pieces) {
    if (piece.offset[0] >= end || piece.offset[0] + piece.shape[0] <= first) continue;
    PieceReader(tensor, piece, dtype).Read(first, end, out.data());
  }
}

bool SameElements(const SourceTensor& a, const SourceTensor& b) {
  if (a.shape != b.shape || a.dtype != b.dtype) return false;
  if (a.elements() == 0) return true;
  if (!ParseSourceDType(a.dtype).has_value() || a.shape.empty()) return false;
  const int64_t columns = a.elements() / a.shape[0];
  const int64_t step = std::max<int64_t>((1 << 20) / columns, 1);
  std::vector<float> left;
  std::vector<float> right;
  for (int64_t row = 0; row < a.shape[0]; row += step) {
    const auto count = static_cast<size_t>(std::min(step, a.shape[0] - row) * columns);
    left.resize(count);
    right.resize(count);
    ReadRows(a, row, absl::MakeSpan(left));
    ReadRows(b, row, absl::MakeSpan(right));
    if (std::memcmp(left.data(), right.data(), count * sizeof(float)) != 0) return false;
  }
  return true;
}

}  // namespace osdn::tools
