#include "engine/sampling_params.h"

#include <limits>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace osdn {
namespace {

constexpr float kMaxTemperature = 100.0F;
constexpr float kMaxRepetitionPenalty = 10.0F;
constexpr float kMaxAdditivePenalty = 2.0F;
constexpr float kMaxBias = 100.0F;
constexpr size_t kMaxToldElements = 16;

class Checker {
 public:
  // `in_range` must be false for NaN.
  template <class Number>
  void Check(bool in_range, absl::string_view field, const Number& value, absl::string_view range) {
    if (in_range) return;
    violations_.push_back(
        {absl::StrCat("sampling.", field), absl::StrCat(value, " is outside ", range)});
  }
  void Add(absl::string_view field, std::string description) {
    violations_.push_back({absl::StrCat("sampling.", field), std::move(description)});
  }
  std::vector<FieldViolation> Take() { return std::move(violations_); }

 private:
  std::vector<FieldViolation> violations_;
};

void CheckBiases(const std::vector<LogitBias>& biases, int64_t vocab_size, Checker* checker) {
  if (biases.size() > kMaxLogitBiases) {
    checker->Add("logit_bias", absl::StrCat(biases.size(), " tokens: at most ", kMaxLogitBiases));
    return;
  }
  std::set<int32_t> seen;
  size_t told = 0;
  for (size_t i = 0; i < biases.size() && told < kMaxToldElements; ++i) {
    const auto [token, bias] = biases[i];
    std::string problem;
    if (token < 0 || token >= vocab_size) {
      problem =
          absl::StrCat("token ", token, " is outside the vocabulary [0, ", vocab_size - 1, "]");
    } else if (!seen.insert(token).second) {
      problem = absl::StrCat("token ", token, " has a bias already");
    } else if (!(bias <= kMaxBias) ||
               (bias < -kMaxBias && bias != -std::numeric_limits<float>::infinity())) {
      problem = absl::StrCat("bias ", bias, " is neither in [", -kMaxBias, ", ", kMaxBias,
                             "] nor -inf (never this token)");
    }
    if (problem.empty()) continue;
    checker->Add(absl::StrCat("logit_bias[", i, "]"), std::move(problem));
    ++told;
  }
}

}  // namespace

std::vector<FieldViolation> ValidateSampling(const SamplingParams& params, int64_t vocab_size) {
  Checker checker;
  checker.Check(params.temperature >= 0.0F && params.temperature <= kMaxTemperature, "temperature",
                params.temperature, "[0, 100] (0 is greedy)");
  checker.Check(params.top_k >= 0, "top_k", params.top_k, "[0, 2147483647] (0 is off)");
  const auto share = [](float p) { return p > 0.0F && p <= 1.0F; };
  checker.Check(share(params.top_p), "top_p", params.top_p, "(0, 1] (1 is off)");
  checker.Check(params.min_p >= 0.0F && params.min_p <= 1.0F, "min_p", params.min_p,
                "[0, 1] (0 is off)");
  checker.Check(share(params.typical_p), "typical_p", params.typical_p, "(0, 1] (1 is off)");
  checker.Check(
      params.repetition_penalty > 0.0F && params.repetition_penalty <= kMaxRepetitionPenalty,
      "repetition_penalty", params.repetition_penalty, "(0, 10] (1 is off)");
  const auto additive = [](float p) {
    return p >= -kMaxAdditivePenalty && p <= kMaxAdditivePenalty;
  };
  checker.Check(additive(params.presence_penalty), "presence_penalty", params.presence_penalty,
                "[-2, 2] (0 is off)");
  checker.Check(additive(params.frequency_penalty), "frequency_penalty", params.frequency_penalty,
                "[-2, 2] (0 is off)");
  checker.Check(params.penalty_window >= 1 && params.penalty_window <= kMaxPenaltyWindow,
                "penalty_window", params.penalty_window,
                absl::StrCat("[1, ", kMaxPenaltyWindow, "]"));
  CheckBiases(params.logit_bias, vocab_size, &checker);
  return checker.Take();
}

}  // namespace osdn
