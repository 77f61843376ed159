// From a model directory back to a checkpoint in flash-linear-attention's layout.
#ifndef OSDN_TOOLS_EXPORT_H_
#define OSDN_TOOLS_EXPORT_H_

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/include/tensor.h"
#include "tools/model_writer.h"

namespace osdn::tools {

struct ExportOptions {
  std::string model_dir;
  std::string output_dir;  // must not exist, or be empty: checkpoints are never replaced
  // Of the matrices, kF32 or kBF16; vectors are always float32. Not given: the model's, and kF32
  // for quantized models.
  std::optional<kernels::DType> dtype;
  const std::atomic<bool>* stop = nullptr;  // as in ModelWriterOptions
};

struct ExportReport {
  kernels::DType dtype = kernels::DType::kF32;
  int64_t parameters = 0;
  std::vector<std::string> notices;
};

// Writes config.json, generation_config.json, model.safetensors and, where the model has them,
// tokenizer.model, tokenizer_config.json and chat_template.yaml. Converting the result gives the
// same model id: the same weights bit for bit (of a float model in its own dtype) and the same
// numbers. The source's checksums are verified; the directory appears complete or not at all.
absl::StatusOr<ExportReport> ExportModel(const ExportOptions& options,
                                         const WriteProgress& progress);

// config.json of a model. For tests.
std::string CheckpointConfigJson(const ModelConfig& config, kernels::DType dtype);

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_EXPORT_H_
