// The list of tensors of a model, declared once; load, convert, inspect and check all use it.
#ifndef OSDN_ENGINE_TENSOR_SPECS_H_
#define OSDN_ENGINE_TENSOR_SPECS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "engine/model_config.h"
#include "kernels/include/tensor.h"

namespace osdn {

enum class TensorKind : uint8_t {
  kMatrix,  // stored in the model's dtype, or near it (StoredDType)
  kVector,  // norms, convolutions, biases, gate projections: always float32
};

struct TensorSpec {
  std::string name;  // canonical = fla's name (docs/model.md section 4)
  std::vector<int64_t> shape;
  TensorKind kind = TensorKind::kMatrix;
};

// Every tensor the architecture has, in file order (the order in which a forward pass reads them).
std::vector<TensorSpec> TensorSpecs(const ArchitectureConfig& arch);

// How a tensor is stored in a model of dtype `model`, decided here and nowhere else: vectors as
// float32; matrices in the model's dtype, but the embeddings and lm_head of an int4 model as int8
// (each of their rows is one token's, and logits feel its rounding directly).
kernels::DType StoredDType(const TensorSpec& spec, kernels::DType model);

// One entry of weights.safetensors.
struct StoredTensor {
  std::string name;
  std::string dtype;  // safetensors' name
  std::vector<int64_t> shape;
};

// The entries that hold one tensor: itself (int4 as U8 [out, ceil(in / 2)]), then, when it is
// quantized, its scales under ScaleName (docs/model-format.md).
std::vector<StoredTensor> StoredTensors(const TensorSpec& spec, kernels::DType stored);
std::string ScaleName(const std::string& tensor);

// Bytes of those entries together.
int64_t StoredBytes(const TensorSpec& spec, kernels::DType stored);

}  // namespace osdn

#endif  // OSDN_ENGINE_TENSOR_SPECS_H_
