// Whether a checkpoint's tensors are those that its config asks for.
#ifndef OSDN_TOOLS_CHECK_TENSORS_H_
#define OSDN_TOOLS_CHECK_TENSORS_H_

#include <cstddef>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "engine/tensor_specs.h"
#include "tools/source_tensor.h"

namespace osdn::tools {

// INVALID_ARGUMENT lists every missing (with the unexpected tensors nearest to it), unexpected and
// misshapen tensor (both shapes) and every unreadable dtype at once. `*notices` gets a line for
// each tensor that is present but not needed (lm_head.weight of a tied model, when it equals the
// embeddings; when it does not, that is an error).
absl::Status CheckTensors(const std::map<std::string, SourceTensor>& tensors,
                          const std::vector<TensorSpec>& specs, bool tied,
                          std::vector<std::string>* notices);

// Changes of one character that turn `a` into `b`, counted up to `limit`. For tests too.
size_t EditDistance(std::string_view a, std::string_view b, size_t limit);

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_CHECK_TENSORS_H_
