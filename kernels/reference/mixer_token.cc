#include "kernels/reference/mixer.h"
#include "kernels/reference/preconditioner.h"

namespace osdn::kernels::reference {
namespace {

template <typename T>
T Dot(int64_t n, const T* a, const T* b) {
  T sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace

template <typename T>
void MixerTokens(const MixerHead<T>& head) {
  const int64_t key_dim = head.key_dim;
  for (int64_t t = 0; t < head.tokens; ++t) {
    const T* q = head.q + t * key_dim;
    const T* k = head.k + t * key_dim;
    for (int64_t i = 0; i < head.value_dim; ++i) {
      T* s = head.s + i * key_dim;
      const T update = head.beta[t] * (head.v[t * head.value_dim + i] - Dot(key_dim, s, k));
      for (int64_t j = 0; j < key_dim; ++j) {
        s[j] += update * (head.precond.enabled ? head.d[j] * k[j] : k[j]);
      }
      head.o[t * head.value_dim + i] = Dot(key_dim, s, q);
    }
    if (head.precond.enabled) AdvancePreconditioner(head, t, head.d);
  }
}

template void MixerTokens(const MixerHead<float>& head);
template void MixerTokens(const MixerHead<double>& head);

}  // namespace osdn::kernels::reference
