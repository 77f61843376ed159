// What the loop needs of a model and its state: slots and forward passes.
#ifndef OSDN_ENGINE_STEP_EXECUTOR_H_
#define OSDN_ENGINE_STEP_EXECUTOR_H_

#include <cstddef>
#include <cstdint>
#include <optional>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/include/tensor.h"

namespace osdn {

// Used by the loop's thread only. An interface, so that the loop can be tested without a network.
class StepExecutor {
 public:
  virtual ~StepExecutor() = default;

  virtual int64_t vocab_size() const = 0;
  // A slot in its initial state, or nullopt when all are taken.
  virtual absl::StatusOr<std::optional<int32_t>> AcquireSlot() = 0;
  // Wipes the slot and gives it back. On an error the slot must not be used again.
  virtual absl::Status ReleaseSlot(int32_t slot) = 0;
  virtual int64_t slots_used() const = 0;
  // What a slot holds, as host bytes: always slot_bytes() of them.
  virtual size_t slot_bytes() const = 0;
  virtual absl::Status SaveSlot(int32_t slot, absl::Span<std::byte> out) = 0;
  virtual absl::Status RestoreSlot(int32_t slot, absl::Span<const std::byte> in) = 0;
  // Makes `to` an exact copy of `from`; both are acquired.
  virtual absl::Status CopySlot(int32_t from, int32_t to) = 0;
  // As Model::Forward.
  virtual absl::Status Forward(const kernels::BatchView& batch, absl::Span<const int32_t> tokens,
                               absl::Span<const int64_t> logit_rows, absl::Span<float> logits) = 0;
  // As Backend's: the loop's own work on rows.
  virtual int host_threads() const { return 1; }
  virtual void RunOnHost(int64_t tasks, absl::FunctionRef<void(int64_t index, int thread)> task) {
    for (int64_t i = 0; i < tasks; ++i) task(i, 0);
  }
};

}  // namespace osdn

#endif  // OSDN_ENGINE_STEP_EXECUTOR_H_
