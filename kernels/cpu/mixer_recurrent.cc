#include "kernels/cpu/mixer_recurrent.h"

#include <cstring>

#include "kernels/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/mixer_recurrent.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// After foreach_target.h
#include "hwy/cache_control.h"
#include "kernels/cpu/mixer_phase1-inl.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace osdn::kernels::cpu {
namespace HWY_NAMESPACE {

// scores[t] = <kt_t, q_t>
void WriteKeyQueryDots(const MixerHead& head, const MixerScratch& scratch, float* scores) {
  const DF d;
  for (int64_t t = 0; t < head.tokens; ++t) {
    VF sum = hn::Zero(d);
    for (int64_t i = t * scratch.key_pad; i < (t + 1) * scratch.key_pad; i += kLanes) {
      sum = hn::MulAdd(hn::Load(d, scratch.write_keys + i), hn::Load(d, scratch.queries + i), sum);
    }
    scores[t] = SumLanes(sum);
  }
}

// One token for kRows rows of S, `stride` apart: both dots while a row is in registers, then the
// update while it is in the L1 cache.
template <int kRows>
HWY_INLINE void StepRows(const float* HWY_RESTRICT k, const float* HWY_RESTRICT q,
                         const float* HWY_RESTRICT kt, int64_t padded, float beta, float kt_q,
                         const float* HWY_RESTRICT v, int64_t stride, float* HWY_RESTRICT s,
                         float* HWY_RESTRICT o) {
  const DF d;
  VF sum_k[4], sum_q[4];
  OSDN_UNROLL for (int r = 0; r < 4; ++r) sum_k[r] = sum_q[r] = hn::Zero(d);
  for (int64_t i = 0; i < padded; i += kLanes) {
    const VF kv = hn::Load(d, k + i);
    const VF qv = hn::Load(d, q + i);
    OSDN_UNROLL for (int r = 0; r < kRows; ++r) {
      const VF sv = hn::LoadU(d, s + r * stride + i);
      sum_k[r] = hn::MulAdd(sv, kv, sum_k[r]);
      sum_q[r] = hn::MulAdd(sv, qv, sum_q[r]);
    }
  }
  float s_k[4], s_q[4];
  SumFour(sum_k[0], sum_k[1], sum_k[2], sum_k[3], s_k);
  SumFour(sum_q[0], sum_q[1], sum_q[2], sum_q[3], s_q);
  VF update[kRows];
  OSDN_UNROLL for (int r = 0; r < kRows; ++r) {
    const float u = beta * (v[r] - s_k[r]);
    o[r] = s_q[r] + u * kt_q;
    update[r] = hn::Set(d, u);
  }
  for (int64_t i = 0; i < padded; i += kLanes) {
    const VF kt_v = hn::Load(d, kt + i);
    OSDN_UNROLL for (int r = 0; r < kRows; ++r) {
      float* row = s + r * stride + i;
      hn::StoreU(hn::MulAdd(update[r], kt_v, hn::LoadU(d, row)), d, row);
    }
  }
}

inline constexpr int64_t kPrefetchBlocks = 2;
// In the order of addresses, ahead of StepRows, which reads kRows streams at once.
HWY_INLINE void PrefetchRows(const float* s, int64_t count) {
  for (int64_t i = 0; i < count; i += kLineFloats) hwy::Prefetch(s + i);
}

// All tokens for rows [row, row + kRows) of S: rows never meet, so tokens can be the inner loop.
template <int kRows>
HWY_INLINE void AdvanceRows(const MixerHead& head, const MixerScratch& scratch, const float* scores,
                            int64_t row) {
  const int64_t pad = scratch.key_pad;
  float* s = head.s + row * head.key_dim;
  // Rows that are not whole vectors pass through a padded copy.
  const bool copied = pad != head.key_dim;
  if (copied) {
    for (int r = 0; r < kRows; ++r) {
      CopyPadded(s + r * head.key_dim, head.key_dim, pad, scratch.rows + r * pad);
    }
  }
  float* rows = copied ? scratch.rows : s;
  PrefetchRows(s + kPrefetchBlocks * kRows * head.key_dim, kRows * head.key_dim);
  for (int64_t t = 0; t < head.tokens; ++t) {
    const int64_t at = t * pad;
    StepRows<kRows>(scratch.keys + at, scratch.queries + at, scratch.write_keys + at, pad,
                    scratch.beta[t], scores[t], head.v + t * head.value_stride + row, pad, rows,
                    head.o + t * head.value_stride + row);
  }
  if (!copied) return;
  for (int r = 0; r < kRows; ++r) {
    std::memcpy(s + r * head.key_dim, scratch.rows + r * pad, head.key_dim * sizeof(float));
  }
}

void MixRecurrentImpl(const MixerHead& head, const PreconditionerParams& params,
                      const MixerScratch& scratch) {
  constexpr int64_t kBlock = MixerScratch::kRowBlock;
  LoadInputs(head, params, scratch);
  Phase1TokenLoop(head, params, scratch);
  float scores[kChunk];
  WriteKeyQueryDots(head, scratch, scores);
  int64_t row = 0;
  for (; row + kBlock <= head.value_dim; row += kBlock) {
    AdvanceRows<kBlock>(head, scratch, scores, row);
  }
  for (; row < head.value_dim; ++row) AdvanceRows<1>(head, scratch, scores, row);
}

}  // namespace HWY_NAMESPACE
}  // namespace osdn::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace osdn::kernels::cpu {

HWY_EXPORT(MixRecurrentImpl);

void MixRecurrent(const MixerHead& head, const PreconditionerParams& params,
                  const MixerScratch& scratch) {
  HWY_DYNAMIC_DISPATCH(MixRecurrentImpl)(head, params, scratch);
}

}  // namespace osdn::kernels::cpu
#endif  // HWY_ONCE
