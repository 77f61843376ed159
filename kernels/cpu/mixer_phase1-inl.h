// Phase 1 token by token: keys into scratch, kt_t = d_t * k_t, and d after the last token.
// Compiled once for every Highway target (hence no ordinary include guard).
#if defined(OSDN_KERNELS_CPU_MIXER_PHASE1_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OSDN_KERNELS_CPU_MIXER_PHASE1_INL_H_
#undef OSDN_KERNELS_CPU_MIXER_PHASE1_INL_H_
#else
#define OSDN_KERNELS_CPU_MIXER_PHASE1_INL_H_
#endif

#include <cstdint>
#include <cstring>

#include "kernels/cpu/mixer_head.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace osdn::kernels::cpu {
namespace HWY_NAMESPACE {

HWY_INLINE void CopyPadded(const float* from, int64_t count, int64_t padded, float* to) {
  std::memcpy(to, from, count * sizeof(float));
  std::memset(to + count, 0, (padded - count) * sizeof(float));
}

// keys, queries, beta, alpha and d of `head` into scratch.
HWY_INLINE void LoadInputs(const MixerHead& head, const PreconditionerParams& params,
                           const MixerScratch& scratch) {
  const DF d;
  for (int64_t t = 0; t < head.tokens; ++t) {
    CopyPadded(head.k + t * head.key_stride, head.key_dim, scratch.key_pad,
               scratch.keys + t * scratch.key_pad);
    CopyPadded(head.q + t * head.key_stride, head.key_dim, scratch.key_pad,
               scratch.queries + t * scratch.key_pad);
    scratch.beta[t] = head.beta[t * head.gate_stride];
  }
  if (!params.enabled) return;
  CopyPadded(head.d, head.key_dim, scratch.key_pad, scratch.d);
  const int64_t padded = RoundUp(head.tokens, kLanes);
  for (int64_t t = 0; t < padded; ++t) {
    const bool present = head.log_alpha != nullptr && t < head.tokens;
    scratch.alpha[t] = present ? head.log_alpha[t * head.gate_stride] : 0.0F;
  }
  for (int64_t t = 0; t < padded; t += kLanes) {
    hn::Store(hn::Exp(d, hn::Load(d, scratch.alpha + t)), d, scratch.alpha + t);
  }
}

// Writes kt = d * k and moves d on by one token. Padding stays 0 in kt and harmless in d.
HWY_INLINE void StepPreconditioner(const PreconditionerParams& params, const float* k, float beta,
                                   float alpha, int64_t padded, float* HWY_RESTRICT d,
                                   float* HWY_RESTRICT write_key) {
  const DF df;
  VF norm = hn::Zero(df);
  VF read = hn::Zero(df);
  for (int64_t i = 0; i < padded; i += kLanes) {
    const VF kv = hn::Load(df, k + i);
    const VF dv = hn::Load(df, d + i);
    const VF kt = hn::Mul(dv, kv);
    hn::Store(kt, df, write_key + i);
    norm = hn::MulAdd(kv, kv, norm);
    read = hn::MulAdd(kt, kv, read);
  }
  float sums[4];
  SumFour(norm, read, hn::Zero(df), hn::Zero(df), sums);
  const float g = 1.0F - beta * sums[1];
  const float n = sums[0] > params.eps ? sums[0] : params.eps;
  const VF step = hn::Set(df, params.eta * beta * g / n);
  const VF anchor = hn::Set(df, params.anchor);
  const VF pull = hn::Set(df, alpha);
  const VF low = hn::Set(df, params.d_min);
  const VF high = hn::Set(df, params.d_max);
  for (int64_t i = 0; i < padded; i += kLanes) {
    const VF kv = hn::Load(df, k + i);
    const VF dv = hn::Load(df, d + i);
    const VF kept = hn::MulAdd(pull, hn::Sub(dv, anchor), anchor);
    const VF moved = hn::MulAdd(step, hn::Mul(kv, kv), kept);
    hn::Store(hn::Min(hn::Max(moved, low), high), df, d + i);
  }
}

// All tokens from LoadInputs' scratch; d goes back to the head.
HWY_INLINE void Phase1TokenLoop(const MixerHead& head, const PreconditionerParams& params,
                                const MixerScratch& scratch) {
  const int64_t pad = scratch.key_pad;
  if (!params.enabled) {
    std::memcpy(scratch.write_keys, scratch.keys, head.tokens * pad * sizeof(float));
    return;
  }
  for (int64_t t = 0; t < head.tokens; ++t) {
    StepPreconditioner(params, scratch.keys + t * pad, scratch.beta[t], scratch.alpha[t], pad,
                       scratch.d, scratch.write_keys + t * pad);
  }
  std::memcpy(head.d, scratch.d, head.key_dim * sizeof(float));
}

}  // namespace HWY_NAMESPACE
}  // namespace osdn::kernels::cpu
HWY_AFTER_NAMESPACE();

#endif  // OSDN_KERNELS_CPU_MIXER_PHASE1_INL_H_
