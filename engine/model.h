// The network: one forward pass over a packed batch of prefill spans and decode tokens.
#ifndef OSDN_ENGINE_MODEL_H_
#define OSDN_ENGINE_MODEL_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/model_config.h"
#include "engine/state.h"
#include "engine/weights.h"
#include "kernels/backend.h"

namespace osdn {

// Weights prepared for one backend plus scratch sized once. Used by one thread. The state it advances
// is the caller's. `backend` and `weights` must outlive the model.
class Model {
 public:
  struct Options {
    int64_t max_rows = 512;       // most tokens in one Forward
    int64_t max_logit_rows = 64;  // most rows of logits in one Forward
  };

  static absl::StatusOr<std::unique_ptr<Model>> Create(const ArchitectureConfig& arch,
                                                       const Weights& weights,
                                                       kernels::Backend* backend,
                                                       const Options& options);

  // Runs `tokens` (host, [batch.rows], ids already checked) through the network, advancing the state of
  // every span's slot, and writes the logits of the packed rows `logit_rows` to `logits` (host,
  // [logit_rows.size(), vocab], float32). Rows without a logits request skip lm_head.
  absl::Status Forward(const kernels::BatchView& batch, absl::Span<const int32_t> tokens,
                       absl::Span<const int64_t> logit_rows, const StatePool& pool,
                       absl::Span<float> logits);

  const ArchitectureConfig& arch() const { return arch_; }
  const Options& options() const { return options_; }
  // Bytes of repacked weights and scratch, beside the file mapping.
  size_t extra_bytes() const;

 private:
  struct LayerWeights;
  struct Scratch;

  Model(const ArchitectureConfig& arch, kernels::Backend* backend, const Options& options);
  absl::Status Prepare(const Weights& weights);
  absl::Status Attention(const kernels::BatchView& batch, const LayerWeights& layer,
                         const StateLayout::Layer& state, const StatePool& pool);
  absl::Status Mlp(const kernels::BatchView& batch, const LayerWeights& layer);

  ArchitectureConfig arch_;
  kernels::Backend* backend_;
  Options options_;
  std::vector<LayerWeights> layers_;
  std::unique_ptr<kernels::LinearWeight> embeddings_;
  std::unique_ptr<kernels::LinearWeight> lm_head_;  // null when tied
  kernels::Buffer final_norm_;
  std::unique_ptr<Scratch> scratch_;

 public:
  ~Model();
};

}  // namespace osdn

#endif  // OSDN_ENGINE_MODEL_H_
