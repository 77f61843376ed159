#include "engine/owned_slots.h"

#include <optional>

#include "absl/strings/str_cat.h"

namespace osdn {

uint64_t& OwnedSlots::owner(int32_t slot) {
  const auto index = static_cast<size_t>(slot);
  if (index >= owners_.size()) owners_.resize(index + 1, kFree);
  return owners_[index];
}

void OwnedSlots::Quarantine(int32_t slot) {
  uint64_t& tag = owner(slot);
  if (tag != kQuarantined) ++quarantined_;
  tag = kQuarantined;
}

absl::StatusOr<int32_t> OwnedSlots::Acquire(uint64_t new_owner) {
  while (true) {
    const absl::StatusOr<std::optional<int32_t>> slot = executor_->AcquireSlot();
    if (!slot.ok()) return slot.status();
    if (!slot->has_value()) return absl::InternalError("no free slot");
    uint64_t& tag = owner(**slot);
    if (tag == kQuarantined) continue;  // stays with the executor, taken for good
    if (tag != kFree) {
      const uint64_t other = tag;
      Quarantine(**slot);
      return absl::InternalError(
          absl::StrCat("slot ", **slot, " was given out while sequence ", other, " has it"));
    }
    tag = new_owner;
    return **slot;
  }
}

absl::Status OwnedSlots::Check(SlotRef ref) {
  if (ref.slot >= 0 && static_cast<size_t>(ref.slot) < owners_.size() &&
      owners_[static_cast<size_t>(ref.slot)] == ref.owner) {
    return absl::OkStatus();
  }
  if (ref.slot < 0) {
    return absl::InternalError(absl::StrCat("sequence ", ref.owner, " has no slot"));
  }
  const uint64_t tag = owner(ref.slot);
  Quarantine(ref.slot);
  return absl::InternalError(
      absl::StrCat("slot ", ref.slot, " is not sequence ", ref.owner, "'s but ",
                   tag == kFree          ? std::string("nobody's")
                   : tag == kQuarantined ? std::string("quarantined")
                                         : absl::StrCat("sequence ", tag, "'s"),
                   ": it is taken out of use"));
}

absl::Status OwnedSlots::Release(SlotRef ref) {
  if (ref.slot >= 0 && owner(ref.slot) == kQuarantined) return absl::OkStatus();
  if (absl::Status s = Check(ref); !s.ok()) return s;
  absl::Status released = executor_->ReleaseSlot(ref.slot);
  if (released.ok()) {
    owner(ref.slot) = kFree;
  } else {
    // What could not be wiped must not be met by the next one.
    Quarantine(ref.slot);
  }
  return released;
}

absl::Status OwnedSlots::Save(SlotRef ref, absl::Span<std::byte> out) {
  if (absl::Status s = Check(ref); !s.ok()) return s;
  return executor_->SaveSlot(ref.slot, out);
}

absl::Status OwnedSlots::Restore(SlotRef ref, absl::Span<const std::byte> in) {
  if (absl::Status s = Check(ref); !s.ok()) return s;
  return executor_->RestoreSlot(ref.slot, in);
}

absl::Status OwnedSlots::Copy(SlotRef from, SlotRef to) {
  if (absl::Status s = Check(from); !s.ok()) return s;
  if (absl::Status s = Check(to); !s.ok()) return s;
  return executor_->CopySlot(from.slot, to.slot);
}

}  // namespace osdn
