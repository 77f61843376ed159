// Depthwise causal convolution in front of q, k and v (fla's ShortConvolution).
#ifndef OSDN_KERNELS_INCLUDE_SHORT_CONV_H_
#define OSDN_KERNELS_INCLUDE_SHORT_CONV_H_

#include "kernels/include/tensor.h"

namespace osdn::kernels {

// For token t of a span and channel c:
//   y[t, c] = act(bias[c] + sum_{j=0}^{size-1} weight[c, j] * x[t - (size - 1) + j, c])
// so weight[c, size-1] multiplies the current input. Inputs before the span come from the tail:
// tail row i of [size - 1, dim] is the input of position (span.position - (size - 1) + i); a fresh
// slot's tail is zero. On return the tail holds the last size - 1 inputs. y must not overlap x.
struct ShortConvArgs {
  BatchView batch;
  int64_t dim = 0;
  int64_t size = 0;  // >= 1; size 1 has no tail
  Activation activation = Activation::kSilu;
  const float* weight = nullptr;  // [dim, size]
  const float* bias = nullptr;    // [dim] or null
  const float* x = nullptr;       // [rows, dim]
  SlotArray tail;                 // per slot [size - 1, dim]
  float* y = nullptr;             // [rows, dim]
};

}  // namespace osdn::kernels

#endif  // OSDN_KERNELS_INCLUDE_SHORT_CONV_H_
