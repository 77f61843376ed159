#include "engine/scheduler.h"

#include <algorithm>

#include "kernels/include/tensor.h"

namespace osdn {
namespace {

// Tokens of the next piece of a prompt that fit `budget`: all that remain, or up to the last chunk
// border within reach; 0 when not even one border is.
int64_t PieceTokens(int64_t position, int64_t remaining, int64_t budget) {
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

}  // namespace

StepPlan PlanStep(absl::Span<const RunningSequence> running,
                  absl::Span<const WaitingPrompt> waiting, const SchedulerLimits& limits) {
  StepPlan plan;
  for (const RunningSequence& sequence : running) {
    if (!sequence.stalled && sequence.prompt_remaining == 0) plan.decode.push_back(sequence.id);
  }
  int64_t budget = PrefillBudget(static_cast<int64_t>(plan.decode.size()), limits);

  for (const RunningSequence& sequence : running) {
    if (sequence.stalled || sequence.prompt_remaining == 0) continue;
    const int64_t tokens = PieceTokens(sequence.position, sequence.prompt_remaining, budget);
    if (tokens == 0) continue;
    plan.prefill.push_back({sequence.id, tokens});
    budget -= tokens;
  }

  int64_t free_slots = limits.max_slots - static_cast<int64_t>(running.size());
  for (const WaitingPrompt& prompt : waiting) {
    if (free_slots <= 0) break;
    const int64_t tokens = PieceTokens(0, prompt.prompt_tokens, budget);
    if (tokens == 0) break;
    plan.admit.push_back(prompt.id);
    plan.prefill.push_back({prompt.id, tokens});
    budget -= tokens;
    --free_slots;
  }
  return plan;
}

}  // namespace osdn
