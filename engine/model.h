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

// Weights prepared for one backend plus scratch sized once. Used by one thread. The state it
// advances is the caller's. `backend` and `weights` must outlive the model.
class Model {
 public:
  struct Options {
    int64_t max_rows = 512;       // most tokens in one Forward
    int64_t max_logit_rows = 64;  // most rows of logits in one Forward
  };

  // INVALID_ARGUMENT for an architecture or limits that cannot be served, or weights of another
  // architecture; the backend's errors, naming the tensor.
  static absl::StatusOr<std::unique_ptr<Model>> Create(const ArchitectureConfig& arch,
                                                       const Weights& weights,
                                                       kernels::Backend* backend,
                                                       const Options& options);
  ~Model();

  // Runs `tokens` (host, [batch.rows], ids already checked) through the network, advancing the
  // state of every span's slot, and writes the logits of the packed rows `logit_rows` to `logits`
  // (host, [logit_rows.size(), vocab], float32). Rows without a logits request skip lm_head.
  // Returns when the logits are there; without logit rows the device may still be at work.
  // Allocates nothing itself. INVALID_ARGUMENT, with nothing run, for a batch, ids or sizes that
  // contradict each other or the model; the backend's errors otherwise, with the slots of the batch
  // in an undefined state.
  absl::Status Forward(const kernels::BatchView& batch, absl::Span<const int32_t> tokens,
                       absl::Span<const int64_t> logit_rows, const StatePool& pool,
                       absl::Span<float> logits);

  const ArchitectureConfig& arch() const { return arch_; }
  const Options& options() const { return options_; }
  // Bytes of repacked weights and scratch, beside the file mapping.
  size_t extra_bytes() const { return extra_bytes_; }

 private:
  struct LayerWeights;
  struct Scratch;
  class Loader;

  Model(const ArchitectureConfig& arch, kernels::Backend* backend, const Options& options);
  absl::Status Prepare(const Weights& weights);
  absl::Status AllocateScratch();
  absl::Status CheckForward(const kernels::BatchView& batch, absl::Span<const int32_t> tokens,
                            absl::Span<const int64_t> logit_rows, const StatePool& pool,
                            absl::Span<const float> logits) const;
  absl::Status RunBlocks(const kernels::BatchView& batch, const kernels::StepInputs& step,
                         const StatePool& pool);
  absl::Status Logits(absl::Span<const int64_t> logit_rows);

  ArchitectureConfig arch_;
  kernels::Backend* backend_;
  Options options_;
  int64_t slot_floats_;  // of the state this model works on
  std::vector<LayerWeights> layers_;
  std::unique_ptr<kernels::LinearWeight> embeddings_;
  std::unique_ptr<kernels::LinearWeight> lm_head_;  // null when tied
  kernels::Buffer final_norm_;
  std::unique_ptr<kernels::LayerRunner> runner_;
  std::unique_ptr<Scratch> scratch_;
  size_t extra_bytes_ = 0;
};

}  // namespace osdn

#endif  // OSDN_ENGINE_MODEL_H_
