// Model directories of random weights: reference sizes for measurements.
#ifndef OSDN_TOOLS_SYNTH_H_
#define OSDN_TOOLS_SYNTH_H_

#include <atomic>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/include/tensor.h"
#include "tools/model_writer.h"

namespace osdn::tools {

struct SynthOptions {
  std::string config_path;  // LoadArchitectureFile's format
  std::string output_dir;
  kernels::DType dtype = kernels::DType::kBF16;
  uint64_t seed = 0;
  bool delta_net = false;      // without preconditioner: eta 0, no APF
  std::string tokenizer_path;  // SentencePiece; empty: the model takes token ids only
  std::string name;            // empty: the config's
  bool overwrite = false;
  const std::atomic<bool>* stop = nullptr;  // as in ModelWriterOptions
};

// Every weight is a pure function of (seed, tensor name, index), whatever the machine's number of
// threads; tensors that two architectures share are equal. Scales are those of a fresh network, so
// that activations, state and logits stay finite and of order 1. Memory is bounded by a few MiB.
absl::StatusOr<ModelWriterReport> SynthesizeModel(const SynthOptions& options,
                                                  const WriteProgress& progress);

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_SYNTH_H_
