#include "engine/tensor_specs.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/safetensors.h"

namespace osdn {

using kernels::DType;

namespace {

constexpr char kEmbeddings[] = "model.embeddings.weight";
constexpr char kLmHead[] = "lm_head.weight";

class SpecList {
 public:
  void Matrix(std::string name, int64_t rows, int64_t columns) {
    specs_.push_back({std::move(name), {rows, columns}, TensorKind::kMatrix});
  }
  void Vector(std::string name, std::vector<int64_t> shape) {
    specs_.push_back({std::move(name), std::move(shape), TensorKind::kVector});
  }
  std::vector<TensorSpec> Take() { return std::move(specs_); }

 private:
  std::vector<TensorSpec> specs_;
};

void AddConvolution(const ArchitectureConfig& arch, const std::string& name, int64_t dim,
                    SpecList* list) {
  if (!arch.use_short_conv) return;
  list->Vector(absl::StrCat(name, ".weight"), {dim, 1, arch.conv_size});
  if (arch.conv_bias) list->Vector(absl::StrCat(name, ".bias"), {dim});
}

void AddAttention(const ArchitectureConfig& arch, const std::string& prefix, SpecList* list) {
  const int64_t hidden = arch.hidden_size;
  const int64_t key = arch.num_heads * arch.key_dim;
  const int64_t value = arch.num_heads * arch.value_dim;
  list->Matrix(absl::StrCat(prefix, "q_proj.weight"), key, hidden);
  list->Matrix(absl::StrCat(prefix, "k_proj.weight"), key, hidden);
  list->Matrix(absl::StrCat(prefix, "v_proj.weight"), value, hidden);
  if (arch.use_beta) list->Vector(absl::StrCat(prefix, "b_proj.weight"), {arch.num_heads, hidden});
  if (arch.apf == Apf::kScalar) {
    list->Vector(absl::StrCat(prefix, "a_proj.weight"), {arch.num_heads, hidden});
    list->Vector(absl::StrCat(prefix, "a_proj.bias"), {arch.num_heads});
  }
  if (arch.use_gate) list->Matrix(absl::StrCat(prefix, "g_proj.weight"), value, hidden);
  AddConvolution(arch, absl::StrCat(prefix, "q_conv1d"), key, list);
  AddConvolution(arch, absl::StrCat(prefix, "k_conv1d"), key, list);
  AddConvolution(arch, absl::StrCat(prefix, "v_conv1d"), value, list);
  list->Vector(absl::StrCat(prefix, "o_norm.weight"), {arch.value_dim});
  list->Matrix(absl::StrCat(prefix, "o_proj.weight"), hidden, value);
}

}  // namespace

std::vector<TensorSpec> TensorSpecs(const ArchitectureConfig& arch) {
  SpecList list;
  list.Matrix(kEmbeddings, arch.vocab_size, arch.hidden_size);
  for (int64_t i = 0; i < arch.num_layers; ++i) {
    const std::string layer = absl::StrCat("model.layers.", i, ".");
    list.Vector(absl::StrCat(layer, "attn_norm.weight"), {arch.hidden_size});
    AddAttention(arch, absl::StrCat(layer, "attn."), &list);
    list.Vector(absl::StrCat(layer, "mlp_norm.weight"), {arch.hidden_size});
    list.Matrix(absl::StrCat(layer, "mlp.gate_proj.weight"), arch.intermediate_size,
                arch.hidden_size);
    list.Matrix(absl::StrCat(layer, "mlp.up_proj.weight"), arch.intermediate_size,
                arch.hidden_size);
    list.Matrix(absl::StrCat(layer, "mlp.down_proj.weight"), arch.hidden_size,
                arch.intermediate_size);
  }
  list.Vector("model.norm.weight", {arch.hidden_size});
  if (!arch.tie_embeddings) list.Matrix(kLmHead, arch.vocab_size, arch.hidden_size);
  return list.Take();
}

DType StoredDType(const TensorSpec& spec, DType model) {
  if (spec.kind == TensorKind::kVector) return DType::kF32;
  const bool sensitive = spec.name == kEmbeddings || spec.name == kLmHead;
  return model == DType::kI4 && sensitive ? DType::kI8 : model;
}

std::string ScaleName(const std::string& tensor) { return absl::StrCat(tensor, ".scale"); }

std::vector<StoredTensor> StoredTensors(const TensorSpec& spec, DType stored) {
  switch (stored) {
    case DType::kF32:
      return {{spec.name, "F32", spec.shape}};
    case DType::kBF16:
      return {{spec.name, "BF16", spec.shape}};
    case DType::kI8:
      return {{spec.name, "I8", spec.shape}, {ScaleName(spec.name), "F32", {spec.shape[0]}}};
    case DType::kI4:
      break;
  }
  const int64_t rows = spec.shape[0];
  const int64_t columns = spec.shape[1];
  const int64_t groups = kernels::Int4Groups(columns);
  return {{spec.name, "U8", {rows, kernels::RowBytes(DType::kI4, columns)}},
          {ScaleName(spec.name), "BF16", {rows, groups}}};
}

int64_t StoredBytes(const TensorSpec& spec, DType stored) {
  int64_t bytes = 0;
  for (const StoredTensor& entry : StoredTensors(spec, stored)) {
    auto size = static_cast<int64_t>(SafetensorsDTypeSize(entry.dtype));
    for (const int64_t dim : entry.shape) size *= dim;
    bytes += size;
  }
  return bytes;
}

}  // namespace osdn
