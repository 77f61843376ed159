#include "engine/sampler.h"

#include <Random123/philox.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/row_math.h"

namespace osdn {
namespace {

// Unsigned numbers in the order of the floats (of -0 and 0, either may be first).
uint32_t OrderedBits(float x) {
  uint32_t bits = 0;
  std::memcpy(&bits, &x, sizeof(bits));
  constexpr uint32_t kSign = 0x80000000;
  return (bits & kSign) != 0 ? ~bits : bits | kSign;
}

absl::StatusOr<row_math::Peak> SoundPeak(absl::Span<const float> logits) {
  const row_math::Peak peak = row_math::FindPeak(logits);
  if (peak.invalid) {
    size_t i = 0;
    while (logits[i] < std::numeric_limits<float>::infinity()) ++i;
    return absl::InternalError(absl::StrCat("logit of token ", i, " is ", logits[i],
                                            ": the model's state or weights are not finite"));
  }
  if (peak.index < 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("none of ", logits.size(),
                     " tokens may be sampled: logit_bias, min_tokens and the constraint rule all "
                     "of them out"));
  }
  return peak;
}

bool IsGreedy(const SamplingParams& params) {
  return params.temperature == 0.0F || params.top_k == 1;
}

bool HasFilters(const SamplingParams& params) {
  return params.top_k > 0 || params.typical_p < 1.0F || params.top_p < 1.0F || params.min_p > 0.0F;
}

// The place where the running sum of weights exceeds `target`; the last one above 0 where rounding
// keeps it from that. Weights of 0 are never drawn.
size_t Walk(absl::Span<const float> weights, double target) {
  double sum = 0.0;
  size_t last = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    if (weights[i] == 0.0F) continue;
    sum += weights[i];
    last = i;
    if (target < sum) break;
  }
  return last;
}

// The same in two steps: first the block, then within.
size_t WalkBlocks(absl::Span<const float> weights, absl::Span<const double> block_sums,
                  double target) {
  size_t block = 0;
  for (size_t b = 0; b < block_sums.size(); ++b) {
    if (block_sums[b] == 0.0) continue;
    block = b;
    if (target < block_sums[b]) break;
    target -= block_sums[b];
  }
  const size_t begin = block * row_math::kBlock;
  return begin + Walk(weights.subspan(begin, row_math::kBlock), target);
}

}  // namespace

double UniformAt(uint64_t seed, const DrawPlace& place) {
  using Philox = r123::Philox4x32;
  Philox::key_type key = {{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)}};
  Philox::ctr_type counter = {{static_cast<uint32_t>(place.index),
                               static_cast<uint32_t>(place.index >> 32), place.choice, 0}};
  const Philox::ctr_type random = Philox()(counter, key);
  const uint64_t bits = (static_cast<uint64_t>(random[1]) << 32) | random[0];
  return static_cast<double>(bits >> 11) * 0x1.0p-53;
}

absl::StatusOr<int32_t> Sampler::Sample(absl::Span<const float> logits,
                                        const SamplingParams& params, const DrawPlace& place) {
  const absl::StatusOr<row_math::Peak> peak = SoundPeak(logits);
  if (!peak.ok()) return peak.status();
  if (IsGreedy(params)) return static_cast<int32_t>(peak->index);
  const double uniform = UniformAt(params.seed, place);
  if (!HasFilters(params)) {
    weights_.resize(logits.size());
    block_sums_.resize(
        static_cast<size_t>(row_math::NumBlocks(static_cast<int64_t>(logits.size()))));
    const double total =
        row_math::ExpWeights(logits, peak->value, params.temperature, absl::MakeSpan(weights_),
                             absl::MakeSpan(block_sums_));
    return static_cast<int32_t>(WalkBlocks(weights_, block_sums_, uniform * total));
  }
  Filter(logits, peak->value, params);
  return ids_[Walk(weights_, uniform * TotalWeight())];
}

absl::StatusOr<std::vector<Candidate>> Sampler::Distribution(absl::Span<const float> logits,
                                                             const SamplingParams& params) {
  const absl::StatusOr<row_math::Peak> peak = SoundPeak(logits);
  if (!peak.ok()) return peak.status();
  if (IsGreedy(params)) return std::vector<Candidate>{{static_cast<int32_t>(peak->index), 1.0F}};
  Filter(logits, peak->value, params);
  std::vector<Candidate> result;
  for (size_t i = 0; i < ids_.size(); ++i) {
    if (weights_[i] > 0.0F) result.push_back({ids_[i], weights_[i]});
  }
  return result;
}

void Sampler::Filter(absl::Span<const float> logits, float peak, const SamplingParams& params) {
  ids_.resize(logits.size());
  std::iota(ids_.begin(), ids_.end(), 0);
  const bool cut = params.top_k > 0 && static_cast<size_t>(params.top_k) < logits.size();
  if (cut) KeepTopK(logits, static_cast<size_t>(params.top_k));
  weights_.resize(ids_.size());
  absl::Span<const float> left = logits;
  if (cut) {
    left_.resize(ids_.size());
    for (size_t i = 0; i < ids_.size(); ++i) {
      left_[i] = logits[static_cast<size_t>(ids_[i])];
    }
    left = left_;
  }
  block_sums_.resize(static_cast<size_t>(row_math::NumBlocks(static_cast<int64_t>(left.size()))));
  row_math::ExpWeights(left, peak, params.temperature, absl::MakeSpan(weights_),
                       absl::MakeSpan(block_sums_));
  if (params.typical_p < 1.0F) KeepTypical(logits, peak, params);
  if (params.top_p < 1.0F) KeepTopP(params.top_p);
  if (params.min_p > 0.0F) KeepMinP(params.min_p);
}

template <bool kCount>
void Sampler::KeepLargest(double wanted) {
  // The mass of coarse ranges of keys finds the range that holds the border; only that is sorted.
  bins_.assign(kBins, 0.0);
  for (size_t i = 0; i < keys_.size(); ++i) {
    bins_[keys_[i] >> kBinShift] += kCount ? 1.0 : static_cast<double>(weights_[i]);
  }
  double mass = 0.0;
  size_t bin = kBins;
  while (bin > 0 && mass + bins_[bin - 1] < wanted) mass += bins_[--bin];
  if (bin == 0) return;
  --bin;
  border_.clear();
  for (size_t i = 0; i < keys_.size(); ++i) {
    if (keys_[i] >> kBinShift == bin) border_.push_back(static_cast<uint32_t>(i));
  }
  std::sort(border_.begin(), border_.end(), [this](uint32_t a, uint32_t b) {
    return keys_[a] != keys_[b] ? keys_[a] > keys_[b] : a < b;
  });
  size_t last = 0;  // of border_, the last that is kept
  for (; last + 1 < border_.size(); ++last) {
    mass += kCount ? 1.0 : static_cast<double>(weights_[border_[last]]);
    if (mass >= wanted) break;
  }
  const uint32_t key = keys_[border_[last]];
  const size_t place = border_[last];
  const bool weighted = weights_.size() == keys_.size();
  size_t kept = 0;
  for (size_t i = 0; i < keys_.size(); ++i) {
    const bool keep = keys_[i] > key || (keys_[i] == key && i <= place);
    ids_[kept] = ids_[i];
    if (weighted) weights_[kept] = weights_[i];
    kept += keep ? 1 : 0;
  }
  ids_.resize(kept);
  if (weighted) weights_.resize(kept);
}

void Sampler::KeepTopK(absl::Span<const float> logits, size_t k) {
  weights_.clear();  // not computed yet
  keys_.resize(logits.size());
  std::transform(logits.begin(), logits.end(), keys_.begin(), OrderedBits);
  KeepLargest</*kCount=*/true>(static_cast<double>(k));
}

void Sampler::KeepTypical(absl::Span<const float> logits, float peak,
                          const SamplingParams& params) {
  const double log_total = std::log(TotalWeight());
  const auto surprise = [&](size_t i) {  // -log p
    return log_total -
           static_cast<double>((logits[static_cast<size_t>(ids_[i])] - peak) / params.temperature);
  };
  double entropy = 0.0;
  for (size_t i = 0; i < ids_.size(); ++i) {
    if (weights_[i] > 0.0F) entropy += static_cast<double>(weights_[i]) * surprise(i);
  }
  entropy /= std::exp(log_total);
  keys_.resize(ids_.size());
  for (size_t i = 0; i < ids_.size(); ++i) {
    // Near the entropy first; what cannot be drawn last.
    keys_[i] =
        weights_[i] > 0.0F ? ~OrderedBits(static_cast<float>(std::abs(surprise(i) - entropy))) : 0;
  }
  KeepLargest</*kCount=*/false>(static_cast<double>(params.typical_p) * std::exp(log_total));
}

void Sampler::KeepTopP(double top_p) {
  const double wanted = top_p * TotalWeight();
  keys_.resize(weights_.size());
  std::transform(weights_.begin(), weights_.end(), keys_.begin(), OrderedBits);
  KeepLargest</*kCount=*/false>(wanted);
}

void Sampler::KeepMinP(float min_p) {
  const float floor = min_p * *std::max_element(weights_.begin(), weights_.end());
  size_t kept = 0;
  for (size_t i = 0; i < ids_.size(); ++i) {
    const bool keep = weights_[i] >= floor;
    ids_[kept] = ids_[i];
    weights_[kept] = weights_[i];
    kept += keep ? 1 : 0;
  }
  ids_.resize(kept);
  weights_.resize(kept);
}

double Sampler::TotalWeight() const {
  double total = 0.0;
  for (const float weight : weights_) total += weight;
  return total;
}

}  // namespace osdn
