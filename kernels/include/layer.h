// A block of the network as two calls: token mixer and MLP. Compositions of the other ops, given to
// the backend whole so that one may fuse them and keep what lies between in a format of its own.
// Source: docs/model.md section 4 (fla's layout).
#ifndef OSDN_KERNELS_INCLUDE_LAYER_H_
#define OSDN_KERNELS_INCLUDE_LAYER_H_

#include "absl/status/status.h"
#include "kernels/include/linear.h"
#include "kernels/include/mixer.h"
#include "kernels/include/tensor.h"

namespace osdn::kernels {

// What all blocks of a network have in common.
struct LayerSpec {
  int64_t hidden_size = 0;
  int64_t heads = 0;
  int64_t key_dim = 0;    // K, one head
  int64_t value_dim = 0;  // V, one head
  int64_t intermediate_size = 0;
  int64_t conv_size = 0;  // taps of the short convolutions; 0: there are none
  float norm_eps = 0;
  bool use_gate = false;  // o_norm(o) * silu(g_proj x)
  bool use_beta = true;   // false: beta = beta_scale
  bool use_apf = false;   // alpha from a_proj and its bias; false: alpha = 1
  float beta_scale = 1;   // 2 with allow_neg_eigval
  QkNorm qk_norm = QkNorm::kL2;
  Activation qk_activation = Activation::kSilu;  // after the convolution; v always has SiLU
  float q_scale = 1;                             // K^-1/2
  PreconditionerParams precond;
};

// Device memory and prepared weights of one block's mixer; what the spec does not have is null.
struct MixerLayerWeights {
  const float* norm = nullptr;  // [hidden]
  const LinearWeight* q_proj = nullptr;
  const LinearWeight* k_proj = nullptr;
  const LinearWeight* v_proj = nullptr;
  const LinearWeight* b_proj = nullptr;
  const LinearWeight* a_proj = nullptr;
  const LinearWeight* g_proj = nullptr;
  const float* a_bias = nullptr;  // [heads]
  const float* q_conv = nullptr;  // [heads * K, conv_size]; k likewise, v [heads * V, conv_size]
  const float* k_conv = nullptr;
  const float* v_conv = nullptr;
  const float* q_conv_bias = nullptr;
  const float* k_conv_bias = nullptr;
  const float* v_conv_bias = nullptr;
  const float* o_norm = nullptr;  // [V]
  const LinearWeight* o_proj = nullptr;
};

// x += o_proj(o_norm(mixer(convolved and normalised q, k, v, gates of norm(x))))
struct MixerLayerArgs {
  BatchView batch;
  const MixerLayerWeights* weights = nullptr;
  SlotArray s;       // per slot [heads, V, K]
  SlotArray d;       // per slot [heads, K]
  SlotArray conv_q;  // per slot [conv_size - 1, heads * K]
  SlotArray conv_k;
  SlotArray conv_v;    // per slot [conv_size - 1, heads * V]
  float* x = nullptr;  // [rows, hidden]
};

struct MlpLayerWeights {
  const float* norm = nullptr;  // [hidden]
  const LinearWeight* gate_proj = nullptr;
  const LinearWeight* up_proj = nullptr;
  const LinearWeight* down_proj = nullptr;
};

// x += down(silu(gate h) * up h), h = norm(x)
struct MlpLayerArgs {
  BatchView batch;
  const MlpLayerWeights* weights = nullptr;
  float* x = nullptr;  // [rows, hidden]
};

// Runs blocks of one LayerSpec over batches of at most so many rows; holds the scratch for it. Used
// by its backend's thread. Errors and asynchrony as those of Backend's ops.
class LayerRunner {
 public:
  virtual ~LayerRunner() = default;

  virtual absl::Status Mixer(const MixerLayerArgs& args) = 0;
  virtual absl::Status Mlp(const MlpLayerArgs& args) = 0;
  // Device memory held.
  virtual size_t scratch_bytes() const = 0;
};

}  // namespace osdn::kernels

#endif  // OSDN_KERNELS_INCLUDE_LAYER_H_
