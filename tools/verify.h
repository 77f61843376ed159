// Whether two model directories are the same model, and how far apart they are if not.
#ifndef OSDN_TOOLS_VERIFY_H_
#define OSDN_TOOLS_VERIFY_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "tools/perplexity.h"

namespace osdn::tools {

struct TensorDifference {
  std::string name;
  std::string a_dtype;
  std::string b_dtype;
  bool identical = false;  // same value of every weight
  double max_abs = 0;
  double relative_rms = 0;  // of B's deviation from A
};

struct VerifyReport {
  std::vector<std::string> settings;  // "osdn.eta: 0.1, 0" for each that differs
  std::vector<TensorDifference> tensors;
  PerplexityReport outputs;  // of B, against A

  bool identical() const;  // settings and tensors
};

struct VerifyOptions {
  std::string a_dir;
  std::string b_dir;
  // As in PerplexityOptions; neither: 256 tokens that only depend on the size of the vocabulary.
  std::string text_path;
  std::string ids_path;
  kernels::BackendOptions backend;
  const std::atomic<bool>* stop = nullptr;
};

// Compares settings, every tensor and what both models say about the tokens. INVALID_ARGUMENT,
// naming the tensors or sizes, for models of different shapes; MeasurePerplexity's errors.
absl::StatusOr<VerifyReport> VerifyModels(
    const VerifyOptions& options, const std::function<void(int64_t done, int64_t total)>& progress);

// `all`: every tensor, else the five that differ most.
std::string VerifyToText(const VerifyReport& report, bool all);
std::string VerifyToJson(const VerifyReport& report);

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_VERIFY_H_
