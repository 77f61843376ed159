// The OSDN mixer: online scaled delta rule with a clipped diagonal preconditioner.
// Source: arXiv 2605.13473 section 4.2, Algorithm 1, Eq. 4; docs/model.md sections 1 to 3.
#ifndef OSDN_KERNELS_INCLUDE_MIXER_H_
#define OSDN_KERNELS_INCLUDE_MIXER_H_

#include "kernels/include/tensor.h"

namespace osdn::kernels {

enum class QkNorm : uint8_t { kL2, kSum };

// In place over each head of each row, in this order:
//   q, k = act(q), act(k)           (identity when the convolution already applied SiLU)
//   l2:  x * rsqrt(sum x^2 + 1e-6)  sum:  x / sum x
//   q *= q_scale                    (key_dim^-1/2)
struct QkPrepareArgs {
  int64_t rows = 0;
  int64_t heads = 0;
  int64_t key_dim = 0;
  Activation activation = Activation::kIdentity;
  QkNorm norm = QkNorm::kL2;
  float q_scale = 1;
  float* q = nullptr;  // [rows, heads * key_dim]
  float* k = nullptr;  // [rows, heads * key_dim]
};

// Gates in place, one scalar a row and head:
//   beta      = sigmoid(beta) * beta_scale            (beta_scale 2 with allow_neg_eigval)
//   log_alpha = log sigmoid(log_alpha + alpha_bias)   (APF; log_alpha null without it)
struct GateArgs {
  int64_t rows = 0;
  int64_t heads = 0;
  float beta_scale = 1;
  float* beta = nullptr;              // in: b_proj x, out: beta; [rows, heads]
  const float* alpha_bias = nullptr;  // [heads] or null (0)
  float* log_alpha = nullptr;         // in: a_proj x, out: log alpha <= 0; [rows, heads] or null
};

// Constants of the preconditioner update.
struct PreconditionerParams {
  float eta = 0.003F;
  float eps = 1e-6F;
  float d_min = 0.5F;
  float d_max = 2.0F;
  float anchor = 1.0F;  // a in dbar = a + alpha (d - a) + ...
  // False skips d altogether: kt = k, d is neither read nor written. Exactly plain DeltaNet, which
  // is also what eta = 0 without APF gives from d = 1.
  bool enabled = true;
};

// Per sequence and head, token by token (S is [value_dim, key_dim], d is [key_dim]):
//   kt = d * k;  S += beta (v - S k) kt^T;  o = S q;  d <- clip(a + alpha (d - a) + eta beta g k^2
//   / n)
// with g = 1 - beta <d, k^2> and n = max(|k|^2, eps). Backends may evaluate spans chunkwise
// (two-phase form with per-chunk clip check and token-by-token redo); results agree within 1e-5
// relative to the max of o, S, d. Everything is float32; S and d are updated in place in the slots.
struct MixerArgs {
  BatchView batch;
  int64_t heads = 0;
  int64_t key_dim = 0;
  int64_t value_dim = 0;
  PreconditionerParams precond;
  const float* q = nullptr;          // [rows, heads * key_dim], normalised and scaled
  const float* k = nullptr;          // [rows, heads * key_dim], normalised
  const float* v = nullptr;          // [rows, heads * value_dim]
  const float* beta = nullptr;       // [rows, heads]
  const float* log_alpha = nullptr;  // [rows, heads], <= 0, or null: alpha = 1
  SlotArray s;                       // per slot [heads, value_dim, key_dim]
  SlotArray d;                       // per slot [heads, key_dim]
  float* o = nullptr;                // [rows, heads * value_dim]
};

}  // namespace osdn::kernels

#endif  // OSDN_KERNELS_INCLUDE_MIXER_H_
