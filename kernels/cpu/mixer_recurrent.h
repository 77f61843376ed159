// The mixer token by token: decode, and pieces too short for the chunk form.
#ifndef OSDN_KERNELS_CPU_MIXER_RECURRENT_H_
#define OSDN_KERNELS_CPU_MIXER_RECURRENT_H_

#include "kernels/cpu/mixer_head.h"

namespace osdn::kernels::cpu {

// Advances S and d of `head` by its tokens (at most kChunk) and writes their outputs. S is read and
// written once for all of them.
void MixRecurrent(const MixerHead& head, const PreconditionerParams& params,
                  const MixerScratch& scratch);

}  // namespace osdn::kernels::cpu

#endif  // OSDN_KERNELS_CPU_MIXER_RECURRENT_H_
