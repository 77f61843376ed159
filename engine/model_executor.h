// The loop's executor on a real model: backend, weights, network and slots of one model directory.
#ifndef OSDN_ENGINE_MODEL_EXECUTOR_H_
#define OSDN_ENGINE_MODEL_EXECUTOR_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/model.h"
#include "engine/state.h"
#include "engine/step_executor.h"
#include "engine/weights.h"
#include "kernels/backend.h"

namespace osdn {

class ModelExecutor final : public StepExecutor {
 public:
  // `arch` is that of `weights`. `options` are the model's. Errors: Model::Create's and
  // StatePool::Create's.
  static absl::StatusOr<std::unique_ptr<ModelExecutor>> Create(
      const ArchitectureConfig& arch, Weights weights, std::unique_ptr<kernels::Backend> backend,
      const Model::Options& options, int32_t slots);

  int64_t vocab_size() const override { return model_->arch().vocab_size; }
  absl::StatusOr<std::optional<int32_t>> AcquireSlot() override { return pool_->Acquire(); }
  absl::Status ReleaseSlot(int32_t slot) override { return pool_->Release(slot); }
  int64_t slots_used() const override { return pool_->used(); }
  size_t slot_bytes() const override { return pool_->layout().slot_bytes(); }
  absl::Status SaveSlot(int32_t slot, absl::Span<std::byte> out) override {
    return pool_->Save(slot, out);
  }
  absl::Status RestoreSlot(int32_t slot, absl::Span<const std::byte> in) override {
    return pool_->Restore(slot, in);
  }
  absl::Status CopySlot(int32_t from, int32_t to) override { return pool_->Copy(from, to); }
  absl::Status Forward(const kernels::BatchView& batch, absl::Span<const int32_t> tokens,
                       absl::Span<const int64_t> logit_rows, absl::Span<float> logits) override {
    return model_->Forward(batch, tokens, logit_rows, *pool_, logits);
  }
  int host_threads() const override { return backend_->host_threads(); }
  void RunOnHost(int64_t tasks, absl::FunctionRef<void(int64_t index, int thread)> task) override {
    backend_->RunOnHost(tasks, task);
  }

  const kernels::Backend& backend() const { return *backend_; }
  const Model& model() const { return *model_; }
  const StatePool& pool() const { return *pool_; }

 private:
  ModelExecutor(Weights weights, std::unique_ptr<kernels::Backend> backend)
      : backend_(std::move(backend)), weights_(std::move(weights)) {}

  // In order of dependence: each outlives what is below it.
  std::unique_ptr<kernels::Backend> backend_;
  Weights weights_;
  std::unique_ptr<Model> model_;
  std::optional<StatePool> pool_;
};

}  // namespace osdn

#endif  // OSDN_ENGINE_MODEL_EXECUTOR_H_
