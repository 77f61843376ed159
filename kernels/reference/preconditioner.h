// One step of the preconditioner's recurrence, shared by the token form and the chunk form's redo.
#ifndef OSDN_KERNELS_REFERENCE_PRECONDITIONER_H_
#define OSDN_KERNELS_REFERENCE_PRECONDITIONER_H_

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels/reference/mixer.h"

namespace osdn::kernels::reference {

// d_t -> d_{t+1}, in place:
//   g = 1 - beta <d, k^2>;  d = clip(a + alpha (d - a) + eta beta g / max(|k|^2, eps) k^2)
template <typename T>
void AdvancePreconditioner(const MixerHead<T>& head, int64_t t, T* d) {
  const PreconditionerParams& p = head.precond;
  const T* k = head.k + t * head.key_dim;
  const T beta = head.beta[t];
  const T alpha = head.log_alpha == nullptr ? T(1) : std::exp(head.log_alpha[t]);
  T k_norm = 0;
  T s = 0;
  for (int64_t j = 0; j < head.key_dim; ++j) {
    k_norm += k[j] * k[j];
    s += d[j] * k[j] * k[j];
  }
  const T step = T(p.eta) * beta * (T(1) - beta * s) / std::max(k_norm, T(p.eps));
  const T anchor = p.anchor;
  for (int64_t j = 0; j < head.key_dim; ++j) {
    const T next = anchor + alpha * (d[j] - anchor) + step * k[j] * k[j];
    d[j] = std::clamp(next, T(p.d_min), T(p.d_max));
  }
}

}  // namespace osdn::kernels::reference

#endif  // OSDN_KERNELS_REFERENCE_PRECONDITIONER_H_
