// From a model directory to one of another dtype. docs/quantization.md.
#ifndef OSDN_TOOLS_QUANTIZE_H_
#define OSDN_TOOLS_QUANTIZE_H_

#include <atomic>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/include/tensor.h"
#include "tools/model_writer.h"

namespace osdn::tools {

struct QuantizeOptions {
  std::string model_dir;
  std::string output_dir;
  kernels::DType dtype = kernels::DType::kI8;
  std::string name;  // empty: the last part of output_dir
  bool overwrite = false;
  const std::atomic<bool>* stop = nullptr;  // as in ModelWriterOptions
};

// Rounds (or widens) every matrix; tokenizer and chat template are taken over. The source's
// checksums are verified. INVALID_ARGUMENT for a source that is quantized already, unless it is
// widened to f32 or bf16: rounding twice only loses. `progress` may be empty.
absl::StatusOr<ModelWriterReport> QuantizeModel(const QuantizeOptions& options,
                                                const WriteProgress& progress);

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_QUANTIZE_H_
