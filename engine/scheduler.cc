#include "engine/scheduler.h"

#include <algorithm>
#include <limits>

#include "kernels/include/tensor.h"

namespace osdn {
namespace {

// Tokens of the next piece of a prompt that fit `budget`: all up to the next cut or the end, or up
// to the last chunk border within reach; 0 when not even one border is.
int64_t PieceTokens(int64_t position, int64_t remaining, int64_t next_cut, int64_t budget) {
  if (next_cut > position) remaining = std::min(remaining, next_cut - position);
  if (remaining <= budget) return remaining;
  const int64_t end = (position + budget) / kernels::kChunk * kernels::kChunk;
  return std::max<int64_t>(end - position, 0);
}

int64_t PrefillBudget(int64_t decoding, const SchedulerLimits& limits) {
  const int64_t room = limits.max_step_tokens - decoding;
  if (decoding == 0) return room;
  // Less than a chunk could starve a prompt for as long as anyone decodes.
  return std::min(room, std::max(limits.max_prefill_tokens, kernels::kChunk));
}

int64_t Count(const std::vector<uint64_t>& ids) { return static_cast<int64_t>(ids.size()); }

class Planner {
 public:
  Planner(absl::Span<const RunningSequence> running, absl::Span<const WaitingPrompt> waiting,
          const SchedulerLimits& limits)
      : running_(running), waiting_(waiting), limits_(limits) {}

  StepPlan Plan() {
    for (const RunningSequence& sequence : running_) {
      if (!sequence.stalled && sequence.prompt_remaining == 0) plan_.decode.push_back(sequence.id);
    }
    budget_ = PrefillBudget(static_cast<int64_t>(plan_.decode.size()), limits_);
    FreeSlots();

    std::vector<const RunningSequence*> prefilling;
    for (const RunningSequence& sequence : running_) {
      if (!sequence.stalled && sequence.prompt_remaining > 0) prefilling.push_back(&sequence);
    }
    std::stable_sort(prefilling.begin(), prefilling.end(),
                     [](const auto* a, const auto* b) { return a->priority < b->priority; });
    for (const RunningSequence* sequence : prefilling) {
      AdmitClassesBelow(sequence->priority);
      Give(sequence->id, PieceTokens(sequence->position, sequence->prompt_remaining,
                                     sequence->next_cut, budget_));
    }
    AdmitClassesBelow(std::numeric_limits<int64_t>::max());
    return std::move(plan_);
  }

 private:
  void FreeSlots() {
    free_slots_ = limits_.max_slots - static_cast<int64_t>(running_.size());
    const auto wanted = static_cast<int64_t>(waiting_.size());
    for (const RunningSequence& sequence : running_) {
      if (free_slots_ >= wanted || Count(plan_.swap_out) >= limits_.swap_room) return;
      if (!sequence.idle) continue;
      plan_.swap_out.push_back(sequence.id);
      ++free_slots_;
    }
  }

  bool Give(uint64_t id, int64_t tokens) {
    if (tokens == 0) return false;
    plan_.prefill.push_back({id, tokens});
    budget_ -= tokens;
    return true;
  }

  void AdmitClassesBelow(int64_t priority) {
    while (free_slots_ > 0 && !waiting_.empty() && waiting_.front().priority < priority) {
      const WaitingPrompt& prompt = waiting_.front();
      if (prompt.prompt_tokens > 0 &&
          !Give(prompt.id,
                PieceTokens(prompt.position, prompt.prompt_tokens, prompt.next_cut, budget_))) {
        waiting_ = {};  // whoever comes after it must not overtake it
        return;
      }
      plan_.admit.push_back(prompt.id);
      waiting_.remove_prefix(1);
      --free_slots_;
    }
  }

  const absl::Span<const RunningSequence> running_;
  absl::Span<const WaitingPrompt> waiting_;
  const SchedulerLimits& limits_;
  StepPlan plan_;
  int64_t budget_ = 0;
  int64_t free_slots_ = 0;
};

}  // namespace

StepPlan PlanStep(absl::Span<const RunningSequence> running,
                  absl::Span<const WaitingPrompt> waiting, const SchedulerLimits& limits) {
  return Planner(running, waiting, limits).Plan();
}

}  // namespace osdn
