// Internal to engine/model*.cc: what a Model owns on its backend.
#ifndef OSDN_ENGINE_MODEL_INTERNAL_H_
#define OSDN_ENGINE_MODEL_INTERNAL_H_

#include <memory>
#include <vector>

#include "engine/model.h"

namespace osdn {

// Names are the checkpoint's (tensor_specs.h). What the architecture does not have is null or
// empty.
struct Model::LayerWeights {
  kernels::Buffer attn_norm;
  std::unique_ptr<kernels::LinearWeight> q_proj, k_proj, v_proj;
  std::unique_ptr<kernels::LinearWeight> b_proj, a_proj, g_proj;
  kernels::Buffer a_bias;
  kernels::Buffer q_conv, k_conv, v_conv;  // [dim, conv_size]
  kernels::Buffer q_conv_bias, k_conv_bias, v_conv_bias;
  kernels::Buffer o_norm;
  std::unique_ptr<kernels::LinearWeight> o_proj;
  kernels::Buffer mlp_norm;
  std::unique_ptr<kernels::LinearWeight> gate_proj, up_proj, down_proj;

  // `mixer` and `mlp` point to what is above.
  void SetViews();
  kernels::MixerLayerWeights mixer;
  kernels::MlpLayerWeights mlp;
};

// Activations of one forward pass beside the blocks' own.
struct Model::Scratch {
  kernels::Buffer x;  // residual stream, [max_rows, hidden]

  // [max_logit_rows, dim]
  kernels::Buffer last_x, logits;
  std::vector<kernels::SequenceSpan>
      logit_spans;  // length 1 each, so that lm_head is batch invariant
};

}  // namespace osdn

#endif  // OSDN_ENGINE_MODEL_INTERNAL_H_
