// The tensors of a Hugging Face checkpoint directory: one model.safetensors, or shards listed by
// model.safetensors.index.json.
#ifndef OSDN_TOOLS_CHECKPOINT_H_
#define OSDN_TOOLS_CHECKPOINT_H_

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/safetensors.h"
#include "engine/tensor_specs.h"

namespace osdn::tools {

// Immutable after Open. Tensors point into the mapped files and live as long as the Checkpoint.
class Checkpoint {
 public:
  // NOT_FOUND when there is neither file, INVALID_ARGUMENT for an index that contradicts its shards
  // (every contradiction is listed), SafetensorsFile's errors for a damaged file.
  static absl::StatusOr<Checkpoint> Open(const std::string& dir);

  const std::map<std::string, const SafetensorsEntry*>& tensors() const { return tensors_; }
  const SafetensorsEntry* Find(const std::string& name) const;

 private:
  Checkpoint() = default;
  absl::Status OpenSingle(const std::string& path);
  absl::Status OpenShards(const std::string& dir, const std::string& index_path);

  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, const SafetensorsEntry*> tensors_;
};

// Compares the checkpoint with what the config asks for. INVALID_ARGUMENT lists every missing,
// unexpected and misshapen tensor (both shapes) and every unreadable dtype at once. `*notices` gets
// a line for each tensor that is present but not needed (lm_head.weight of a tied model, when it
// equals the embeddings; when it does not, that is an error).
absl::Status CheckTensors(const Checkpoint& checkpoint, const std::vector<TensorSpec>& specs,
                          bool tied, std::vector<std::string>* notices);

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_CHECKPOINT_H_
