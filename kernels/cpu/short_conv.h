// Depthwise causal convolution with its activation.
#ifndef OSDN_KERNELS_CPU_SHORT_CONV_H_
#define OSDN_KERNELS_CPU_SHORT_CONV_H_

#include <cstdint>

#include "kernels/cpu/memory.h"
#include "kernels/cpu/threads.h"
#include "kernels/include/short_conv.h"

namespace osdn::kernels::cpu {

// Tasks are blocks of channels by groups of spans. Output bits depend on the span alone.
absl::Status ShortConv(const ShortConvArgs& args, const Threads& threads, ThreadScratch& scratch);

}  // namespace osdn::kernels::cpu

#endif  // OSDN_KERNELS_CPU_SHORT_CONV_H_
