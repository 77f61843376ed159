// The whole network in float64, token by token, written from docs/model.md without any of the
// engine's or the kernels' code: what Model is compared with.
#ifndef OSDN_TESTS_UNIT_ENGINE_NAIVE_MODEL_H_
#define OSDN_TESTS_UNIT_ENGINE_NAIVE_MODEL_H_

#include <cstdint>
#include <vector>

#include "engine/model_config.h"
#include "tests/unit/engine/test_support.h"

namespace osdn::testing_support {

// Logits [ids.size(), vocab].
std::vector<double> NaiveLogits(const ArchitectureConfig& arch, const TensorMap& tensors,
                                const std::vector<int32_t>& ids);

}  // namespace osdn::testing_support

#endif  // OSDN_TESTS_UNIT_ENGINE_NAIVE_MODEL_H_
