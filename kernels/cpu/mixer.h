// The mixer over a batch: every head of every span is a task.
#ifndef OSDN_KERNELS_CPU_MIXER_H_
#define OSDN_KERNELS_CPU_MIXER_H_

#include "absl/status/status.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/mixer_head.h"
#include "kernels/cpu/threads.h"

namespace osdn::kernels::cpu {

// Pieces of a span (pieces.h) shorter than this run token by token: below it the chunk form's
// transposed copies of S cost more than they save.
inline constexpr int64_t kMinChunkTokens = 16;

// Allocates only when scratch has not seen these head sizes.
absl::Status Mix(const MixerArgs& args, Phase1Form form, const Threads& threads,
                 ThreadScratch& scratch);

}  // namespace osdn::kernels::cpu

#endif  // OSDN_KERNELS_CPU_MIXER_H_
