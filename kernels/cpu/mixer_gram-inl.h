// Phase 1 for all tokens of a chunk at once (docs/model.md section 2).
// Compiled once for every Highway target (hence no ordinary include guard).
#if defined(OSDN_KERNELS_CPU_MIXER_GRAM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OSDN_KERNELS_CPU_MIXER_GRAM_INL_H_
#undef OSDN_KERNELS_CPU_MIXER_GRAM_INL_H_
#else
#define OSDN_KERNELS_CPU_MIXER_GRAM_INL_H_
#endif

#include <cstdint>

#include "kernels/cpu/mixer_head.h"
#include "kernels/cpu/simd-inl.h"
#include "kernels/cpu/small_gemm-inl.h"

HWY_BEFORE_NAMESPACE();
namespace osdn::kernels::cpu {
namespace HWY_NAMESPACE {

// Rows of a triangular product computed together: columns right of a panel are skipped.
inline constexpr int64_t kPanel = 16;

// decay[t][j] = prod_{j < i < t} alpha_i for j < t <= tokens, else 0; and decayed[t] = prod_{i < t}
// alpha_i. Products going down the rows: no ratio of underflown terms is ever formed.
HWY_INLINE void FillDecay(int64_t tokens, const float* alpha, float* decay, float* decayed) {
  for (int64_t i = 0; i < (tokens + 1) * kChunk; ++i) decay[i] = 0.0F;
  float product = 1.0F;
  for (int64_t t = 1; t <= tokens; ++t) {
    float* row = decay + t * kChunk;
    for (int64_t j = 0; j + 1 < t; ++j) row[j] = row[j - kChunk] * alpha[t - 1];
    row[t - 1] = 1.0F;
    decayed[t - 1] = product;
    product *= alpha[t - 1];
  }
}

// kappa = k^2 into scratch.kappa, its Gram matrix (lower panels) into scratch.key_scores.
HWY_INLINE void GramOfKappa(const MixerHead& head, const MixerScratch& scratch) {
  const DF d;
  const int64_t pad = scratch.key_pad;
  for (int64_t i = 0; i < head.tokens * pad; i += kLanes) {
    const VF k = hn::Load(d, scratch.keys + i);
    hn::Store(hn::Mul(k, k), d, scratch.kappa + i);
  }
  Transpose(scratch.kappa, head.tokens, head.key_dim, pad, scratch.transposed, kChunk);
  for (int64_t row = 0; row < head.tokens; row += kPanel) {
    const int64_t rows = Min(kPanel, head.tokens - row);
    Multiply<false>({.m = rows,
                     .n = row + kPanel,
                     .k = head.key_dim,
                     .a = scratch.kappa + row * pad,
                     .a_row = pad,
                     .b = scratch.transposed,
                     .b_row = kChunk,
                     .c = scratch.key_scores + row * kChunk,
                     .c_row = kChunk});
  }
}

// The triangular solve: weight_t = c_t (1 - beta_t s_t), with which kappa_t enters every later d.
HWY_INLINE void SolveWeights(const MixerHead& head, const PreconditionerParams& params,
                             const MixerScratch& scratch, const float* decayed, float* weight) {
  const DF d;
  const int64_t pad = scratch.key_pad;
  for (int64_t t = 0; t < head.tokens; ++t) {
    VF norm_v = hn::Zero(d);
    VF read_v = hn::Zero(d);
    for (int64_t i = 0; i < pad; i += kLanes) {
      const VF kappa = hn::Load(d, scratch.kappa + t * pad + i);
      const VF excess = hn::Sub(hn::Load(d, scratch.d + i), hn::Set(d, params.anchor));
      norm_v = hn::Add(norm_v, kappa);
      read_v = hn::MulAdd(kappa, excess, read_v);
    }
    const float norm = SumLanes(norm_v);
    float s = params.anchor * norm + decayed[t] * SumLanes(read_v);
    for (int64_t j = 0; j < t; ++j) {
      s += scratch.decay[t * kChunk + j] * scratch.key_scores[t * kChunk + j] * weight[j];
    }
    const float beta = scratch.beta[t];
    const float c = params.eta * beta / (norm > params.eps ? norm : params.eps);
    weight[t] = c * (1.0F - beta * s);
  }
}

// all_d[t] for t = 1 .. tokens (row 0 is the d we came with).
HWY_INLINE void ExpandD(const MixerHead& head, const PreconditionerParams& params,
                        const MixerScratch& scratch, const float* weight) {
  const DF d;
  const int64_t pad = scratch.key_pad;
  const VF anchor = hn::Set(d, params.anchor);
  float product = 1.0F;
  for (int64_t t = 0; t <= head.tokens; ++t) {
    for (int64_t i = 0; i < pad; i += kLanes) {
      const VF excess = hn::Sub(hn::Load(d, scratch.d + i), anchor);
      hn::Store(hn::MulAdd(hn::Set(d, product), excess, anchor), d, scratch.all_d + t * pad + i);
    }
    for (int64_t j = 0; j < t; ++j) scratch.decay[t * kChunk + j] *= weight[j];
    if (t < head.tokens) product *= scratch.alpha[t];
  }
  for (int64_t row = 1; row <= head.tokens; row += kPanel) {
    const int64_t rows = Min(kPanel, head.tokens + 1 - row);
    Multiply<true>({.m = rows,
                    .n = pad,
                    .k = Min(row + rows - 1, head.tokens),
                    .a = scratch.decay + row * kChunk,
                    .a_row = kChunk,
                    .b = scratch.kappa,
                    .b_row = pad,
                    .c = scratch.all_d + row * pad,
                    .c_row = pad});
  }
}

// Whether every entry of d_2 .. d_{tokens + 1} is inside the box.
HWY_INLINE bool InsideBox(const MixerHead& head, const PreconditionerParams& params,
                          const MixerScratch& scratch) {
  const DF d;
  VF low = hn::Set(d, params.d_max);
  VF high = hn::Set(d, params.d_min);
  const int64_t full = head.key_dim / kLanes * kLanes;
  bool inside = true;
  for (int64_t t = 1; t <= head.tokens; ++t) {
    const float* row = scratch.all_d + t * scratch.key_pad;
    for (int64_t i = 0; i < full; i += kLanes) {
      low = hn::Min(low, hn::Load(d, row + i));
      high = hn::Max(high, hn::Load(d, row + i));
    }
    for (int64_t i = full; i < head.key_dim; ++i) {
      inside = inside && row[i] >= params.d_min && row[i] <= params.d_max;
    }
  }
  return inside && hn::GetLane(hn::MinOfLanes(d, low)) >= params.d_min &&
         hn::GetLane(hn::MaxOfLanes(d, high)) <= params.d_max;
}

// kt and d from LoadInputs' scratch, like Phase1TokenLoop. False, with head.d and scratch.d as they
// were, when some d would leave the box: the chunk must then be done token by token.
HWY_INLINE bool Phase1Gram(const MixerHead& head, const PreconditionerParams& params,
                           const MixerScratch& scratch) {
  const DF d;
  const int64_t pad = scratch.key_pad;
  float* decayed = scratch.vectors;
  float* weight = scratch.vectors + kChunk;
  FillDecay(head.tokens, scratch.alpha, scratch.decay, decayed);
  GramOfKappa(head, scratch);
  SolveWeights(head, params, scratch, decayed, weight);
  ExpandD(head, params, scratch, weight);
  if (!InsideBox(head, params, scratch)) return false;
  for (int64_t i = 0; i < head.tokens * pad; i += kLanes) {
    const VF kt = hn::Mul(hn::Load(d, scratch.all_d + i), hn::Load(d, scratch.keys + i));
    hn::Store(kt, d, scratch.write_keys + i);
  }
  const float* last = scratch.all_d + head.tokens * pad;
  for (int64_t i = 0; i < head.key_dim; ++i) head.d[i] = last[i];
  return true;
}

}  // namespace HWY_NAMESPACE
}  // namespace osdn::kernels::cpu
HWY_AFTER_NAMESPACE();

#endif  // OSDN_KERNELS_CPU_MIXER_GRAM_INL_H_
