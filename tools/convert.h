// From a checkpoint as training left it to a model directory. docs/converting.md.
#ifndef OSDN_TOOLS_CONVERT_H_
#define OSDN_TOOLS_CONVERT_H_

#include <atomic>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/include/tensor.h"
#include "tools/model_writer.h"
#include "tools/name_map.h"

namespace osdn::tools {

struct ConvertOptions {
  std::string source;  // a directory or a file of weights (Checkpoint::Open)
  std::string output_dir;
  // config.json; its directory has the tokenizer and the other small files too. Empty: in the
  // source directory, or beside the source file.
  std::string config;
  std::string weights_key;        // see SelectWeights
  std::string name_map;           // see NameMap::Load; empty: found among the built-in ones
  bool ignore_checksums = false;  // of torch.save's archives
  // Of the matrices (see StoredDType). Not given: bf16 when every matrix of the source is BF16,
  // else f32.
  std::optional<kernels::DType> dtype;
  std::string name;  // empty: the last part of output_dir
  std::string
      chat_template;  // a file; empty: chat_template.yaml beside config.json, where there is
  bool overwrite = false;
  // Set by another thread to give up; the result is then CANCELLED. May be null.
  const std::atomic<bool>* stop = nullptr;
};

struct ConvertReport {
  ModelWriterReport model;
  std::vector<std::string> notices;
};

// What ConvertCheckpoint would do with every tensor.
struct ConversionPlan {
  std::vector<MappedTensor> table;
  std::vector<std::string> notices;
  absl::Status fit;  // CheckTensors' verdict
};

// Reads and checks as ConvertCheckpoint does up to the tensors' shapes, and writes nothing.
absl::StatusOr<ConversionPlan> PlanConversion(const ConvertOptions& options);

// The plan's table for people: source, what is done with it, target, type.
std::string PlanToText(const ConversionPlan& plan);

// Reads, checks everything, and only then writes; memory is bounded by a few MiB and the pages of
// one tensor, whatever the model's size. output_dir appears complete and by rename, or stays as it
// was. Errors name the file and every key or tensor that is wrong. `progress` may be empty.
absl::StatusOr<ConvertReport> ConvertCheckpoint(const ConvertOptions& options,
                                                const WriteProgress& progress);

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_CONVERT_H_
