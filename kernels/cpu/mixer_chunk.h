// The mixer in the two-phase chunk form: prefill.
#ifndef OSDN_KERNELS_CPU_MIXER_CHUNK_H_
#define OSDN_KERNELS_CPU_MIXER_CHUNK_H_

#include "kernels/cpu/mixer_head.h"

namespace osdn::kernels::cpu {

// S of the head into scratch.state and back, around a run of MixChunk calls.
void LoadState(const MixerHead& head, const MixerScratch& scratch);
void StoreState(const MixerHead& head, const MixerScratch& scratch);

// Advances scratch.state and the head's d by its tokens (at most kChunk) and writes their outputs.
void MixChunk(const MixerHead& head, const PreconditionerParams& params, Phase1Form form,
              const MixerScratch& scratch);

}  // namespace osdn::kernels::cpu

#endif  // OSDN_KERNELS_CPU_MIXER_CHUNK_H_
