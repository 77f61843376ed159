// What happens to a row of logits before a token is drawn, and what is told about the draw.
#ifndef OSDN_ENGINE_LOGITS_H_
#define OSDN_ENGINE_LOGITS_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <unordered_map>
#include <vector>

#include "absl/types/span.h"
#include "engine/sampling_params.h"

namespace osdn {

inline constexpr int32_t kMaxTopLogprobs = 20;

// The last tokens of a text and how often each is among them. Copyable: a fork takes its own. One
// thread.
class PenaltyWindow {
 public:
  // `size` tokens at most, filled with the end of `prompt`.
  PenaltyWindow(int64_t size, absl::Span<const int32_t> prompt);

  // A token of the completion.
  void Add(int32_t token);
  // repetition_penalty divides a positive logit of every token in the window and multiplies a
  // negative one; frequency_penalty is subtracted once for each time the completion (as far as it
  // is in the window) has the token, presence_penalty once if it has it at all.
  void Apply(const SamplingParams& params, absl::Span<float> logits) const;

 private:
  struct Entry {
    int32_t token;
    bool completion;
  };
  struct Count {
    int32_t all = 0;
    int32_t completion = 0;
  };
  void Push(const Entry& entry);

  size_t size_;
  std::deque<Entry> entries_;
  std::unordered_map<int32_t, Count> counts_;
};

// Ids beyond the row are passed over.
void ApplyLogitBias(absl::Span<const LogitBias> biases, absl::Span<float> logits);
void MaskTokens(absl::Span<const int32_t> ids, absl::Span<float> logits);

struct TopLogprob {
  int32_t token = 0;
  float logprob = 0.0F;
};

// One token of a completion in the model's own distribution: before temperature, penalties, biases
// and masks. -inf where the model rules it out.
struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0.0F;
  std::vector<TopLogprob> top{};  // the likeliest tokens, best first; ties: the lower id first
  bool greedy = false;            // what temperature 0 would have chosen from this distribution
};

// `logits` are finite or -inf and one is finite. `top` is at most kMaxTopLogprobs.
TokenLogprob ComputeLogprob(absl::Span<const float> logits, int32_t token, int32_t top);

}  // namespace osdn

#endif  // OSDN_ENGINE_LOGITS_H_
