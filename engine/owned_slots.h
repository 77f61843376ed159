// Slots with names on them: which sequence each one belongs to, checked at every use.
//
// A sequence's state must never be read or written under another sequence's id. The loop keeps its
// books so that it is not; this is the second set of books that would notice if it were.
#ifndef OSDN_ENGINE_OWNED_SLOTS_H_
#define OSDN_ENGINE_OWNED_SLOTS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/step_executor.h"

namespace osdn {

// A slot as its owner knows it.
struct SlotRef {
  int32_t slot = -1;
  uint64_t owner = 0;  // a sequence's id; not 0
};

// The executor's slots. Used by the loop's thread only. A comparison a use.
//
// Quarantine. A slot whose books contradict each other, or that could not be wiped, is never given
// out again, and whoever else believes to have it finds out at its own next use: nothing that such
// a slot holds is trusted.
class OwnedSlots {
 public:
  // `executor` outlives it.
  explicit OwnedSlots(StepExecutor* executor) : executor_(executor) {}

  // A slot in its initial state, `owner`'s from now on. INTERNAL when there is none; the backend's
  // errors.
  absl::StatusOr<int32_t> Acquire(uint64_t owner);
  // Wipes the slot and gives it back. On an error it is quarantined; one that is already stays as
  // it is, and that is no new error.
  absl::Status Release(SlotRef ref);
  // INTERNAL, and the slot is quarantined, unless it is the owner's.
  absl::Status Check(SlotRef ref);

  // As the executor's, after Check.
  absl::Status Save(SlotRef ref, absl::Span<std::byte> out);
  absl::Status Restore(SlotRef ref, absl::Span<const std::byte> in);
  absl::Status Copy(SlotRef from, SlotRef to);
  size_t bytes() const { return executor_->slot_bytes(); }
  // Slots given out, with the quarantined ones.
  int64_t used() const { return executor_->slots_used(); }
  int64_t quarantined() const { return quarantined_; }

 private:
  static constexpr uint64_t kFree = 0;
  static constexpr uint64_t kQuarantined = UINT64_MAX;

  uint64_t& owner(int32_t slot);
  void Quarantine(int32_t slot);

  StepExecutor* const executor_;
  std::vector<uint64_t> owners_;  // by slot; as many as were given out so far
  int64_t quarantined_ = 0;
};

}  // namespace osdn

#endif  // OSDN_ENGINE_OWNED_SLOTS_H_
