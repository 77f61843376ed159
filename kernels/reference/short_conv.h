// Depthwise causal convolution of one span (contract in kernels/include/short_conv.h).
#ifndef OSDN_KERNELS_REFERENCE_SHORT_CONV_H_
#define OSDN_KERNELS_REFERENCE_SHORT_CONV_H_

#include <cstdint>
#include <vector>

#include "kernels/reference/activation.h"

namespace osdn::kernels::reference {

template <typename T>
struct ShortConvSpanArgs {
  int64_t tokens = 0;
  int64_t dim = 0;
  int64_t size = 0;
  Activation activation = Activation::kSilu;
  const T* weight = nullptr;  // [dim, size]
  const T* bias = nullptr;    // [dim] or null
  const T* x = nullptr;       // [tokens, dim]
  T* tail = nullptr;          // [size - 1, dim], in and out
  T* y = nullptr;             // [tokens, dim]
};

template <typename T>
void ShortConvSpan(const ShortConvSpanArgs<T>& args) {
  const int64_t tail_size = (args.size - 1) * args.dim;
  std::vector<T> inputs(args.tail, args.tail + tail_size);  // the tail, then x
  inputs.insert(inputs.end(), args.x, args.x + args.tokens * args.dim);
  for (int64_t t = 0; t < args.tokens; ++t) {
    for (int64_t c = 0; c < args.dim; ++c) {
      T sum = args.bias == nullptr ? T(0) : args.bias[c];
      for (int64_t j = 0; j < args.size; ++j) {
        sum += args.weight[c * args.size + j] * inputs[(t + j) * args.dim + c];
      }
      args.y[t * args.dim + c] = Activate(args.activation, sum);
    }
  }
  for (int64_t i = 0; i < tail_size; ++i) args.tail[i] = inputs[args.tokens * args.dim + i];
}

}  // namespace osdn::kernels::reference

#endif  // OSDN_KERNELS_REFERENCE_SHORT_CONV_H_
