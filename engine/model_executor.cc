#include "engine/model_executor.h"

#include <utility>

namespace osdn {

absl::StatusOr<std::unique_ptr<ModelExecutor>> ModelExecutor::Create(
    const ArchitectureConfig& arch, Weights weights, std::unique_ptr<kernels::Backend> backend,
    const Model::Options& options, int32_t slots) {
  auto executor =
      std::unique_ptr<ModelExecutor>(new ModelExecutor(std::move(weights), std::move(backend)));
  auto model = Model::Create(arch, executor->weights_, executor->backend_.get(), options);
  if (!model.ok()) return model.status();
  executor->model_ = *std::move(model);
  auto pool = StatePool::Create(executor->backend_.get(), StateLayout(arch), slots);
  if (!pool.ok()) return pool.status();
  executor->pool_.emplace(*std::move(pool));
  return executor;
}

}  // namespace osdn
