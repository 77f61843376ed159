#include "engine/logits.h"

#include <algorithm>
#include <limits>

#include "engine/row_math.h"

namespace osdn {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The `count` largest logits, best first, -inf left out.
std::vector<TopLogprob> LargestLogits(absl::Span<const float> logits, size_t count) {
  std::vector<TopLogprob> best;
  if (count == 0) return best;
  best.reserve(count + 1);
  float floor = -kInfinity;  // what a logit must exceed; few do, so this is one scan
  for (size_t i = 0; i < logits.size(); ++i) {
    if (!(logits[i] > floor)) continue;
    const auto place = std::upper_bound(
        best.begin(), best.end(), logits[i],
        [](float logit, const TopLogprob& other) { return logit > other.logprob; });
    best.insert(place, {static_cast<int32_t>(i), logits[i]});
    if (best.size() > count) best.pop_back();
    if (best.size() == count) floor = best.back().logprob;
  }
  return best;
}

}  // namespace

PenaltyWindow::PenaltyWindow(int64_t size, absl::Span<const int32_t> prompt)
    : size_(static_cast<size_t>(size)) {
  if (prompt.size() > size_) prompt.remove_prefix(prompt.size() - size_);
  for (const int32_t token : prompt) Push({token, false});
}

void PenaltyWindow::Add(int32_t token) { Push({token, true}); }

void PenaltyWindow::Push(const Entry& entry) {
  if (entries_.size() == size_) {
    const Entry oldest = entries_.front();
    entries_.pop_front();
    const auto it = counts_.find(oldest.token);
    if (oldest.completion) --it->second.completion;
    if (--it->second.all == 0) counts_.erase(it);
  }
  entries_.push_back(entry);
  Count& count = counts_[entry.token];
  ++count.all;
  if (entry.completion) ++count.completion;
}

void PenaltyWindow::Apply(const SamplingParams& params, absl::Span<float> logits) const {
  for (const auto& [token, count] : counts_) {
    if (static_cast<size_t>(token) >= logits.size()) continue;
    float& logit = logits[static_cast<size_t>(token)];
    logit = logit > 0.0F ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    // A penalty far below 1 must not look like a fault of the model.
    logit = std::min(logit, std::numeric_limits<float>::max());
    if (count.completion == 0) continue;
    logit -=
        params.frequency_penalty * static_cast<float>(count.completion) + params.presence_penalty;
  }
}

void ApplyLogitBias(absl::Span<const LogitBias> biases, absl::Span<float> logits) {
  for (const LogitBias& bias : biases) {
    if (static_cast<size_t>(bias.token) < logits.size()) {
      logits[static_cast<size_t>(bias.token)] += bias.bias;
    }
  }
}

void MaskTokens(absl::Span<const int32_t> ids, absl::Span<float> logits) {
  for (const int32_t id : ids) {
    if (static_cast<size_t>(id) < logits.size()) logits[static_cast<size_t>(id)] = -kInfinity;
  }
}

TokenLogprob ComputeLogprob(absl::Span<const float> logits, int32_t token, int32_t top) {
  const row_math::Peak peak = row_math::FindPeak(logits);
  const double log_total = row_math::LogSumExp(logits, peak.value);
  const auto logprob = [log_total](float logit) {
    return static_cast<float>(static_cast<double>(logit) - log_total);
  };
  TokenLogprob result;
  result.token = token;
  result.logprob = logprob(logits[static_cast<size_t>(token)]);
  result.greedy = peak.index == token;
  result.top = LargestLogits(logits, static_cast<size_t>(std::min(top, kMaxTopLogprobs)));
  for (TopLogprob& likely : result.top) likely.logprob = logprob(likely.logprob);
  return result;
}

}  // namespace osdn
