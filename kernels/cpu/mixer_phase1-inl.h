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

// steps[t] = eta beta_t / max(|k_t|^2, eps): what of the update does not wait for d.
HWY_INLINE void UpdateSteps(const MixerHead& head, const PreconditionerParams& params,
                            const MixerScratch& scratch, float* HWY_RESTRICT steps) {
  const DF df;
  const int64_t pad = scratch.key_pad;
  const VF zero = hn::Zero(df);
  for (int64_t t = 0; t < head.tokens; ++t) {
    const float* k = scratch.keys + t * pad;
    VF even = zero;
    VF odd = zero;
    for (int64_t i = 0; i < pad; i += 2 * kLanes) {
      const VF k0 = hn::Load(df, k + i);
      even = hn::MulAdd(k0, k0, even);
      if (i + kLanes == pad) break;
      const VF k1 = hn::Load(df, k + i + kLanes);
      odd = hn::MulAdd(k1, k1, odd);
    }
    const float norm = SumLanes(hn::Add(even, odd));
    steps[t] = params.eta * scratch.beta[t] / (norm > params.eps ? norm : params.eps);
  }
}

// The constants of the update in registers.
struct UpdateConstants {
  explicit UpdateConstants(const PreconditionerParams& params)
      : anchor(hn::Set(DF(), params.anchor)),
        low(hn::Set(DF(), params.d_min)),
        high(hn::Set(DF(), params.d_max)) {}
  VF anchor, low, high;
};

HWY_INLINE VF UpdateD(const UpdateConstants& c, VF d, VF k, VF alpha, VF step) {
  const VF kept = hn::MulAdd(alpha, hn::Sub(d, c.anchor), c.anchor);
  const VF moved = hn::MulAdd(step, hn::Mul(k, k), kept);
  return hn::Min(hn::Max(moved, c.low), c.high);
}

// Tokens in order with d in `kVectors` registers: each waits for the one before, so what counts is
// the length of the chain from d to d.
template <int kVectors>
HWY_INLINE void Phase1InRegisters(const MixerHead& head, const PreconditionerParams& params,
                                  const MixerScratch& scratch, const float* steps) {
  const DF df;
  const UpdateConstants constants(params);
  VF d[kVectors];
  OSDN_UNROLL for (int v = 0; v < kVectors; ++v) d[v] = hn::Load(df, scratch.d + v * kLanes);
  for (int64_t t = 0; t < head.tokens; ++t) {
    const float* k = scratch.keys + t * kVectors * kLanes;
    float* write_key = scratch.write_keys + t * kVectors * kLanes;
    VF read[2] = {hn::Zero(df), hn::Zero(df)};
    OSDN_UNROLL for (int v = 0; v < kVectors; ++v) {
      const VF kv = hn::Load(df, k + v * kLanes);
      const VF kt = hn::Mul(d[v], kv);
      hn::Store(kt, df, write_key + v * kLanes);
      read[v % 2] = hn::MulAdd(kt, kv, read[v % 2]);
    }
    const float g = 1.0F - scratch.beta[t] * SumLanes(hn::Add(read[0], read[1]));
    const VF step = hn::Set(df, steps[t] * g);
    const VF alpha = hn::Set(df, scratch.alpha[t]);
    OSDN_UNROLL for (int v = 0; v < kVectors; ++v) {
      d[v] = UpdateD(constants, d[v], hn::Load(df, k + v * kLanes), alpha, step);
    }
  }
  OSDN_UNROLL for (int v = 0; v < kVectors; ++v) hn::Store(d[v], df, scratch.d + v * kLanes);
}

// The same for any key size, with d in the L1 cache.
HWY_INLINE void Phase1InCache(const MixerHead& head, const PreconditionerParams& params,
                              const MixerScratch& scratch, const float* steps) {
  const DF df;
  const UpdateConstants constants(params);
  const int64_t pad = scratch.key_pad;
  for (int64_t t = 0; t < head.tokens; ++t) {
    const float* k = scratch.keys + t * pad;
    VF read = hn::Zero(df);
    for (int64_t i = 0; i < pad; i += kLanes) {
      const VF kv = hn::Load(df, k + i);
      const VF kt = hn::Mul(hn::Load(df, scratch.d + i), kv);
      hn::Store(kt, df, scratch.write_keys + t * pad + i);
      read = hn::MulAdd(kt, kv, read);
    }
    const float g = 1.0F - scratch.beta[t] * SumLanes(read);
    const VF step = hn::Set(df, steps[t] * g);
    const VF alpha = hn::Set(df, scratch.alpha[t]);
    for (int64_t i = 0; i < pad; i += kLanes) {
      const VF moved =
          UpdateD(constants, hn::Load(df, scratch.d + i), hn::Load(df, k + i), alpha, step);
      hn::Store(moved, df, scratch.d + i);
    }
  }
}

// All tokens from LoadInputs' scratch: kt = d * k each, then d moves on; at the end it goes back to
// the head. Padding stays 0 in kt and harmless in d.
HWY_INLINE void Phase1TokenLoop(const MixerHead& head, const PreconditionerParams& params,
                                const MixerScratch& scratch) {
  const int64_t pad = scratch.key_pad;
  if (!params.enabled) {
    std::memcpy(scratch.write_keys, scratch.keys, head.tokens * pad * sizeof(float));
    return;
  }
  float steps[kChunk];
  UpdateSteps(head, params, scratch, steps);
  // Registers hold d of the common sizes where there are 32 of a line each.
  if (kLanes == kLineFloats && pad == 8 * kLanes) {
    Phase1InRegisters<8>(head, params, scratch, steps);
  } else if (kLanes == kLineFloats && pad == 4 * kLanes) {
    Phase1InRegisters<4>(head, params, scratch, steps);
  } else {
    Phase1InCache(head, params, scratch, steps);
  }
  std::memcpy(head.d, scratch.d, head.key_dim * sizeof(float));
}

}  // namespace HWY_NAMESPACE
}  // namespace osdn::kernels::cpu
HWY_AFTER_NAMESPACE();

#endif  // OSDN_KERNELS_CPU_MIXER_PHASE1_INL_H_
