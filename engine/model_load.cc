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

  void Fill(float value, int64_t count, Buffer* out) {
    if (!status_.ok()) return;
    status_ = backend_->Fill(out->floats(), value, count);
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
      q_scale_(static_cast<float>(1 / std::sqrt(static_cast<double>(arch.key_dim)))),
      slot_floats_(StateLayout(arch).slot_floats()) {
  precond_.eta = static_cast<float>(arch.eta);
  precond_.eps = static_cast<float>(arch.eps);
  precond_.d_min = static_cast<float>(arch.d_min);
  precond_.d_max = static_cast<float>(arch.d_max);
  precond_.anchor = static_cast<float>(arch.apf_anchor);
  precond_.enabled = !arch.is_plain_delta_net();
}

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
  }
  load.Vector("model.norm.weight", &final_norm_);
  if (!arch_.tie_embeddings) load.Matrix("lm_head.weight", &lm_head_);
  return load.status();
}

absl::Status Model::AllocateScratch() {
  const int64_t rows = options_.max_rows;
  const int64_t key = arch_.num_heads * arch_.key_dim;
  const int64_t value = arch_.num_heads * arch_.value_dim;
  scratch_ = std::make_unique<Scratch>();
  Scratch& s = *scratch_;
  const std::string name = absl::StrCat("scratch of ", rows, " rows");
  Loader load(backend_, nullptr, &extra_bytes_);
  load.Allocate(name, rows * arch_.hidden_size, &s.x);
  load.Allocate(name, rows * arch_.hidden_size, &s.normed);
  load.Allocate(name, rows * key, &s.q_proj);
  load.Allocate(name, rows * key, &s.k_proj);
  load.Allocate(name, rows * value, &s.v_proj);
  if (arch_.use_short_conv) {
    load.Allocate(name, rows * key, &s.q_conv);
    load.Allocate(name, rows * key, &s.k_conv);
  } else {
    load.Allocate(name, value, &s.ones);
    load.Fill(1.0F, value, &s.ones);
  }
  load.Allocate(name, rows * value, &s.v_conv);
  if (arch_.use_gate) load.Allocate(name, rows * value, &s.gate);
  load.Allocate(name, rows * arch_.num_heads, &s.beta);
  if (arch_.apf == Apf::kScalar) load.Allocate(name, rows * arch_.num_heads, &s.log_alpha);
  load.Allocate(name, rows * arch_.intermediate_size, &s.mlp_gate);
  load.Allocate(name, rows * arch_.intermediate_size, &s.mlp_up);

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
