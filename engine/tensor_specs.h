// The list of tensors of a model, declared once; load, convert, inspect and check all use it.
#ifndef OSDN_ENGINE_TENSOR_SPECS_H_
#define OSDN_ENGINE_TENSOR_SPECS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "engine/model_config.h"

namespace osdn {

enum class TensorKind : uint8_t {
  kMatrix,  // stored in the model's dtype
  kVector,  // norms, convolutions, biases, gate projections: always float32
};

struct TensorSpec {
  std::string name;  // canonical = fla's name (docs/model.md section 4)
  std::vector<int64_t> shape;
  TensorKind kind = TensorKind::kMatrix;
};

// Every tensor the architecture has, in file order (the order in which a forward pass reads them).
std::vector<TensorSpec> TensorSpecs(const ArchitectureConfig& arch);

}  // namespace osdn

#endif  // OSDN_ENGINE_TENSOR_SPECS_H_
