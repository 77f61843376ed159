// How well a model predicts given text, and how close two models are.
#ifndef OSDN_TOOLS_PERPLEXITY_H_
#define OSDN_TOOLS_PERPLEXITY_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/backend.h"

namespace osdn::tools {

struct PerplexityOptions {
  std::string model_dir;
  // The reference, usually the same weights in float32; empty: none. Same vocabulary and tokenizer.
  std::string against_dir;
  // Exactly one of the three. Text: documents separated by form feeds, each encoded by the model's
  // tokenizer behind its beginning-of-text token. Ids: a document a line.
  std::string text_path;
  std::string ids_path;
  std::vector<std::vector<int32_t>> documents = {};  // token ids
  kernels::BackendOptions backend;
  bool verify_checksums = true;
  const std::atomic<bool>* stop = nullptr;  // as in ModelWriterOptions
};

// How a model's distributions differ from a reference's over the predicted positions.
struct ReferenceComparison {
  std::string model;
  std::string dtype;
  double nats = 0;     // sum of the reference's own -log p(token)
  double mean_kl = 0;  // of KL(reference || model), in nats
  double max_kl = 0;
  double max_logit_difference = 0;
  double same_top = 0;  // share of positions with the same most probable token
};

// What a model says about the tokens. Every document starts from a fresh state; all of its tokens
// but the first are predicted from all before them, however long it is.
struct PerplexityReport {
  std::string model;
  std::string dtype;
  std::string backend;  // Backend::Describe()
  int64_t documents = 0;
  int64_t tokens = 0;      // predicted
  int64_t text_bytes = 0;  // 0 when ids were given
  double nats = 0;         // sum of -log p(token)

  std::optional<ReferenceComparison> against;

  double perplexity() const;
  double against_perplexity() const;  // with `against` only
  double perplexity_ratio() const;    // of model and reference, with `against` only
};

// INVALID_ARGUMENT for texts that do not fit (no tokenizer, an empty document, ids outside the
// vocabulary: by file and document) or models that cannot be compared; DATA_LOSS, naming document
// and token, for logits that are not finite; ModelRunner's errors.
absl::StatusOr<PerplexityReport> MeasurePerplexity(
    const PerplexityOptions& options,
    const std::function<void(int64_t done, int64_t total)>& progress);

std::string PerplexityToText(const PerplexityReport& report);
std::string PerplexityToJson(const PerplexityReport& report);

// --- For tests ---

// One position: -log p[target] in nats; NaN when a logit is not finite.
double NegativeLogLikelihood(absl::Span<const float> logits, int32_t target);
// KL(p || q) of two softmaxed rows, in nats, never below 0; NaN when a logit is not finite.
double KlDivergence(absl::Span<const float> p_logits, absl::Span<const float> q_logits);

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_PERPLEXITY_H_
