// Logits of every position of a token sequence: the command that proves parity.
#ifndef OSDN_TOOLS_SCORE_H_
#define OSDN_TOOLS_SCORE_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace osdn::tools {

// Whitespace-separated decimal ids. INVALID_ARGUMENT for an empty list, or naming the first bad
// entry's position (counted from 1), the entry and the range.
absl::StatusOr<std::vector<int32_t>> ParseTokenIds(std::string_view text, int64_t vocab_size);

struct ScoreOptions {
  std::string model_dir;
  std::vector<int32_t> ids;  // not empty, in the vocabulary
  std::string logits_path;   // written whole and by rename
  // Tokens a forward call; 1 is the decode path, 0 is prefill in spans as large as is sensible.
  int64_t step = 0;
  kernels::BackendOptions backend;
  bool verify_checksums = true;
  const std::atomic<bool>* stop = nullptr;  // as in ConvertOptions
};

struct ScoreReport {
  std::string backend;  // Backend::Describe()
  int64_t step = 0;     // tokens a forward call that were used at most
  double seconds = 0;   // in forward calls
};

// Writes one float32 tensor `logits` [ids.size(), vocab]: row t is what the model says after token
// t. Rows go to the file as they are made, so memory does not grow with the sequence.
absl::StatusOr<ScoreReport> ScoreTokens(const ScoreOptions& options,
                                        const std::function<void(int64_t done)>& progress);

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_SCORE_H_
