// Model: from mapped weights to what the backend computes with, and the scratch.
#include <cmath>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/model_internal.h"
#include "engine/tensor_specs.h"

namespace osdn {

using kernels::Buffer;
using kernels::LinearWeight;

namespace {

// `arch` is the caller's, `weights` were checked against a config: they must be of the same model,
// since the backend trusts shapes.
absl::Status CheckShapes(const ArchitectureConfig& arch, const Weights& weights) {
  for (const TensorSpec& spec : TensorSpecs(arch)) {
    const kernels::HostTensor tensor = weights.Get(spec.name);
    if (tensor.data != nullptr && tensor.shape == spec.shape) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "tensor ", spec.name, ": the weights were loaded for another architecture (shape [",
        absl::StrJoin(tensor.shape, ","), "], want [", absl::StrJoin(spec.shape, ","), "])"));
  }
  return absl::OkStatus();
}

kernels::LayerSpec SpecOf(const ArchitectureConfig& arch) {
  kernels::LayerSpec spec;
  spec.hidden_size = arch.hidden_size;
  spec.heads = arch.num_heads;
  spec.key_dim = arch.key_dim;
  spec.value_dim = arch.value_dim;
  spec.intermediate_size = arch.intermediate_size;
  spec.conv_size = arch.use_short_conv ? arch.conv_size : 0;
  spec.norm_eps = static_cast<float>(arch.norm_eps);
  spec.use_gate = arch.use_gate;
  spec.use_beta = arch.use_beta;
  spec.use_apf = arch.apf == Apf::kScalar;
  spec.beta_scale = arch.allow_neg_eigval ? 2.0F : 1.0F;
  spec.qk_norm = arch.qk_norm;
  spec.qk_activation = arch.qk_activation;
  spec.q_scale = static_cast<float>(1 / std::sqrt(static_cast<double>(arch.key_dim)));
  spec.precond.eta = static_cast<float>(arch.eta);
  spec.precond.eps = static_cast<float>(arch.eps);
  spec.precond.d_min = static_cast<float>(arch.d_min);
  spec.precond.d_max = static_cast<float>(arch.d_max);
  spec.precond.anchor = static_cast<float>(arch.apf_anchor);
  spec.precond.enabled = !arch.is_plain_delta_net();
  return spec;
}

}  // namespace

// Moves tensors and scratch to the backend, counting bytes. The first error sticks and turns what
// follows into nothing, so that the lists below stay lists.
class Model::Loader {
 public:
  Loader(kernels::Backend* backend, const Weights* weights, size_t* bytes)
      : backend_(backend), weights_(weights), bytes_(bytes) {}

  const absl::Status& status() const { return status_; }

  void Matrix(const std::string& name, std::unique_ptr<LinearWeight>* out) {
    if (!status_.ok()) return;
    auto prepared = backend_->PrepareLinear(weights_->Get(name));
    if (!prepared.ok()) return Fail(absl::StrCat("tensor ", name), prepared.status());
    *bytes_ += (*prepared)->extra_bytes();
    *out = *std::move(prepared);
    weights_->Release(name);
  }

  void Vector(const std::string& name, Buffer* out) {
    const kernels::HostTensor tensor = weights_->Get(name);
    const size_t size = static_cast<size_t>(tensor.elements()) * sizeof(float);
    Allocate(name, tensor.elements(), out);
    if (!status_.ok()) return;
    absl::Status copied = backend_->CopyFromHost(out->data(), tensor.data, size);
    if (!copied.ok()) Fail(absl::StrCat("tensor ", name), copied);
  }

  void Allocate(const std::string& name, int64_t floats, Buffer* out) {
    if (!status_.ok()) return;
    const size_t size = static_cast<size_t>(floats) * sizeof(float);
    absl::StatusOr<Buffer> buffer = backend_->Allocate(size);
    if (!buffer.ok()) return Fail(name, buffer.status());
    *bytes_ += size;
    *out = *std::move(buffer);
  }

 private:
  void Fail(const std::string& what, const absl::Status& cause) {
    status_ = absl::Status(cause.code(), absl::StrCat(what, ": ", cause.message()));
  }

  kernels::Backend* backend_;
  const Weights* weights_;
  size_t* bytes_;
  absl::Status status_;
};

Model::Model(const ArchitectureConfig& arch, kernels::Backend* backend, const Options& options)
    : arch_(arch),
      backend_(backend),
      options_(options),
      slot_floats_(StateLayout(arch).slot_floats()) {}

Model::~Model() = default;

absl::StatusOr<std::unique_ptr<Model>> Model::Create(const ArchitectureConfig& arch,
                                                     const Weights& weights,
                                                     kernels::Backend* backend,
                                                     const Options& options) {
  if (absl::Status s = ValidateArchitecture(arch); !s.ok()) return s;
  if (absl::Status s = CheckShapes(arch, weights); !s.ok()) return s;
  constexpr int64_t kMaxRows = 1 << 20;
  const auto in_range = [](int64_t rows) { return rows >= 1 && rows <= kMaxRows; };
  if (!in_range(options.max_rows) || !in_range(options.max_logit_rows)) {
    return absl::InvalidArgumentError(absl::StrCat("model: max_rows ", options.max_rows,
                                                   " and max_logit_rows ", options.max_logit_rows,
                                                   " must lie in [1, ", kMaxRows, "]"));
  }
  std::unique_ptr<Model> model(new Model(arch, backend, options));
  if (absl::Status s = model->Prepare(weights); !s.ok()) return s;
  if (absl::Status s = model->AllocateScratch(); !s.ok()) return s;
  if (absl::Status s = backend->Synchronize(); !s.ok()) return s;
  return model;
}

void Model::LayerWeights::SetViews() {
  mixer.norm = attn_norm.floats();
  mixer.q_proj = q_proj.get();
  mixer.k_proj = k_proj.get();
  mixer.v_proj = v_proj.get();
  mixer.b_proj = b_proj.get();
  mixer.a_proj = a_proj.get();
  mixer.g_proj = g_proj.get();
  mixer.a_bias = a_bias.floats();
  mixer.q_conv = q_conv.floats();
  mixer.k_conv = k_conv.floats();
  mixer.v_conv = v_conv.floats();
  mixer.q_conv_bias = q_conv_bias.floats();
  mixer.k_conv_bias = k_conv_bias.floats();
  mixer.v_conv_bias = v_conv_bias.floats();
  mixer.o_norm = o_norm.floats();
  mixer.o_proj = o_proj.get();
  mlp.norm = mlp_norm.floats();
  mlp.gate_proj = gate_proj.get();
  mlp.up_proj = up_proj.get();
  mlp.down_proj = down_proj.get();
}

absl::Status Model::Prepare(const Weights& weights) {
  Loader load(backend_, &weights, &extra_bytes_);
  load.Matrix("model.embeddings.weight", &embeddings_);
  layers_.resize(static_cast<size_t>(arch_.num_layers));
  for (size_t i = 0; i < layers_.size(); ++i) {
    LayerWeights& layer = layers_[i];
    const std::string name = absl::StrCat("model.layers.", i, ".");
    const std::string attn = absl::StrCat(name, "attn.");
    load.Vector(absl::StrCat(name, "attn_norm.weight"), &layer.attn_norm);
    load.Matrix(absl::StrCat(attn, "q_proj.weight"), &layer.q_proj);
    load.Matrix(absl::StrCat(attn, "k_proj.weight"), &layer.k_proj);
    load.Matrix(absl::StrCat(attn, "v_proj.weight"), &layer.v_proj);
    if (arch_.use_beta) load.Matrix(absl::StrCat(attn, "b_proj.weight"), &layer.b_proj);
    if (arch_.apf == Apf::kScalar) {
      load.Matrix(absl::StrCat(attn, "a_proj.weight"), &layer.a_proj);
      load.Vector(absl::StrCat(attn, "a_proj.bias"), &layer.a_bias);
    }
    if (arch_.use_gate) load.Matrix(absl::StrCat(attn, "g_proj.weight"), &layer.g_proj);
    if (arch_.use_short_conv) {
      load.Vector(absl::StrCat(attn, "q_conv1d.weight"), &layer.q_conv);
      load.Vector(absl::StrCat(attn, "k_conv1d.weight"), &layer.k_conv);
      load.Vector(absl::StrCat(attn, "v_conv1d.weight"), &layer.v_conv);
      if (arch_.conv_bias) {
        load.Vector(absl::StrCat(attn, "q_conv1d.bias"), &layer.q_conv_bias);
        load.Vector(absl::StrCat(attn, "k_conv1d.bias"), &layer.k_conv_bias);
        load.Vector(absl::StrCat(attn, "v_conv1d.bias"), &layer.v_conv_bias);
      }
    }
    load.Vector(absl::StrCat(attn, "o_norm.weight"), &layer.o_norm);
    load.Matrix(absl::StrCat(attn, "o_proj.weight"), &layer.o_proj);
    load.Vector(absl::StrCat(name, "mlp_norm.weight"), &layer.mlp_norm);
    load.Matrix(absl::StrCat(name, "mlp.gate_proj.weight"), &layer.gate_proj);
    load.Matrix(absl::StrCat(name, "mlp.up_proj.weight"), &layer.up_proj);
    load.Matrix(absl::StrCat(name, "mlp.down_proj.weight"), &layer.down_proj);
    layer.SetViews();
  }
  load.Vector("model.norm.weight", &final_norm_);
  if (!arch_.tie_embeddings) load.Matrix("lm_head.weight", &lm_head_);
  return load.status();
}

absl::Status Model::AllocateScratch() {
  auto runner = backend_->CreateLayerRunner(SpecOf(arch_), options_.max_rows);
  if (!runner.ok()) return runner.status();
  runner_ = *std::move(runner);
  extra_bytes_ += runner_->scratch_bytes();

  scratch_ = std::make_unique<Scratch>();
  Scratch& s = *scratch_;
  Loader load(backend_, nullptr, &extra_bytes_);
  load.Allocate(absl::StrCat("scratch of ", options_.max_rows, " rows"),
                options_.max_rows * arch_.hidden_size, &s.x);

  const int64_t logit_rows = options_.max_logit_rows;
  const std::string logits_name = absl::StrCat("scratch of ", logit_rows, " rows of logits");
  load.Allocate(logits_name, logit_rows * arch_.hidden_size, &s.last_x);
  load.Allocate(logits_name, logit_rows * arch_.vocab_size, &s.logits);
  for (int64_t i = 0; i < logit_rows; ++i) {
    s.logit_spans.push_back({i, 1, 0, static_cast<int32_t>(i)});
  }
  return load.status();
}

}  // namespace osdn
