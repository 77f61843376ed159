// A model directory ready to run on a backend, below the engine: what score, eval and bench share.
#ifndef OSDN_TOOLS_MODEL_RUNNER_H_
#define OSDN_TOOLS_MODEL_RUNNER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/model.h"
#include "engine/model_config.h"
#include "engine/state.h"
#include "engine/weights.h"
#include "kernels/backend.h"
#include "tools/timed_backend.h"

namespace osdn::tools {

// Tokens of one forward call when all of their logits are wanted: whole chunks, and at most 32 MiB
// of logits.
int64_t SensibleStep(int64_t vocab_size);

// Used by one thread.
class ModelRunner {
 public:
  struct Options {
    std::string model_dir;
    kernels::BackendOptions backend;
    Model::Options model;
    int32_t slots = 1;  // all in use from the start
    bool verify_checksums = true;
  };

  // Errors of LoadModelConfig, CreateBackend, Weights::Load, Model::Create and StatePool::Create.
  static absl::StatusOr<std::unique_ptr<ModelRunner>> Load(const Options& options);

  // Runs `tokens`, which follow `position` tokens that the slot has seen, and writes the logits of
  // rows `logit_rows` (of these tokens).
  absl::Status Forward(absl::Span<const int32_t> tokens, int64_t position, int32_t slot,
                       absl::Span<const int64_t> logit_rows, absl::Span<float> logits);
  // One token for each of the slots 0, 1, ... tokens.size() - 1, all at `position`; logits of all.
  absl::Status Decode(absl::Span<const int32_t> tokens, int64_t position, absl::Span<float> logits);
  // Slot `slot` as it was at the start.
  absl::Status Reset(int32_t slot);

  const ModelConfig& config() const { return config_; }
  const Weights& weights() const { return *weights_; }
  const Model& model() const { return *model_; }
  const StatePool& pool() const { return *pool_; }
  TimedBackend& backend() { return *backend_; }

 private:
  explicit ModelRunner(ModelConfig config) : config_(std::move(config)) {}

  // In order of dependence: each outlives what is below it.
  ModelConfig config_;
  std::unique_ptr<TimedBackend> backend_;
  std::optional<Weights> weights_;
  std::unique_ptr<Model> model_;
  std::optional<StatePool> pool_;
  std::vector<kernels::SequenceSpan> spans_;
  std::vector<int64_t> rows_;
};

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_MODEL_RUNNER_H_
