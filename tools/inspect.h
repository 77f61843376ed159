// What a model directory holds.
#ifndef OSDN_TOOLS_INSPECT_H_
#define OSDN_TOOLS_INSPECT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model_config.h"

namespace osdn::tools {

struct TensorSummary {
  std::string name;
  std::vector<int64_t> shape;
  std::string dtype;
  int64_t bytes = 0;
};

struct ModelSummary {
  std::string directory;
  ModelConfig config;
  std::vector<TensorSummary> tensors;  // in file order
  int64_t parameters = 0;
  int64_t weight_bytes = 0;  // of all tensors
  int64_t disk_bytes = 0;    // of the files that model.yaml lists
  int64_t state_bytes = 0;   // of one sequence, whatever its length
  std::optional<int64_t> tokenizer_pieces;
  bool verified = false;  // checksums were compared
};

// Everything is checked as the server would: a directory that this describes is one that loads.
// `verify` also compares every file's sha256. Errors name file, key or tensor.
absl::StatusOr<ModelSummary> InspectModel(const std::string& model_dir, bool verify);

std::string SummaryToText(const ModelSummary& summary, bool with_tensors);
std::string SummaryToJson(const ModelSummary& summary, bool with_tensors);

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_INSPECT_H_
