// Linear layers: chooses, by a row's span alone, between the skinny kernel and oneDNN tiles.
#ifndef OSDN_KERNELS_CPU_LINEAR_H_
#define OSDN_KERNELS_CPU_LINEAR_H_

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cpu/linear_gemm.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/threads.h"
#include "kernels/include/embedding.h"
#include "kernels/include/linear.h"

namespace osdn::kernels::cpu {

// The plain tensor, for decode and embedding, beside oneDNN's copy for prefill.
class CpuLinearWeight : public LinearWeight {
 public:
  CpuLinearWeight(const HostTensor& plain, std::unique_ptr<PackedWeight> packed)
      : LinearWeight(plain.shape[0], plain.shape[1], plain.dtype),
        data_(plain.data),
        packed_(std::move(packed)) {}

  size_t extra_bytes() const override { return packed_->bytes(); }
  const void* data() const { return data_; }
  const PackedWeight& packed() const { return *packed_; }

 private:
  const void* data_;
  std::unique_ptr<PackedWeight> packed_;
};

// A span is cut at the multiples of kChunk in absolute position. A piece shorter than kMinTileRows
// (decode is one) goes through the skinny kernel; a longer one is a tile of its own, padded to a
// multiple of kTileRowStep rows. So what a row meets is fixed by its span's position and length.
class LinearOp {
 public:
  static constexpr int64_t kMinTileRows = 8;

  LinearOp(const Threads& threads, std::unique_ptr<Gemm> gemm)
      : threads_(threads), gemm_(std::move(gemm)) {}

  const Gemm& gemm() const { return *gemm_; }

  absl::StatusOr<std::unique_ptr<LinearWeight>> Prepare(const HostTensor& weight);
  absl::Status Run(const LinearArgs& args);
  void Embed(const CpuLinearWeight& table, const EmbeddingArgs& args) const;

 private:
  struct Tile {
    int64_t row = 0;          // first row in the batch
    int64_t rows = 0;         // of the piece
    int64_t padded = 0;       // rows multiplied
    int64_t scratch_row = 0;  // first row in converted_
  };

  void Cut(const BatchView& batch);
  void RunSkinny(const LinearArgs& args) const;
  absl::Status RunTiles(const LinearArgs& args);
  absl::Status ConvertTiles(const LinearArgs& args, DType type);
  absl::Status RunTile(const LinearJob& job, const Tile& tile);

  Threads threads_;
  std::unique_ptr<Gemm> gemm_;
  // Working memory of one Run, kept to be reused.
  std::vector<int64_t> skinny_rows_;
  std::vector<Tile> tiles_;
  Scratch converted_;   // x of every tile in the weights' type, padded with zero rows
  Scratch padded_out_;  // y of one padded tile
};

}  // namespace osdn::kernels::cpu

#endif  // OSDN_KERNELS_CPU_LINEAR_H_
