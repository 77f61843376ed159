// Writing a model directory: what convert, quantize and synth share.
#ifndef OSDN_TOOLS_MODEL_WRITER_H_
#define OSDN_TOOLS_MODEL_WRITER_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/model_config.h"
#include "engine/tensor_specs.h"
#include "tools/weight_encoding.h"

namespace osdn::tools {

// Where weights come from. Used by one thread.
class TensorSource {
 public:
  virtual ~TensorSource() = default;

  // Fills `out` with whole rows of the tensor from row `first` on, as float32. A row is everything
  // behind the first dimension. Values need not be finite: the writer refuses those that are not.
  virtual absl::Status Read(const TensorSpec& spec, int64_t first, absl::Span<float> out) = 0;
  // Completes "element 7 is not finite as bf16 (...)": "F16 in the checkpoint".
  virtual std::string Origin(const TensorSpec& spec) const = 0;
};

using WriteProgress =
    std::function<void(int64_t done_elements, int64_t total_elements, std::string_view tensor)>;

struct ModelWriterOptions {
  std::string output_dir;
  bool overwrite = false;
  std::string tokenizer_path;  // copied when config.has_tokenizer
  // Set by another thread to give up; the result is then CANCELLED. May be null.
  const std::atomic<bool>* stop = nullptr;
  WriteProgress progress;  // may be empty
};

struct TensorRounding {
  std::string name;
  kernels::DType dtype = kernels::DType::kF32;
  RoundingError error;
};

struct ModelWriterReport {
  ModelConfig config;  // as written: with files
  int64_t parameters = 0;
  int64_t weight_bytes = 0;               // of weights.safetensors
  std::vector<TensorRounding> roundings;  // of the tensors that were stored with less than float32
};

// Writes `config` with weights of config.dtype read from `source`, tensor by tensor; memory is
// bounded by a few rows and one tensor's scales. The directory appears complete and by rename,
// after it has been loaded as the server would, or not at all. config.files is filled in here.
// INVALID_ARGUMENT naming tensor and element for a value that is not finite in its stored dtype;
// RESOURCE_EXHAUSTED before anything is written when the disk has not enough space;
// OutputDirectory's and the source's errors.
absl::StatusOr<ModelWriterReport> WriteModelDirectory(const ModelWriterOptions& options,
                                                      ModelConfig config, TensorSource* source);

// The last part of a directory's path: the default name of a model.
std::string NameFromDirectory(const std::string& dir);

// INVALID_ARGUMENT when replacing `output_dir` would take `source_dir`, which is `what` ("the
// checkpoint"), with it.
absl::Status CheckOutputApart(const std::string& source_dir, const std::string& output_dir,
                              std::string_view what);

// "relative RMS error 0.62% over all matrices; worst: NAME 0.9% (int8), ..." Empty when nothing was
// rounded.
std::string RoundingText(absl::Span<const TensorRounding> roundings);
// A line for each tensor that was rounded: its error, dtype and name.
std::string RoundingTable(absl::Span<const TensorRounding> roundings);

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_MODEL_WRITER_H_
