// Scalar activations, for float and double.
#ifndef OSDN_KERNELS_REFERENCE_ACTIVATION_H_
#define OSDN_KERNELS_REFERENCE_ACTIVATION_H_

#include <cmath>

#include "kernels/include/tensor.h"

namespace osdn::kernels::reference {

template <typename T>
T Sigmoid(T x) {
  return T(1) / (T(1) + std::exp(-x));
}

// log sigmoid(x) without overflow on either side.
template <typename T>
T LogSigmoid(T x) {
  return x >= 0 ? -std::log1p(std::exp(-x)) : x - std::log1p(std::exp(x));
}

template <typename T>
T Silu(T x) {
  return x * Sigmoid(x);
}

template <typename T>
T Activate(Activation activation, T x) {
  switch (activation) {
    case Activation::kIdentity:
      return x;
    case Activation::kSilu:
      return Silu(x);
    case Activation::kRelu:
      return x > 0 ? x : T(0);
    case Activation::kEluPlusOne:
      return x > 0 ? x + T(1) : std::exp(x);
  }
  return x;
}

}  // namespace osdn::kernels::reference

#endif  // OSDN_KERNELS_REFERENCE_ACTIVATION_H_
