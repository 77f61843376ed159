#include "engine/sampler.h"

#include <Random123/philox.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace osdn {
namespace {

constexpr float kMaxTemperature = 100.0F;

struct Peak {
  float logit;
  int32_t id;
};

// The largest logit, lowest id first.
absl::StatusOr<Peak> FindPeak(absl::Span<const float> logits) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  Peak peak{-kInfinity, -1};
  for (size_t i = 0; i < logits.size(); ++i) {
    if (!(logits[i] < kInfinity)) {  // NaN compares false
      return absl::InternalError(absl::StrCat("logit of token ", i, " is ", logits[i],
                                              ": the model's state or weights are not finite"));
    }
    if (logits[i] > peak.logit) peak = {logits[i], static_cast<int32_t>(i)};
  }
  if (peak.id < 0) {
    return absl::InternalError(
        absl::StrCat("none of ", logits.size(), " logits is finite: no token can be sampled"));
  }
  return peak;
}

}  // namespace

std::vector<FieldViolation> ValidateSampling(const SamplingParams& params) {
  std::vector<FieldViolation> violations;
  // Conditions are written so that NaN fails them.
  if (!(params.temperature >= 0.0F && params.temperature <= kMaxTemperature)) {
    violations.push_back(
        {"sampling.temperature",
         absl::StrCat(params.temperature, " is outside [0, ", kMaxTemperature, "] (0 is greedy)")});
  }
  if (params.top_k < 0) {
    violations.push_back(
        {"sampling.top_k", absl::StrCat(params.top_k, " is outside [0, ",
                                        std::numeric_limits<int32_t>::max(), "] (0 is off)")});
  }
  if (!(params.top_p > 0.0F && params.top_p <= 1.0F)) {
    violations.push_back(
        {"sampling.top_p", absl::StrCat(params.top_p, " is outside (0, 1] (1 is off)")});
  }
  if (!(params.min_p >= 0.0F && params.min_p <= 1.0F)) {
    violations.push_back(
        {"sampling.min_p", absl::StrCat(params.min_p, " is outside [0, 1] (0 is off)")});
  }
  return violations;
}

double UniformAt(uint64_t seed, uint64_t index) {
  using Philox = r123::Philox4x32;
  Philox::key_type key = {{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)}};
  Philox::ctr_type counter = {
      {static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), 0, 0}};
  const Philox::ctr_type random = Philox()(counter, key);
  const uint64_t bits = (static_cast<uint64_t>(random[1]) << 32) | random[0];
  return static_cast<double>(bits >> 11) * 0x1.0p-53;
}

bool Sampler::Before(const Candidate& a, const Candidate& b) {
  return a.weight > b.weight || (a.weight == b.weight && a.id < b.id);
}

absl::StatusOr<int32_t> Sampler::Sample(absl::Span<const float> logits,
                                        const SamplingParams& params, uint64_t index) {
  absl::StatusOr<Peak> peak = FindPeak(logits);
  if (!peak.ok()) return peak.status();
  if (params.temperature == 0.0F || params.top_k == 1) return peak->id;

  candidates_.resize(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    const float weight = std::exp((logits[i] - peak->logit) / params.temperature);
    candidates_[i] = {weight, static_cast<int32_t>(i)};
  }
  if (params.top_k > 0) KeepTopK(static_cast<size_t>(params.top_k));
  if (params.top_p < 1.0F) KeepTopP(params.top_p);
  if (params.min_p > 0.0F) KeepMinP(params.min_p);
  return Draw(UniformAt(params.seed, index));
}

void Sampler::KeepTopK(size_t k) {
  if (k >= candidates_.size()) return;
  std::nth_element(candidates_.begin(), candidates_.begin() + static_cast<ptrdiff_t>(k),
                   candidates_.end(), Before);
  candidates_.resize(k);
  // Sums run in id order, so that they do not depend on how the library selects.
  std::sort(candidates_.begin(), candidates_.end(),
            [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
}

void Sampler::KeepTopP(double top_p) {
  double total = 0.0;
  for (const Candidate& candidate : candidates_) total += candidate.weight;
  // Tokens lighter than this weigh less than 1 - top_p all together, so what is heavier covers the
  // nucleus. Exact, and it spares sorting most of the vocabulary.
  const double negligible = (1.0 - top_p) * total / static_cast<double>(candidates_.size());
  candidates_.erase(std::remove_if(candidates_.begin(), candidates_.end(),
                                   [negligible](const Candidate& candidate) {
                                     return candidate.weight < negligible;
                                   }),
                    candidates_.end());
  // The nucleus is usually small: sort pieces from the top, each four times the last, until it is
  // covered.
  constexpr ptrdiff_t kFirstPiece = 64;
  const double wanted = top_p * total;
  double mass = 0.0;
  auto sorted = candidates_.begin();
  for (ptrdiff_t piece = kFirstPiece; sorted != candidates_.end(); piece *= 4) {
    const auto end = sorted + std::min(piece, candidates_.end() - sorted);
    std::nth_element(sorted, end, candidates_.end(), Before);
    std::sort(sorted, end, Before);
    for (; sorted != end; ++sorted) {
      mass += sorted->weight;
      if (mass >= wanted) {
        candidates_.erase(sorted + 1, candidates_.end());
        return;
      }
    }
  }
}

void Sampler::KeepMinP(float min_p) {
  // The likeliest token has weight 1 and is always left.
  candidates_.erase(
      std::remove_if(candidates_.begin(), candidates_.end(),
                     [min_p](const Candidate& candidate) { return candidate.weight < min_p; }),
      candidates_.end());
}

int32_t Sampler::Draw(double uniform) const {
  double total = 0.0;
  for (const Candidate& candidate : candidates_) total += candidate.weight;
  const double target = uniform * total;
  double sum = 0.0;
  int32_t last = candidates_.front().id;
  for (const Candidate& candidate : candidates_) {
    if (candidate.weight == 0.0F) continue;  // masked tokens are never drawn
    sum += candidate.weight;
    last = candidate.id;
    if (target < sum) break;
  }
  return last;
}

}  // namespace osdn
