// Which of a checkpoint's tensors are the model: training nests weights ("model", "state_dict",
// "module.", "_orig_mod.") and puts EMA copies and optimizer states beside them.
#ifndef OSDN_TOOLS_WEIGHTS_KEY_H_
#define OSDN_TOOLS_WEIGHTS_KEY_H_

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "tools/source_tensor.h"

namespace osdn::tools {

// One tensor of the source under the name it has inside the model.
struct SelectedTensor {
  std::string name;         // "model.norm.weight"
  std::string source_name;  // "state_dict.module.model.norm.weight"
  const SourceTensor* tensor = nullptr;
};

struct SelectedWeights {
  std::vector<SelectedTensor> tensors;  // in the order of their names in the source
  std::string prefix;                   // what was in front of their names: "state_dict.module."
  std::vector<std::string> notices;     // what was left out, for people
};

// Whether the name's first part is that of an optimizer, a scheduler or the like.
bool IsTrainingState(std::string_view name);

// Wrappers that compilation, FSDP and activation checkpointing put into names are taken out. The
// weights are those under `key` ("ema"; a trailing dot does not matter) or, where it is empty,
// under the one place that has a final norm and embeddings as fla names them; EMA copies count only
// if there is nothing else. Where no such place is found, all tensors are returned as they are, but
// for training state. INVALID_ARGUMENT when there are several places, or none under `key`, listing
// them.
absl::StatusOr<SelectedWeights> SelectWeights(const std::map<std::string, SourceTensor>& tensors,
                                              const std::string& key);

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_WEIGHTS_KEY_H_
