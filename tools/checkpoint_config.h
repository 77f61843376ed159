// A checkpoint's config.json (flash-linear-attention's layout) in the terms of model.yaml.
// docs/converting.md lists the keys.
#ifndef OSDN_TOOLS_CHECKPOINT_CONFIG_H_
#define OSDN_TOOLS_CHECKPOINT_CONFIG_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model_config.h"

namespace osdn::tools {

struct CheckpointConfig {
  std::string model_type;  // "osdn" or "delta_net"
  ArchitectureConfig arch;
  std::optional<int32_t> bos_id;
  std::vector<int32_t> eos_ids;
};

// Absent keys take fla's defaults. INVALID_ARGUMENT lists every problem at once, each by its key:
// wrong types, values out of range, keys that change the computation in a way that is not
// supported, and unknown keys (which might). Keys known to change nothing at inference are
// accepted.
absl::StatusOr<CheckpointConfig> ParseCheckpointConfig(std::string_view json_text);

// generation_config.json: its bos_token_id and eos_token_id replace those of config.json, as in
// Hugging Face's generate(). Everything else in it (sampling defaults) is not used.
absl::Status ApplyGenerationConfig(std::string_view json_text, CheckpointConfig* config);

// tokenizer_config.json: `add_bos_token`, when it says so.
absl::StatusOr<std::optional<bool>> ParseAddBosToken(std::string_view json_text);

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_CHECKPOINT_CONFIG_H_
