#include "kernels/cpu/mixer_chunk.h"

#include <cstring>

#include "kernels/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/mixer_chunk.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// After foreach_target.h
#include "kernels/cpu/mixer_gram-inl.h"
#include "kernels/cpu/mixer_phase1-inl.h"
#include "kernels/cpu/simd-inl.h"
#include "kernels/cpu/small_gemm-inl.h"

HWY_BEFORE_NAMESPACE();
namespace osdn::kernels::cpu {
namespace HWY_NAMESPACE {

// scores[t, j] = <x_t, kt_j>, whole panels up to the diagonal.
HWY_INLINE void Scores(const MixerHead& head, const MixerScratch& scratch, const float* x,
                       float* scores) {
  for (int64_t row = 0; row < head.tokens; row += kPanel) {
    Multiply<false>({.m = Min(kPanel, head.tokens - row),
                     .n = row + kPanel,
                     .k = head.key_dim,
                     .a = x + row * scratch.key_pad,
                     .a_row = scratch.key_pad,
                     .b = scratch.transposed,
                     .b_row = kChunk,
                     .c = scores + row * kChunk,
                     .c_row = kChunk});
  }
}

// key_scores <- -M (strictly lower), query_scores <- tril(Q Kt^T).
HWY_INLINE void MaskedScores(const MixerHead& head, const MixerScratch& scratch) {
  Transpose(scratch.write_keys, head.tokens, head.key_dim, scratch.key_pad, scratch.transposed,
            kChunk);
  Scores(head, scratch, scratch.keys, scratch.key_scores);
  Scores(head, scratch, scratch.queries, scratch.query_scores);
  for (int64_t t = 0; t < head.tokens; ++t) {
    float* m = scratch.key_scores + t * kChunk;
    float* p = scratch.query_scores + t * kChunk;
    for (int64_t j = 0; j < t; ++j) m[j] *= -scratch.beta[t];
    const int64_t panel_end = RoundUp(t + 1, kPanel);
    for (int64_t j = t; j < panel_end; ++j) m[j] = 0.0F;
    for (int64_t j = t + 1; j < panel_end; ++j) p[j] = 0.0F;
  }
}

// out[t, :] = S_0 x_t for all tokens.
HWY_INLINE void ReadState(const MixerHead& head, const MixerScratch& scratch, const float* x,
                          float* out) {
  Multiply<false>({.m = head.tokens,
                   .n = scratch.value_pad,
                   .k = head.key_dim,
                   .a = x,
                   .a_row = scratch.key_pad,
                   .b = scratch.state,
                   .b_row = scratch.value_pad,
                   .c = out,
                   .c_row = scratch.value_pad});
}

// c[rows of the panel] += scores[panel, 0 .. k) updates[0 .. k)
HWY_INLINE void AddScoredUpdates(const MixerScratch& scratch, const float* scores, int64_t row,
                                 int64_t rows, int64_t first, int64_t last, float* c) {
  const int64_t pad = scratch.value_pad;
  Multiply<true>({.m = rows,
                  .n = pad,
                  .k = last - first,
                  .a = scores + row * kChunk + first,
                  .a_row = kChunk,
                  .b = scratch.updates + first * pad,
                  .b_row = pad,
                  .c = c + row * pad,
                  .c_row = pad});
}

// (I + M) U = beta (V - K S_0^T), forward by panels.
HWY_INLINE void SolveUpdates(const MixerHead& head, const MixerScratch& scratch) {
  const DF d;
  const int64_t pad = scratch.value_pad;
  ReadState(head, scratch, scratch.keys, scratch.reads);
  for (int64_t t = 0; t < head.tokens; ++t) {
    float* u = scratch.updates + t * pad;
    CopyPadded(head.v + t * head.value_stride, head.value_dim, pad, u);
    const VF beta = hn::Set(d, scratch.beta[t]);
    for (int64_t i = 0; i < pad; i += kLanes) {
      const VF error = hn::Sub(hn::Load(d, u + i), hn::Load(d, scratch.reads + t * pad + i));
      hn::Store(hn::Mul(beta, error), d, u + i);
    }
  }
  for (int64_t row = 0; row < head.tokens; row += kPanel) {
    const int64_t rows = Min(kPanel, head.tokens - row);
    AddScoredUpdates(scratch, scratch.key_scores, row, rows, 0, row, scratch.updates);
    for (int64_t t = row + 1; t < row + rows; ++t) {
      AddScoredUpdates(scratch, scratch.key_scores, t, 1, row, t, scratch.updates);
    }
  }
}

// O = Q S_0^T + tril(Q Kt^T) U
HWY_INLINE void WriteOutputs(const MixerHead& head, const MixerScratch& scratch) {
  ReadState(head, scratch, scratch.queries, scratch.outputs);
  for (int64_t row = 0; row < head.tokens; row += kPanel) {
    const int64_t rows = Min(kPanel, head.tokens - row);
    AddScoredUpdates(scratch, scratch.query_scores, row, rows, 0, row + rows, scratch.outputs);
  }
  for (int64_t t = 0; t < head.tokens; ++t) {
    std::memcpy(head.o + t * head.value_stride, scratch.outputs + t * scratch.value_pad,
                head.value_dim * sizeof(float));
  }
}

void MixChunkImpl(const MixerHead& head, const PreconditionerParams& params, Phase1Form form,
                  const MixerScratch& scratch) {
  LoadInputs(head, params, scratch);
  const bool gram = form == Phase1Form::kGram && params.enabled;
  if (!gram || !Phase1Gram(head, params, scratch)) Phase1TokenLoop(head, params, scratch);
  MaskedScores(head, scratch);
  SolveUpdates(head, scratch);
  WriteOutputs(head, scratch);
  // S^T += Kt^T U
  Multiply<true>({.m = head.key_dim,
                  .n = scratch.value_pad,
                  .k = head.tokens,
                  .a = scratch.write_keys,
                  .a_row = 1,
                  .a_col = scratch.key_pad,
                  .b = scratch.updates,
                  .b_row = scratch.value_pad,
                  .c = scratch.state,
                  .c_row = scratch.value_pad});
}

void LoadStateImpl(const MixerHead& head, const MixerScratch& scratch) {
  if (scratch.value_pad != head.value_dim) {
    std::memset(scratch.state, 0, scratch.key_pad * scratch.value_pad * sizeof(float));
  }
  Transpose(head.s, head.value_dim, head.key_dim, head.key_dim, scratch.state, scratch.value_pad);
}

void StoreStateImpl(const MixerHead& head, const MixerScratch& scratch) {
  Transpose(scratch.state, head.key_dim, head.value_dim, scratch.value_pad, head.s, head.key_dim);
}

}  // namespace HWY_NAMESPACE
}  // namespace osdn::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace osdn::kernels::cpu {

HWY_EXPORT(LoadStateImpl);
HWY_EXPORT(StoreStateImpl);
HWY_EXPORT(MixChunkImpl);

void LoadState(const MixerHead& head, const MixerScratch& scratch) {
  HWY_DYNAMIC_DISPATCH(LoadStateImpl)(head, scratch);
}
void StoreState(const MixerHead& head, const MixerScratch& scratch) {
  HWY_DYNAMIC_DISPATCH(StoreStateImpl)(head, scratch);
}
void MixChunk(const MixerHead& head, const PreconditionerParams& params, Phase1Form form,
              const MixerScratch& scratch) {
  HWY_DYNAMIC_DISPATCH(MixChunkImpl)(head, params, form, scratch);
}

}  // namespace osdn::kernels::cpu
#endif  // HWY_ONCE
