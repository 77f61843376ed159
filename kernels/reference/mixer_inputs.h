// What turns projections into the mixer's inputs: q/k activation and norm, and the gates
// (contracts in kernels/include/mixer.h).
#ifndef OSDN_KERNELS_REFERENCE_MIXER_INPUTS_H_
#define OSDN_KERNELS_REFERENCE_MIXER_INPUTS_H_

#include <cmath>
#include <cstdint>

#include "kernels/include/mixer.h"
#include "kernels/reference/activation.h"

namespace osdn::kernels::reference {

// One head of one row of q (scale = q_scale) or k (scale = 1), in place.
template <typename T>
void PrepareQkHead(Activation activation, QkNorm norm, T scale, absl::Span<T> x) {
  T sum = 0;
  for (T& value : x) {
    value = Activate(activation, value);
    sum += norm == QkNorm::kL2 ? value * value : value;
  }
  const T factor = norm == QkNorm::kL2 ? T(1) / std::sqrt(sum + T(1e-6)) : T(1) / sum;
  for (T& value : x) value *= factor * scale;
}

template <typename T>
T BetaGate(T projected, T beta_scale) {
  return Sigmoid(projected) * beta_scale;
}

template <typename T>
T LogAlphaGate(T projected, T bias) {
  return LogSigmoid(projected + bias);
}

}  // namespace osdn::kernels::reference

#endif  // OSDN_KERNELS_REFERENCE_MIXER_INPUTS_H_
