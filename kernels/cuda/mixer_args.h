// What the mixer's kernels are given; plain data, passed by value.
#ifndef OSDN_KERNELS_CUDA_MIXER_ARGS_H_
#define OSDN_KERNELS_CUDA_MIXER_ARGS_H_

#include <cstdint>

#include "kernels/cuda/batch_plan.h"
#include "kernels/include/mixer.h"
#include "kernels/include/tensor.h"

namespace osdn::kernels::cuda {

struct Bf16;

// The two phases of chunkwise prefill (docs/model.md section 2) over all chunks of a batch. All
// matrices have one row a token and are indexed by the packed row, so that none depends on how
// spans fall into chunks, except those said to be a chunk's. Gates and norms are applied already.
struct ChunkArgs {
  const ChunkPlan* chunks = nullptr;
  const SpanPlan* spans = nullptr;
  int32_t heads = 0;
  PreconditionerParams precond;
  const Bf16* q = nullptr;           // [rows, heads * K], scaled
  const Bf16* k = nullptr;           // [rows, heads * K]
  const Bf16* v = nullptr;           // [rows, heads * V]
  const float* beta = nullptr;       // [rows, heads]
  const float* log_alpha = nullptr;  // [rows, heads] or null
  SlotArray s;
  SlotArray d;

  // Phase 1. With s_t = <d_t, kappa_t> and e = d - a at the chunk's start: s = s0 + W_d e.
  Bf16* w_d = nullptr;        // [rows, heads * K]
  float* s0 = nullptr;        // [rows, heads]
  float* c = nullptr;         // [rows, heads]: eta beta / max(|k|^2, eps)
  float* solution = nullptr;  // [rows, heads]: s
  float* e_start = nullptr;   // [chunks, heads, K]: e at the chunk's start
  int32_t* redone = nullptr;  // [chunks, heads]: 1 where d left the box; then `kt` is there already

  // Phase 2.
  Bf16* kt = nullptr;  // [rows, heads * K]: write keys; k itself without preconditioner
  Bf16* w = nullptr;   // [rows, heads * K]: -T diag(beta) K
  Bf16* u = nullptr;   // [rows, heads * V]: T diag(beta) V
  Bf16* p = nullptr;   // [rows, heads * 64]: tril(Q Kt^T)
  Bf16* o = nullptr;   // [rows, heads * V]
};

// One short convolution: weight [channels, taps], tail a slot [taps - 1, channels].
struct ConvArgs {
  const float* weight = nullptr;
  const float* bias = nullptr;  // or null
  SlotArray tail;
};

// From projections to what the recurrence takes, and from its output to what o_proj takes.
struct InputArgs {
  int32_t heads = 0;
  int32_t taps = 0;                           // 0: no convolution
  Activation activation = Activation::kSilu;  // of q and k; v has SiLU
  QkNorm norm = QkNorm::kL2;
  float q_scale = 1;
  float beta_scale = 1;
  ConvArgs conv_q;  // [heads * K]
  ConvArgs conv_k;
  ConvArgs conv_v;                    // [heads * V]
  const float* beta = nullptr;        // [rows, heads]: b_proj x, or null: beta_scale
  const float* log_alpha = nullptr;   // [rows, heads]: a_proj x, or null: alpha = 1
  const float* alpha_bias = nullptr;  // [heads] or null
  float norm_eps = 0;
  const float* o_norm = nullptr;  // [V]
};

// Rows of prefill spans: projections in, inputs of ChunkArgs or RecurrentArgs out.
template <typename T>
struct PrepareArgs {
  InputArgs input;
  const ChunkPlan* chunks = nullptr;
  const SpanPlan* spans = nullptr;
  const T* q = nullptr;
  const T* k = nullptr;
  const T* v = nullptr;
  const T* gate = nullptr;  // of the outputs, or null
  T* q_out = nullptr;
  T* k_out = nullptr;
  T* v_out = nullptr;
  float* beta_out = nullptr;
  float* log_alpha_out = nullptr;  // with input.log_alpha
  T* o = nullptr;                  // normed and gated in place
};

// Token by token: decode rows, or spans.
template <typename T>
struct RecurrentArgs {
  const int32_t* decode_slots = nullptr;  // null: spans
  const SpanPlan* spans = nullptr;
  int32_t heads = 0;
  PreconditionerParams precond;
  bool fused = false;  // `input` is to be applied to q, k, v, gates and o; decode rows only
  InputArgs input;     // its gates are those of the recurrence where not fused
  const T* q = nullptr;
  const T* k = nullptr;
  const T* v = nullptr;
  const T* gate = nullptr;
  SlotArray s;
  SlotArray d;
  T* o = nullptr;
};

}  // namespace osdn::kernels::cuda

#endif  // OSDN_KERNELS_CUDA_MIXER_ARGS_H_
