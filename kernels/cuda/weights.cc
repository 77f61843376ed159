#include "kernels/cuda/weights.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/cuda/weight_kernels.h"

namespace osdn::kernels::cuda {
namespace {

constexpr size_t kChunkBytes = size_t{32} << 20;
constexpr size_t kAlignment = 256;

constexpr int64_t RoundUp(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

size_t ScaleBytes(const WeightView& view) {
  switch (view.dtype) {
    case DType::kF32:
    case DType::kBF16:
      return 0;
    case DType::kI8:
      return static_cast<size_t>(view.out) * sizeof(float);
    case DType::kI4:
      return static_cast<size_t>(view.out * (view.stride / kInt4Group)) * sizeof(uint16_t);
  }
  return 0;
}

absl::StatusOr<WeightView> Describe(const HostTensor& weight) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  if (weight.shape.size() != 2 || weight.shape[0] < 1 || weight.shape[1] < 1 ||
      weight.shape[0] > kMost || weight.shape[1] > kMost - 256) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a weight of shape [", absl::StrJoin(weight.shape, ", "), "], want [out, in]"));
  }
  WeightView view;
  view.dtype = weight.dtype;
  view.out = weight.shape[0];
  view.in = weight.shape[1];
  view.stride = RoundUp(view.in, StrideStep(view.dtype));
  return view;
}

}  // namespace

absl::StatusOr<WeightLoader::Place> WeightLoader::Allocate(size_t bytes) {
  const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  std::shared_ptr<Buffer> chunk = chunk_.lock();
  if (chunk == nullptr || chunk->bytes() - chunk_used_ < rounded) {
    absl::StatusOr<Buffer> buffer = AllocateZeroed(device_, std::max(rounded, kChunkBytes));
    if (!buffer.ok() && absl::IsResourceExhausted(buffer.status()) && rounded < kChunkBytes) {
      buffer = AllocateZeroed(device_, rounded);  // the last bit of memory
    }
    if (!buffer.ok()) return buffer.status();
    chunk = std::make_shared<Buffer>(*std::move(buffer));
    chunk_ = chunk;
    chunk_used_ = 0;
  }
  Place place = {static_cast<std::byte*>(chunk->data()) + chunk_used_, chunk};
  chunk_used_ += rounded;
  return place;
}

absl::StatusOr<std::unique_ptr<LinearWeight>> WeightLoader::Load(const HostTensor& weight) {
  absl::StatusOr<WeightView> view = Describe(weight);
  if (!view.ok()) return view.status();
  const auto row_bytes = static_cast<size_t>(RowBytes(view->dtype, view->stride));
  const size_t data_bytes = row_bytes * static_cast<size_t>(view->out);
  const size_t scales_at = (data_bytes + kAlignment - 1) / kAlignment * kAlignment;
  const size_t bytes = scales_at + ScaleBytes(*view);
  absl::StatusOr<Place> place = Allocate(bytes);
  if (!place.ok()) return place.status();
  view->data = place->data;
  if (IsQuantized(view->dtype)) view->scales = place->data + scales_at;

  absl::Status copied;
  if (view->dtype == DType::kI4) {
    copied = LoadInt4(weight, *view, place->data);
  } else {
    copied = copies_->RowsToDevice(place->data, row_bytes, weight.data,
                                   static_cast<size_t>(RowBytes(view->dtype, view->in)), view->out);
  }
  if (copied.ok() && view->dtype == DType::kI8) {
    copied = copies_->ToDevice(place->data + scales_at, weight.scales, ScaleBytes(*view));
  }
  if (copied.ok() && view->dtype == DType::kI4) {
    const int64_t groups = RoundUp(view->in, kInt4Group) / kInt4Group;
    copied = copies_->RowsToDevice(place->data + scales_at, view->stride / kInt4Group * 2,
                                   weight.scales, groups * 2, view->out);
  }
  if (!copied.ok()) return copied;
  return std::make_unique<CudaWeight>(*view, bytes, place->chunk);
}

absl::Status WeightLoader::LoadInt4(const HostTensor& weight, const WeightView& view,
                                    std::byte* data) {
  constexpr int64_t kPieceBytes = int64_t{8} << 20;
  const int64_t row_bytes = view.stride / 2;
  const int64_t file_row_bytes = RowBytes(DType::kI4, view.in);
  const int64_t rows_a_piece = std::clamp<int64_t>(kPieceBytes / row_bytes, 1, view.out);
  if (absl::Status s = raw_.Reserve(rows_a_piece * row_bytes); !s.ok()) return s;
  const auto* from = static_cast<const std::byte*>(weight.data);
  for (int64_t first = 0; first < view.out; first += rows_a_piece) {
    const int64_t rows = std::min(rows_a_piece, view.out - first);
    if (absl::Status s = copies_->RowsToDevice(raw_.data(), row_bytes,
                                               from + first * file_row_bytes, file_row_bytes, rows);
        !s.ok()) {
      return s;
    }
    if (absl::Status s =
            device_->Check(LaunchArrangeInt4(raw_.data(), view.in, view.stride, rows,
                                             data + first * row_bytes, device_->stream()),
                           "int4 arrangement");
        !s.ok()) {
      return s;
    }
  }
  // Products read weights ahead of the kernel before them (launch.cuh), which must not be this one.
  return device_->Synchronize();
}

}  // namespace osdn::kernels::cuda
