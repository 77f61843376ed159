#include "engine/model.h"

#include <array>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/model_internal.h"

namespace osdn {

using kernels::Activation;
using kernels::BatchView;
using kernels::LinearJob;
using kernels::SequenceSpan;

namespace {

// The packed rows must be tiled by the spans in order, decode rows first.
absl::Status CheckSpans(const BatchView& batch, int32_t slots) {
  int64_t row = 0;
  for (size_t i = 0; i < batch.spans.size(); ++i) {
    const SequenceSpan& span = batch.spans[i];
    const bool decode = static_cast<int64_t>(i) < batch.decode_rows;
    if (span.row != row || span.length < 1 || span.length > batch.rows - row ||
        (decode && span.length != 1) || span.position < 0 || span.slot < 0 || span.slot >= slots) {
      return absl::InvalidArgumentError(absl::StrCat(
          "batch: span ", i, " (row ", span.row, ", length ", span.length, ", position ",
          span.position, ", slot ", span.slot, ") does not continue row ", row, " of ", batch.rows,
          " with ", batch.decode_rows, " decode rows and ", slots, " slots"));
    }
    row += span.length;
  }
  if (row == batch.rows && batch.decode_rows <= static_cast<int64_t>(batch.spans.size())) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat("batch: ", batch.spans.size(), " spans cover ",
                                                 row, " of ", batch.rows, " rows, of them ",
                                                 batch.decode_rows, " decode rows"));
}

}  // namespace

absl::Status Model::CheckForward(const BatchView& batch, absl::Span<const int32_t> tokens,
                                 absl::Span<const int64_t> logit_rows, const StatePool& pool,
                                 absl::Span<const float> logits) const {
  if (batch.rows < 1 || batch.rows > options_.max_rows ||
      tokens.size() != static_cast<size_t>(batch.rows)) {
    return absl::InvalidArgumentError(absl::StrCat("batch: ", batch.rows, " rows with ",
                                                   tokens.size(), " tokens, want 1 to ",
                                                   options_.max_rows, " of both"));
  }
  const auto max_logit_rows = static_cast<size_t>(options_.max_logit_rows);
  const auto vocab = static_cast<size_t>(arch_.vocab_size);
  if (logit_rows.size() > max_logit_rows || logits.size() != logit_rows.size() * vocab) {
    return absl::InvalidArgumentError(
        absl::StrCat("batch: ", logit_rows.size(), " logit rows (at most ", max_logit_rows,
                     ") with room for ", logits.size(), " logits, vocabulary of ", vocab));
  }
  for (const int64_t row : logit_rows) {
    if (row < 0 || row >= batch.rows) {
      return absl::InvalidArgumentError(
          absl::StrCat("batch: logit row ", row, " of ", batch.rows, " rows"));
    }
  }
  for (const int32_t id : tokens) {
    if (id < 0 || id >= arch_.vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("token id ", id, " is out of range [0, ", arch_.vocab_size, ")"));
    }
  }
  if (pool.layout().slot_floats() != slot_floats_) {
    return absl::InvalidArgumentError(absl::StrCat("state slots of ", pool.layout().slot_floats(),
                                                   " floats, the model's have ", slot_floats_));
  }
  return CheckSpans(batch, pool.capacity());
}

absl::Status Model::Forward(const BatchView& batch, absl::Span<const int32_t> tokens,
                            absl::Span<const int64_t> logit_rows, const StatePool& pool,
                            absl::Span<float> logits) {
  if (absl::Status s = CheckForward(batch, tokens, logit_rows, pool, logits); !s.ok()) return s;
  kernels::EmbeddingArgs embed;
  embed.ids = tokens;
  embed.y = scratch_->x.floats();
  if (absl::Status s = backend_->Embed(*embeddings_, embed); !s.ok()) return s;
  for (int64_t i = 0; i < arch_.num_layers; ++i) {
    const LayerWeights& layer = layers_[static_cast<size_t>(i)];
    if (absl::Status s = Attention(batch, layer, pool.layout().layer(i), pool); !s.ok()) return s;
    if (absl::Status s = Mlp(batch, layer); !s.ok()) return s;
  }
  if (logit_rows.empty()) return absl::OkStatus();
  return Logits(logit_rows, logits);
}

// x += o_proj(o_norm(mixer(...attn_norm(x))))
absl::Status Model::Attention(const BatchView& batch, const LayerWeights& layer,
                              const StateLayout::Layer& state, const StatePool& pool) {
  Scratch& s = *scratch_;
  if (absl::Status r = Project(batch, layer); !r.ok()) return r;
  if (absl::Status r = Convolve(batch, layer, state, pool); !r.ok()) return r;
  if (absl::Status r = PrepareGates(batch.rows, layer); !r.ok()) return r;

  kernels::MixerArgs mixer;
  mixer.batch = batch;
  mixer.heads = arch_.num_heads;
  mixer.key_dim = arch_.key_dim;
  mixer.value_dim = arch_.value_dim;
  mixer.precond = precond_;
  mixer.q = arch_.use_short_conv ? s.q_conv.floats() : s.q_proj.floats();
  mixer.k = arch_.use_short_conv ? s.k_conv.floats() : s.k_proj.floats();
  mixer.v = s.v_conv.floats();
  mixer.beta = s.beta.floats();
  mixer.log_alpha = s.log_alpha.floats();
  mixer.s = pool.At(state.s);
  mixer.d = pool.At(state.d);
  mixer.o = s.v_proj.floats();
  if (absl::Status r = backend_->Mixer(mixer); !r.ok()) return r;

  kernels::OutputNormArgs norm;
  norm.rows = batch.rows;
  norm.heads = arch_.num_heads;
  norm.value_dim = arch_.value_dim;
  norm.eps = static_cast<float>(arch_.norm_eps);
  norm.weight = layer.o_norm.floats();
  norm.gate = s.gate.floats();
  norm.o = mixer.o;
  if (absl::Status r = backend_->OutputNorm(norm); !r.ok()) return r;

  const LinearJob output = {layer.o_proj.get(), s.x.floats(), true};
  return backend_->Linear({batch, norm.o, absl::MakeConstSpan(&output, 1)});
}

// Everything that reads attn_norm(x), as one group.
absl::Status Model::Project(const BatchView& batch, const LayerWeights& layer) {
  Scratch& s = *scratch_;
  kernels::RmsNormArgs norm;
  norm.rows = batch.rows;
  norm.dim = arch_.hidden_size;
  norm.eps = static_cast<float>(arch_.norm_eps);
  norm.x = s.x.floats();
  norm.weight = layer.attn_norm.floats();
  norm.y = s.normed.floats();
  if (absl::Status r = backend_->RmsNorm(norm); !r.ok()) return r;

  std::array<LinearJob, 6> jobs;
  size_t count = 0;
  jobs[count++] = {layer.q_proj.get(), s.q_proj.floats()};
  jobs[count++] = {layer.k_proj.get(), s.k_proj.floats()};
  jobs[count++] = {layer.v_proj.get(), s.v_proj.floats()};
  if (layer.b_proj != nullptr) jobs[count++] = {layer.b_proj.get(), s.beta.floats()};
  if (layer.a_proj != nullptr) jobs[count++] = {layer.a_proj.get(), s.log_alpha.floats()};
  if (layer.g_proj != nullptr) jobs[count++] = {layer.g_proj.get(), s.gate.floats()};
  return backend_->Linear({batch, norm.y, absl::MakeConstSpan(jobs.data(), count)});
}

// Short convolutions, then activation, norm and scale of q and k. As in fla: v always gets SiLU, q
// and k get theirs in the convolution when it is SiLU and after it otherwise.
absl::Status Model::Convolve(const BatchView& batch, const LayerWeights& layer,
                             const StateLayout::Layer& state, const StatePool& pool) {
  Scratch& s = *scratch_;
  const int64_t key = arch_.num_heads * arch_.key_dim;
  const bool fused_silu = arch_.use_short_conv && arch_.qk_activation == Activation::kSilu;
  kernels::ShortConvArgs conv;
  conv.batch = batch;
  if (arch_.use_short_conv) {
    conv.dim = key;
    conv.size = arch_.conv_size;
    conv.activation = fused_silu ? Activation::kSilu : Activation::kIdentity;
    conv.weight = layer.q_conv.floats();
    conv.bias = layer.q_conv_bias.floats();
    conv.x = s.q_proj.floats();
    conv.tail = pool.At(state.conv_q);
    conv.y = s.q_conv.floats();
    if (absl::Status r = backend_->ShortConv(conv); !r.ok()) return r;
    conv.weight = layer.k_conv.floats();
    conv.bias = layer.k_conv_bias.floats();
    conv.x = s.k_proj.floats();
    conv.tail = pool.At(state.conv_k);
    conv.y = s.k_conv.floats();
    if (absl::Status r = backend_->ShortConv(conv); !r.ok()) return r;
  }
  // Without short convolutions v still needs its SiLU: a convolution of one tap of weight 1.
  conv.dim = arch_.num_heads * arch_.value_dim;
  conv.size = arch_.use_short_conv ? arch_.conv_size : 1;
  conv.activation = Activation::kSilu;
  conv.weight = arch_.use_short_conv ? layer.v_conv.floats() : s.ones.floats();
  conv.bias = layer.v_conv_bias.floats();
  conv.x = s.v_proj.floats();
  conv.tail = pool.At(state.conv_v);
  conv.y = s.v_conv.floats();
  if (absl::Status r = backend_->ShortConv(conv); !r.ok()) return r;

  kernels::QkPrepareArgs prepare;
  prepare.rows = batch.rows;
  prepare.heads = arch_.num_heads;
  prepare.key_dim = arch_.key_dim;
  prepare.activation = fused_silu ? Activation::kIdentity : arch_.qk_activation;
  prepare.norm = arch_.qk_norm;
  prepare.q_scale = q_scale_;
  prepare.q = arch_.use_short_conv ? s.q_conv.floats() : s.q_proj.floats();
  prepare.k = arch_.use_short_conv ? s.k_conv.floats() : s.k_proj.floats();
  return backend_->QkPrepare(prepare);
}

absl::Status Model::PrepareGates(int64_t rows, const LayerWeights& layer) {
  Scratch& s = *scratch_;
  const float beta_scale = arch_.allow_neg_eigval ? 2.0F : 1.0F;
  if (arch_.use_beta || arch_.apf == Apf::kScalar) {
    kernels::GateArgs gates;
    gates.rows = rows;
    gates.heads = arch_.num_heads;
    gates.beta_scale = beta_scale;
    gates.beta = s.beta.floats();
    gates.alpha_bias = layer.a_bias.floats();
    gates.log_alpha = s.log_alpha.floats();
    if (absl::Status r = backend_->Gates(gates); !r.ok()) return r;
  }
  if (arch_.use_beta) return absl::OkStatus();
  return backend_->Fill(s.beta.floats(), beta_scale, rows * arch_.num_heads);
}

// x += down(silu(gate(h)) * up(h)), h = mlp_norm(x)
absl::Status Model::Mlp(const BatchView& batch, const LayerWeights& layer) {
  Scratch& s = *scratch_;
  kernels::RmsNormArgs norm;
  norm.rows = batch.rows;
  norm.dim = arch_.hidden_size;
  norm.eps = static_cast<float>(arch_.norm_eps);
  norm.x = s.x.floats();
  norm.weight = layer.mlp_norm.floats();
  norm.y = s.normed.floats();
  if (absl::Status r = backend_->RmsNorm(norm); !r.ok()) return r;

  const std::array<LinearJob, 2> inner = {
      {{layer.gate_proj.get(), s.mlp_gate.floats()}, {layer.up_proj.get(), s.mlp_up.floats()}}};
  if (absl::Status r = backend_->Linear({batch, norm.y, inner}); !r.ok()) return r;

  kernels::SwiGluArgs swiglu;
  swiglu.rows = batch.rows;
  swiglu.dim = arch_.intermediate_size;
  swiglu.gate = s.mlp_gate.floats();
  swiglu.up = s.mlp_up.floats();
  swiglu.y = s.mlp_gate.floats();
  if (absl::Status r = backend_->SwiGlu(swiglu); !r.ok()) return r;

  const LinearJob output = {layer.down_proj.get(), s.x.floats(), true};
  return backend_->Linear({batch, swiglu.y, absl::MakeConstSpan(&output, 1)});
}

// Final norm and lm_head of the asked rows only.
absl::Status Model::Logits(absl::Span<const int64_t> logit_rows, absl::Span<float> logits) {
  Scratch& s = *scratch_;
  const auto rows = static_cast<int64_t>(logit_rows.size());
  kernels::GatherRowsArgs gather;
  gather.indices = logit_rows;
  gather.dim = arch_.hidden_size;
  gather.x = s.x.floats();
  gather.y = s.last_x.floats();
  if (absl::Status r = backend_->GatherRows(gather); !r.ok()) return r;

  kernels::RmsNormArgs norm;
  norm.rows = rows;
  norm.dim = arch_.hidden_size;
  norm.eps = static_cast<float>(arch_.norm_eps);
  norm.x = gather.y;
  norm.weight = final_norm_.floats();
  norm.y = gather.y;
  if (absl::Status r = backend_->RmsNorm(norm); !r.ok()) return r;

  BatchView batch;
  batch.rows = rows;
  batch.decode_rows = rows;
  batch.spans = absl::MakeConstSpan(s.logit_spans).first(logit_rows.size());
  const LinearJob head = {lm_head_ != nullptr ? lm_head_.get() : embeddings_.get(),
                          s.logits.floats()};
  if (absl::Status r = backend_->Linear({batch, norm.y, absl::MakeConstSpan(&head, 1)}); !r.ok()) {
    return r;
  }
  return backend_->CopyToHost(logits.data(), s.logits.floats(), logits.size() * sizeof(float));
}

}  // namespace osdn
