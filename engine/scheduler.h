// What the next step does: a pure function of queue, running set and limits. No threads, no clock
// of its own, no model; engine/engine_loop.cc carries the plan out.
#ifndef OSDN_ENGINE_SCHEDULER_H_
#define OSDN_ENGINE_SCHEDULER_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace osdn {

struct SchedulerLimits {
  int64_t max_slots = 32;            // sequences with a slot
  int64_t max_step_tokens = 512;     // rows of one forward pass; >= max_slots + kChunk
  int64_t max_prefill_tokens = 256;  // of them, prompt tokens while anyone is decoding: what a
                                     // decoding sequence waits for at most; at least kChunk is used
};

struct WaitingPrompt {
  uint64_t id = 0;
  int64_t prompt_tokens = 0;
};

struct RunningSequence {
  uint64_t id = 0;
  int64_t position = 0;          // tokens already in the state
  int64_t prompt_remaining = 0;  // > 0: prefilling; 0: decoding
  bool stalled = false;          // its reader is slow: takes no part in this step
};

struct PrefillStep {
  uint64_t id = 0;
  int64_t tokens = 0;
};

struct StepPlan {
  std::vector<uint64_t> admit;       // first come first served, in this order, before the step
  std::vector<uint64_t> decode;      // one token each
  std::vector<PrefillStep> prefill;  // prompt pieces; includes every admitted sequence
  bool empty() const { return admit.empty() && decode.empty() && prefill.empty(); }
};

// Every runnable decode gets its token; what is left of the budget goes to prompts in arrival order
// (running before waiting; both spans are in arrival order). A piece ends at the prompt's end or at
// a multiple of kernels::kChunk in absolute position, so how a prompt is cut never depends on what
// else runs beyond whole chunks. What no longer holds a chunk of an earlier prompt may serve a
// later, short one; waiting prompts are never overtaken by waiting prompts. Always makes progress:
// if nobody decodes, at least one chunk of one runnable prompt is planned.
StepPlan PlanStep(absl::Span<const RunningSequence> running,
                  absl::Span<const WaitingPrompt> waiting, const SchedulerLimits& limits);

}  // namespace osdn

#endif  // OSDN_ENGINE_SCHEDULER_H_
