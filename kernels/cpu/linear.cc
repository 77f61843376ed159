#include "kernels/cpu/linear.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_format.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/linear_skinny.h"
#include "kernels/cpu/pieces.h"

namespace osdn::kernels::cpu {
namespace {

// Outputs of one thread start at a multiple of this, to share no line of y.
constexpr int64_t kOutGrain = 16;

const CpuLinearWeight& Weight(const LinearJob& job) {
  return static_cast<const CpuLinearWeight&>(*job.weight);
}

}  // namespace

absl::StatusOr<std::unique_ptr<LinearWeight>> LinearOp::Prepare(const HostTensor& weight) {
  if (weight.shape.size() != 2 || weight.shape[0] < 1 || weight.shape[1] < 1) {
    return absl::InvalidArgumentError(
        absl::StrFormat("linear weight: %d dimensions and %d elements, wants a non-empty [out,in]",
                        weight.shape.size(), weight.elements()));
  }
  absl::StatusOr<std::unique_ptr<PackedWeight>> packed = gemm_->Pack(weight);
  if (!packed.ok()) return packed.status();
  return std::make_unique<CpuLinearWeight>(weight, *std::move(packed));
}

absl::Status LinearOp::Run(const LinearArgs& args) {
  if (args.jobs.empty()) return absl::OkStatus();
  Cut(args.batch);
  if (!skinny_rows_.empty()) RunSkinny(args);
  return tiles_.empty() ? absl::OkStatus() : RunTiles(args);
}

void LinearOp::Cut(const BatchView& batch) {
  skinny_rows_.clear();
  tiles_.clear();
  int64_t scratch_row = 0;
  for (const SequenceSpan& span : batch.spans) {
    ForEachPiece(span, [&](const Piece& piece) {
      const int64_t row = span.row + piece.offset;
      if (piece.length < kMinTileRows) {
        for (int64_t i = 0; i < piece.length; ++i) skinny_rows_.push_back(row + i);
        return;
      }
      const int64_t padded = RoundUp(piece.length, kTileRowStep);
      tiles_.push_back({row, piece.length, padded, scratch_row});
      scratch_row += padded;
    });
  }
}

// One parallel region for all jobs: their outputs, end to end, are shared out equally.
void LinearOp::RunSkinny(const LinearArgs& args) const {
  int64_t outputs = 0;
  for (const LinearJob& job : args.jobs) outputs += job.weight->out_features();
  const int64_t in = args.jobs[0].weight->in_features();
  const int64_t work = 2 * outputs * in * static_cast<int64_t>(skinny_rows_.size());
  threads_.ForShares(outputs, kOutGrain, work, [&](int64_t begin, int64_t end) {
    int64_t first = 0;  // of this job's outputs, in the whole
    for (const LinearJob& job : args.jobs) {
      const int64_t out = job.weight->out_features();
      const int64_t from = std::max(begin, first) - first;
      const int64_t to = std::min(end, first + out) - first;
      first += out;
      if (from >= to) continue;
      MultiplySkinny({.weight = Weight(job).data(),
                      .dtype = job.weight->dtype(),
                      .out_features = out,
                      .in_features = in,
                      .rows = skinny_rows_,
                      .x = args.x,
                      .y = job.y,
                      .accumulate = job.accumulate},
                     from, to);
    }
  });
}

// Jobs of one group may differ in type; each type's copy of x is made once.
absl::Status LinearOp::RunTiles(const LinearArgs& args) {
  for (const DType type : {DType::kF32, DType::kBF16}) {
    const auto has_type = [type](const LinearJob& job) {
      return Weight(job).packed().type() == type;
    };
    if (std::none_of(args.jobs.begin(), args.jobs.end(), has_type)) continue;
    if (absl::Status status = ConvertTiles(args, type); !status.ok()) return status;
    for (const LinearJob& job : args.jobs) {
      if (!has_type(job)) continue;
      for (const Tile& tile : tiles_) {
        if (absl::Status status = RunTile(job, tile); !status.ok()) return status;
      }
    }
  }
  return absl::OkStatus();
}

absl::Status LinearOp::ConvertTiles(const LinearArgs& args, DType type) {
  const int64_t in = args.jobs[0].weight->in_features();
  const Tile& last = tiles_.back();
  const int64_t rows = last.scratch_row + last.padded;
  const size_t row_bytes = RowBytes(type, in);
  if (absl::Status status = converted_.Reserve(rows * row_bytes); !status.ok()) return status;
  threads_.For(static_cast<int64_t>(tiles_.size()), rows * in, [&](int64_t index, int) {
    const Tile& tile = tiles_[index];
    const float* x = args.x + tile.row * in;
    char* target = converted_.As<char>() + tile.scratch_row * row_bytes;
    if (type == DType::kBF16) {
      RoundToBf16(x, tile.rows * in, reinterpret_cast<uint16_t*>(target));
    } else {
      std::memcpy(target, x, tile.rows * row_bytes);
    }
    std::memset(target + tile.rows * row_bytes, 0, (tile.padded - tile.rows) * row_bytes);
  });
  return absl::OkStatus();
}

absl::Status LinearOp::RunTile(const LinearJob& job, const Tile& tile) {
  const PackedWeight& weight = Weight(job).packed();
  const int64_t out = weight.out_features();
  const size_t row_bytes = RowBytes(weight.type(), weight.in_features());
  const char* x = converted_.As<char>() + tile.scratch_row * row_bytes;
  float* y = job.y + tile.row * out;
  if (tile.rows == tile.padded) return gemm_->Multiply(weight, tile.padded, x, y, job.accumulate);

  if (absl::Status status = padded_out_.Reserve(tile.padded * out * sizeof(float)); !status.ok()) {
    return status;
  }
  float* padded = padded_out_.As<float>();
  if (absl::Status status = gemm_->Multiply(weight, tile.padded, x, padded, false); !status.ok()) {
    return status;
  }
  if (job.accumulate) {
    AddTo(padded, tile.rows * out, y);
  } else {
    std::memcpy(y, padded, tile.rows * out * sizeof(float));
  }
  return absl::OkStatus();
}

void LinearOp::Embed(const CpuLinearWeight& table, const EmbeddingArgs& args) const {
  const int64_t dim = table.in_features();
  const auto rows = static_cast<int64_t>(args.ids.size());
  const size_t row_bytes = RowBytes(table.dtype(), dim);
  threads_.For(rows, rows * dim, [&](int64_t row, int) {
    const char* source = static_cast<const char*>(table.data()) + args.ids[row] * row_bytes;
    float* y = args.y + row * dim;
    if (table.dtype() == DType::kBF16) {
      WidenBf16(reinterpret_cast<const uint16_t*>(source), dim, y);
    } else {
      std::memcpy(y, source, row_bytes);
    }
  });
}

}  // namespace osdn::kernels::cpu
