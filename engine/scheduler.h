// What the next step does: pure functions of queue, running set, clock and limits. No threads, no
// clock of its own, no model; engine/engine_loop.cc carries the plan out.
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
  int64_t swap_room = 0;             // idle sequences that may give up their slots now
};

struct WaitingPrompt {
  uint64_t id = 0;
  int64_t prompt_tokens = 0;  // still to be read; 0: all it wants is a slot
  int64_t position = 0;       // tokens in the state it starts from
  int64_t next_cut = 0;       // as RunningSequence's
  int64_t priority = 0;       // as RunningSequence's
};

struct RunningSequence {
  uint64_t id = 0;
  int64_t position = 0;          // tokens already in the state
  int64_t prompt_remaining = 0;  // > 0: prefilling; 0: decoding
  int64_t next_cut = 0;  // a piece must not go beyond this position; 0: none. The prompt's end or a
                         // multiple of kernels::kChunk
  int64_t priority = 0;  // class: lower ones read their prompts first
  bool stalled = false;  // its reader is slow: takes no part in this step
  bool idle = false;     // stalled for so long that it gives up its slot if another waits
};

struct PrefillStep {
  uint64_t id = 0;
  int64_t tokens = 0;
};

struct StepPlan {
  std::vector<uint64_t> swap_out;    // idle sequences that leave their slots, before all else
  std::vector<uint64_t> admit;       // in this order, before the step
  std::vector<uint64_t> decode;      // one token each
  std::vector<PrefillStep> prefill;  // prompt pieces; of every admitted sequence that has a prompt
  bool empty() const { return admit.empty() && decode.empty() && prefill.empty(); }
};

// Every runnable decode gets its token; what is left of the budget goes to prompts: by class, in it
// running before waiting, and in the order of the spans (`running` in order of arrival, `waiting`
// in AdmissionOrder). A piece ends at the prompt's end, at a cut or at a multiple of
// kernels::kChunk in absolute position, so how a prompt is cut never depends on what else runs
// beyond whole chunks. What no longer holds a chunk of an earlier prompt may serve a later, short
// one; waiting prompts are never overtaken by waiting prompts. Idle sequences give up their slots
// to waiting ones only. Always makes progress: if nobody decodes, at least one chunk of one
// runnable prompt is planned.
StepPlan PlanStep(absl::Span<const RunningSequence> running,
                  absl::Span<const WaitingPrompt> waiting, const SchedulerLimits& limits);

}  // namespace osdn

#endif  // OSDN_ENGINE_SCHEDULER_H_
