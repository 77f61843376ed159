#include "tools/model_runner.h"

#include <algorithm>

namespace osdn::tools {

int64_t SensibleStep(int64_t vocab_size) {
  constexpr int64_t kMaxRows = 512;
  constexpr int64_t kMaxLogits = int64_t{8} << 20;
  const int64_t rows = std::min(kMaxRows, kMaxLogits / vocab_size);
  return std::max(rows / kernels::kChunk, int64_t{1}) * kernels::kChunk;
}

absl::StatusOr<std::unique_ptr<ModelRunner>> ModelRunner::Load(const Options& options) {
  absl::StatusOr<ModelConfig> config = LoadModelConfig(options.model_dir);
  if (!config.ok()) return config.status();
  std::unique_ptr<ModelRunner> runner(new ModelRunner(*std::move(config)));
  const ArchitectureConfig& arch = runner->config_.arch;

  absl::StatusOr<kernels::BackendChoice> backend = kernels::CreateBackend(options.backend);
  if (!backend.ok()) return backend.status();
  runner->backend_ = std::make_unique<TimedBackend>(std::move(backend->backend));
  kernels::Backend* const device = runner->backend_.get();

  absl::StatusOr<Weights> weights = Weights::Load(options.model_dir, runner->config_,
                                                  {.verify_checksums = options.verify_checksums});
  if (!weights.ok()) return weights.status();
  runner->weights_ = *std::move(weights);

  absl::StatusOr<std::unique_ptr<Model>> model =
      Model::Create(arch, *runner->weights_, device, options.model);
  if (!model.ok()) return model.status();
  runner->model_ = *std::move(model);

  absl::StatusOr<StatePool> pool = StatePool::Create(device, StateLayout(arch), options.slots);
  if (!pool.ok()) return pool.status();
  runner->pool_ = *std::move(pool);
  for (int32_t i = 0; i < options.slots; ++i) {
    absl::StatusOr<std::optional<int32_t>> slot = runner->pool_->Acquire();
    if (!slot.ok()) return slot.status();
  }
  return runner;
}

absl::Status ModelRunner::Forward(absl::Span<const int32_t> tokens, int64_t position, int32_t slot,
                                  absl::Span<const int64_t> logit_rows, absl::Span<float> logits) {
  const auto rows = static_cast<int64_t>(tokens.size());
  spans_.assign({{.row = 0, .length = rows, .position = position, .slot = slot}});
  kernels::BatchView batch;
  batch.rows = rows;
  batch.decode_rows = rows == 1 ? 1 : 0;
  batch.spans = spans_;
  return model_->Forward(batch, tokens, logit_rows, *pool_, logits);
}

absl::Status ModelRunner::Decode(absl::Span<const int32_t> tokens, int64_t position,
                                 absl::Span<float> logits) {
  spans_.clear();
  rows_.clear();
  for (int32_t i = 0; i < static_cast<int32_t>(tokens.size()); ++i) {
    spans_.push_back({.row = i, .length = 1, .position = position, .slot = i});
    rows_.push_back(i);
  }
  kernels::BatchView batch;
  batch.rows = static_cast<int64_t>(tokens.size());
  batch.decode_rows = batch.rows;
  batch.spans = spans_;
  return model_->Forward(batch, tokens, rows_, *pool_, logits);
}

// The pool hands out fresh slots only: give this one back and take it again. It is the only free
// one, since all slots are in use.
absl::Status ModelRunner::Reset(int32_t slot) {
  if (absl::Status status = pool_->Release(slot); !status.ok()) return status;
  return pool_->Acquire().status();
}

}  // namespace osdn::tools
