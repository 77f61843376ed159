// EngineLoop's part about requests of several choices.
#include <algorithm>
#include <utility>

#include "engine/engine_loop.h"

namespace osdn {

bool EngineLoop::MayFork(const Sequence& sequence) const {
  return sequence.choices() == 1 ||
         static_cast<int64_t>(swapped_.size()) < limits_.max_slots + options_.max_swapped;
}

bool EngineLoop::HasSpareSlot(const Sequence& stem) const {
  const auto held =
      static_cast<int64_t>(running_.size()) + (FindRunning(stem.id()) == nullptr ? 1 : 0);
  const auto wanted = static_cast<int64_t>(waiting_.size()) +
                      std::count_if(swapped_.begin(), swapped_.end(),
                                    [](const auto& sequence) { return !sequence->stalled(); });
  return held + wanted < limits_.max_slots;
}

void EngineLoop::StartForks(const Sequence& stem, std::vector<std::unique_ptr<Sequence>> forks,
                            absl::Span<float> logits) {
  std::shared_ptr<const StateImage> image;
  for (std::unique_ptr<Sequence>& fork : forks) {
    shares_.Arrive(fork->scheduling().client);
    const absl::StatusOr<std::optional<Ending>> started =
        StartFork(stem, fork.get(), &image, logits);
    if (!started.ok()) {
      Fail(std::move(fork), started.status());
    } else if (started->has_value()) {
      End(std::move(fork), **started);
    } else if (fork->swapped()) {
      swapped_.push_back(std::move(fork));
    } else {
      AddRunning(std::move(fork));
    }
  }
  PublishRunning();
}

absl::StatusOr<std::optional<Ending>> EngineLoop::StartFork(
    const Sequence& stem, Sequence* fork, std::shared_ptr<const StateImage>* image,
    absl::Span<float> logits) {
  const auto park = [&]() -> absl::Status {
    if (*image == nullptr) {
      auto saved = std::make_shared<StateImage>(slots_.bytes());
      if (absl::Status s = slots_.Save(stem.slot_ref(), saved->mutable_state()); !s.ok()) return s;
      *image = std::move(saved);
    }
    fork->SwapOut(*image);
    return absl::OkStatus();
  };
  // Where it ends with its first token, that is the state it leaves.
  if (fork->wants_state()) {
    if (absl::Status s = park(); !s.ok()) return s;
  }
  // What is done after one token needs no slot.
  if (std::optional<Ending> ending = TakeLogits(fork, logits)) return ending;
  if (HasSpareSlot(stem)) {
    const absl::StatusOr<int32_t> slot = slots_.Acquire(fork->id());
    if (!slot.ok()) return slot.status();
    fork->SwapIn(*slot);
    if (absl::Status s = slots_.Copy(stem.slot_ref(), fork->slot_ref()); !s.ok()) return s;
    return std::nullopt;
  }
  if (!fork->swapped()) {
    if (absl::Status s = park(); !s.ok()) return s;
  }
  return std::nullopt;
}

}  // namespace osdn
