#include "kernels/composed_layers.h"

#include <array>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace osdn::kernels {
namespace {

// Activations of one block, [max_rows, dim] each.
struct Scratch {
  Buffer normed;  // hidden
  Buffer q_proj, k_proj;
  Buffer v_proj;  // free after the convolution: the mixer's output then goes here
  Buffer q_conv, k_conv, v_conv;
  Buffer gate;
  Buffer beta, log_alpha;
  Buffer mlp_gate, mlp_up;
  Buffer ones;  // [heads * V], the size-1 convolution of models without one
};

class ComposedLayers final : public LayerRunner {
 public:
  ComposedLayers(Backend* backend, const LayerSpec& spec) : backend_(backend), spec_(spec) {}

  absl::Status Allocate(int64_t max_rows);
  absl::Status Mixer(const MixerLayerArgs& args) override;
  absl::Status Mlp(const MlpLayerArgs& args) override;
  size_t scratch_bytes() const override { return scratch_bytes_; }

 private:
  absl::Status Allocate(int64_t max_rows, int64_t dim, Buffer* out);
  absl::Status Norm(int64_t rows, const float* x, const float* weight);
  absl::Status Project(const BatchView& batch, const MixerLayerWeights& weights);
  absl::Status Convolve(const MixerLayerArgs& args);
  absl::Status PrepareGates(int64_t rows, const MixerLayerWeights& weights);

  float* q() const { return spec_.conv_size > 0 ? s_.q_conv.floats() : s_.q_proj.floats(); }
  float* k() const { return spec_.conv_size > 0 ? s_.k_conv.floats() : s_.k_proj.floats(); }

  Backend* backend_;
  LayerSpec spec_;
  Scratch s_;
  size_t scratch_bytes_ = 0;
};

absl::Status ComposedLayers::Allocate(int64_t max_rows, int64_t dim, Buffer* out) {
  const size_t bytes = static_cast<size_t>(max_rows * dim) * sizeof(float);
  absl::StatusOr<Buffer> buffer = backend_->Allocate(bytes);
  if (!buffer.ok()) {
    return absl::Status(buffer.status().code(), absl::StrCat("scratch of ", max_rows,
                                                             " rows: ", buffer.status().message()));
  }
  *out = *std::move(buffer);
  scratch_bytes_ += bytes;
  return absl::OkStatus();
}

absl::Status ComposedLayers::Allocate(int64_t max_rows) {
  const int64_t key = spec_.heads * spec_.key_dim;
  const int64_t value = spec_.heads * spec_.value_dim;
  const int64_t conv_key = spec_.conv_size > 0 ? key : 0;
  const std::pair<int64_t, Buffer*> buffers[] = {
      {spec_.hidden_size, &s_.normed},
      {key, &s_.q_proj},
      {key, &s_.k_proj},
      {value, &s_.v_proj},
      {conv_key, &s_.q_conv},
      {conv_key, &s_.k_conv},
      {value, &s_.v_conv},
      {spec_.use_gate ? value : 0, &s_.gate},
      {spec_.heads, &s_.beta},
      {spec_.use_apf ? spec_.heads : 0, &s_.log_alpha},
      {spec_.intermediate_size, &s_.mlp_gate},
      {spec_.intermediate_size, &s_.mlp_up},
  };
  for (const auto& [dim, buffer] : buffers) {
    if (dim == 0) continue;
    if (absl::Status s = Allocate(max_rows, dim, buffer); !s.ok()) return s;
  }
  if (spec_.conv_size > 0) return absl::OkStatus();
  if (absl::Status s = Allocate(1, value, &s_.ones); !s.ok()) return s;
  return backend_->Fill(s_.ones.floats(), 1.0F, value);
}

absl::Status ComposedLayers::Norm(int64_t rows, const float* x, const float* weight) {
  RmsNormArgs norm;
  norm.rows = rows;
  norm.dim = spec_.hidden_size;
  norm.eps = spec_.norm_eps;
  norm.x = x;
  norm.weight = weight;
  norm.y = s_.normed.floats();
  return backend_->RmsNorm(norm);
}

absl::Status ComposedLayers::Mixer(const MixerLayerArgs& args) {
  const MixerLayerWeights& weights = *args.weights;
  if (absl::Status r = Norm(args.batch.rows, args.x, weights.norm); !r.ok()) return r;
  if (absl::Status r = Project(args.batch, weights); !r.ok()) return r;
  if (absl::Status r = Convolve(args); !r.ok()) return r;
  if (absl::Status r = PrepareGates(args.batch.rows, weights); !r.ok()) return r;

  MixerArgs mixer;
  mixer.batch = args.batch;
  mixer.heads = spec_.heads;
  mixer.key_dim = spec_.key_dim;
  mixer.value_dim = spec_.value_dim;
  mixer.precond = spec_.precond;
  mixer.q = q();
  mixer.k = k();
  mixer.v = s_.v_conv.floats();
  mixer.beta = s_.beta.floats();
  mixer.log_alpha = s_.log_alpha.floats();
  mixer.s = args.s;
  mixer.d = args.d;
  mixer.o = s_.v_proj.floats();
  if (absl::Status r = backend_->Mixer(mixer); !r.ok()) return r;

  OutputNormArgs norm;
  norm.rows = args.batch.rows;
  norm.heads = spec_.heads;
  norm.value_dim = spec_.value_dim;
  norm.eps = spec_.norm_eps;
  norm.weight = weights.o_norm;
  norm.gate = s_.gate.floats();
  norm.o = mixer.o;
  if (absl::Status r = backend_->OutputNorm(norm); !r.ok()) return r;

  const LinearJob output = {weights.o_proj, args.x, true};
  return backend_->Linear({args.batch, norm.o, absl::MakeConstSpan(&output, 1)});
}

// Everything that reads norm(x), as one group.
absl::Status ComposedLayers::Project(const BatchView& batch, const MixerLayerWeights& weights) {
  std::array<LinearJob, 6> jobs;
  size_t count = 0;
  jobs[count++] = {weights.q_proj, s_.q_proj.floats()};
  jobs[count++] = {weights.k_proj, s_.k_proj.floats()};
  jobs[count++] = {weights.v_proj, s_.v_proj.floats()};
  if (spec_.use_beta) jobs[count++] = {weights.b_proj, s_.beta.floats()};
  if (spec_.use_apf) jobs[count++] = {weights.a_proj, s_.log_alpha.floats()};
  if (spec_.use_gate) jobs[count++] = {weights.g_proj, s_.gate.floats()};
  return backend_->Linear({batch, s_.normed.floats(), absl::MakeConstSpan(jobs.data(), count)});
}

// Short convolutions, then activation, norm and scale of q and k. As in fla: v always gets SiLU, q
// and k get theirs in the convolution when it is SiLU and after it otherwise.
absl::Status ComposedLayers::Convolve(const MixerLayerArgs& args) {
  const MixerLayerWeights& weights = *args.weights;
  const bool convolved = spec_.conv_size > 0;
  const bool fused_silu = convolved && spec_.qk_activation == Activation::kSilu;
  ShortConvArgs conv;
  conv.batch = args.batch;
  if (convolved) {
    conv.dim = spec_.heads * spec_.key_dim;
    conv.size = spec_.conv_size;
    conv.activation = fused_silu ? Activation::kSilu : Activation::kIdentity;
    conv.weight = weights.q_conv;
    conv.bias = weights.q_conv_bias;
    conv.x = s_.q_proj.floats();
    conv.tail = args.conv_q;
    conv.y = s_.q_conv.floats();
    if (absl::Status r = backend_->ShortConv(conv); !r.ok()) return r;
    conv.weight = weights.k_conv;
    conv.bias = weights.k_conv_bias;
    conv.x = s_.k_proj.floats();
    conv.tail = args.conv_k;
    conv.y = s_.k_conv.floats();
    if (absl::Status r = backend_->ShortConv(conv); !r.ok()) return r;
  }
  // Without short convolutions v still needs its SiLU: a convolution of one tap of weight 1.
  conv.dim = spec_.heads * spec_.value_dim;
  conv.size = convolved ? spec_.conv_size : 1;
  conv.activation = Activation::kSilu;
  conv.weight = convolved ? weights.v_conv : s_.ones.floats();
  conv.bias = weights.v_conv_bias;
  conv.x = s_.v_proj.floats();
  conv.tail = args.conv_v;
  conv.y = s_.v_conv.floats();
  if (absl::Status r = backend_->ShortConv(conv); !r.ok()) return r;

  QkPrepareArgs prepare;
  prepare.rows = args.batch.rows;
  prepare.heads = spec_.heads;
  prepare.key_dim = spec_.key_dim;
  prepare.activation = fused_silu ? Activation::kIdentity : spec_.qk_activation;
  prepare.norm = spec_.qk_norm;
  prepare.q_scale = spec_.q_scale;
  prepare.q = q();
  prepare.k = k();
  return backend_->QkPrepare(prepare);
}

absl::Status ComposedLayers::PrepareGates(int64_t rows, const MixerLayerWeights& weights) {
  if (spec_.use_beta || spec_.use_apf) {
    GateArgs gates;
    gates.rows = rows;
    gates.heads = spec_.heads;
    gates.beta_scale = spec_.beta_scale;
    gates.beta = s_.beta.floats();
    gates.alpha_bias = weights.a_bias;
    gates.log_alpha = s_.log_alpha.floats();
    if (absl::Status r = backend_->Gates(gates); !r.ok()) return r;
  }
  if (spec_.use_beta) return absl::OkStatus();
  return backend_->Fill(s_.beta.floats(), spec_.beta_scale, rows * spec_.heads);
}

absl::Status ComposedLayers::Mlp(const MlpLayerArgs& args) {
  const MlpLayerWeights& weights = *args.weights;
  if (absl::Status r = Norm(args.batch.rows, args.x, weights.norm); !r.ok()) return r;

  const std::array<LinearJob, 2> inner = {
      {{weights.gate_proj, s_.mlp_gate.floats()}, {weights.up_proj, s_.mlp_up.floats()}}};
  if (absl::Status r = backend_->Linear({args.batch, s_.normed.floats(), inner}); !r.ok()) return r;

  SwiGluArgs swiglu;
  swiglu.rows = args.batch.rows;
  swiglu.dim = spec_.intermediate_size;
  swiglu.gate = s_.mlp_gate.floats();
  swiglu.up = s_.mlp_up.floats();
  swiglu.y = s_.mlp_gate.floats();
  if (absl::Status r = backend_->SwiGlu(swiglu); !r.ok()) return r;

  const LinearJob output = {weights.down_proj, args.x, true};
  return backend_->Linear({args.batch, swiglu.y, absl::MakeConstSpan(&output, 1)});
}

}  // namespace

absl::StatusOr<std::unique_ptr<LayerRunner>> CreateComposedLayers(Backend* backend,
                                                                  const LayerSpec& spec,
                                                                  int64_t max_rows) {
  auto layers = std::make_unique<ComposedLayers>(backend, spec);
  if (absl::Status s = layers->Allocate(max_rows); !s.ok()) return s;
  return layers;
}

absl::StatusOr<std::unique_ptr<LayerRunner>> Backend::CreateLayerRunner(const LayerSpec& spec,
                                                                        int64_t max_rows) {
  return CreateComposedLayers(this, spec, max_rows);
}

}  // namespace osdn::kernels
