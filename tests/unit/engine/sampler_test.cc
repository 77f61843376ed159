#include "engine/sampler.h"

#include <Random123/philox.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <set>

namespace osdn {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// The distribution that Sampler must draw from, computed the obvious way: sort everything, in
// double.
std::vector<double> ExactDistribution(const std::vector<float>& logits,
                                      const SamplingParams& params) {
  const size_t n = logits.size();
  std::vector<size_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return logits[a] > logits[b]; });
  if (params.top_k > 0) order.resize(std::min<size_t>(n, static_cast<size_t>(params.top_k)));
  std::vector<double> p(n, 0.0);
  const double peak = logits[order.front()];
  double total = 0.0;
  for (size_t i : order) {
    total += p[i] = std::exp((static_cast<double>(logits[i]) - peak) / params.temperature);
  }
  for (double& x : p) x /= total;
  if (params.typical_p < 1.0F) {
    double entropy = 0.0;
    for (double x : p) entropy -= x > 0.0 ? x * std::log(x) : 0.0;
    std::vector<size_t> typical;
    for (size_t i = 0; i < n; ++i) {
      if (p[i] > 0.0) typical.push_back(i);
    }
    std::stable_sort(typical.begin(), typical.end(), [&](size_t a, size_t b) {
      return std::abs(-std::log(p[a]) - entropy) < std::abs(-std::log(p[b]) - entropy);
    });
    double kept = 0.0;
    double left = 0.0;
    for (size_t i : typical) {
      const double x = p[i];
      if (kept >= params.typical_p) p[i] = 0.0;
      kept += x;
      left += p[i];
    }
    for (double& x : p) x /= left;
  }
  double mass = 0.0;
  for (size_t i : order) {
    if (mass >= params.top_p) p[i] = 0.0;
    mass += p[i];
  }
  const double floor = params.min_p * *std::max_element(p.begin(), p.end());
  total = 0.0;
  for (double& x : p) total += x = x < floor ? 0.0 : x;
  for (double& x : p) x /= total;
  return p;
}

std::vector<float> RandomLogits(size_t n, float scale, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0F, scale);
  std::vector<float> logits(n);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

// Draws and compares by chi-square; tokens outside the exact support must never come.
void ExpectDistribution(const std::vector<float>& logits, const SamplingParams& params) {
  constexpr int kDraws = 40000;
  const std::vector<double> exact = ExactDistribution(logits, params);
  std::vector<int> counts(logits.size(), 0);
  Sampler sampler;
  for (int i = 0; i < kDraws; ++i) {
    auto token = sampler.Sample(logits, params, {static_cast<uint64_t>(i)});
    ASSERT_TRUE(token.ok()) << token.status();
    ++counts[static_cast<size_t>(*token)];
  }
  double chi_square = 0.0;
  double pooled_expected = 0.0;
  double pooled_count = 0.0;
  int cells = 0;
  const auto add_cell = [&](double expected, double count) {
    chi_square += (count - expected) * (count - expected) / expected;
    ++cells;
  };
  for (size_t i = 0; i < exact.size(); ++i) {
    const double expected = exact[i] * kDraws;
    if (exact[i] == 0.0) {
      EXPECT_EQ(counts[i], 0) << "token " << i << " is outside the support";
    } else if (expected < 5.0) {
      pooled_expected += expected;
      pooled_count += counts[i];
    } else {
      add_cell(expected, counts[i]);
    }
  }
  if (pooled_expected >= 5.0) add_cell(pooled_expected, pooled_count);
  ASSERT_GE(cells, 2);
  // Mean plus 4.5 standard deviations of the chi-square distribution; the seed is fixed, so the
  // outcome is too.
  const double freedom = cells - 1;
  EXPECT_LT(chi_square, freedom + 4.5 * std::sqrt(2.0 * freedom)) << cells << " cells";
}

TEST(SamplerTest, PlainTemperature) {
  ExpectDistribution(RandomLogits(50, 2.0F, 1), {.temperature = 1.0F, .seed = 11});
  ExpectDistribution(RandomLogits(50, 2.0F, 2), {.temperature = 0.3F, .seed = 12});
  ExpectDistribution(RandomLogits(50, 2.0F, 3), {.temperature = 7.5F, .seed = 13});
}

TEST(SamplerTest, Filters) {
  ExpectDistribution(RandomLogits(101, 2.0F, 4), {.top_k = 7, .seed = 21});
  ExpectDistribution(RandomLogits(101, 2.0F, 5), {.top_p = 0.8F, .seed = 22});
  ExpectDistribution(RandomLogits(101, 2.0F, 6), {.min_p = 0.1F, .seed = 23});
  ExpectDistribution(RandomLogits(101, 2.0F, 14), {.typical_p = 0.6F, .seed = 25});
  ExpectDistribution(RandomLogits(101, 2.0F, 15),
                     {.top_k = 50, .top_p = 0.9F, .min_p = 0.01F, .typical_p = 0.8F, .seed = 26});
  ExpectDistribution(RandomLogits(101, 2.0F, 7),
                     {.temperature = 1.5F, .top_k = 40, .top_p = 0.7F, .min_p = 0.05F, .seed = 24});
}

TEST(SamplerTest, NucleusWiderThanTheFirstSortedPieces) {
  // Nearly flat: 90% of the mass needs more than 64 + 256 of 700 tokens.
  ExpectDistribution(RandomLogits(700, 0.3F, 8), {.top_p = 0.9F, .seed = 31});
}

TEST(SamplerTest, EachFilterWorksOnWhatTheOneBeforeLeft) {
  // Probabilities 0.4 0.3 0.2 0.1. top_k 2 leaves 4/7 and 3/7; top_p 0.5 then leaves the first
  // alone, where top_p 0.5 of the whole would leave two.
  const std::vector<float> logits = {std::log(0.1F), std::log(0.2F), std::log(0.3F),
                                     std::log(0.4F)};
  Sampler sampler;
  for (uint64_t i = 0; i < 200; ++i) {
    EXPECT_EQ(*sampler.Sample(logits, {.top_k = 2, .top_p = 0.5F, .seed = 5}, {i}), 3);
  }
}

std::set<int32_t> Support(const std::vector<float>& logits, const SamplingParams& params) {
  std::set<int32_t> support;
  Sampler sampler;
  for (uint64_t i = 0; i < 2000; ++i) support.insert(*sampler.Sample(logits, params, {i}));
  return support;
}

TEST(SamplerTest, TiesGoToTheLowerId) {
  const std::vector<float> flat(8, 0.25F);
  EXPECT_THAT(Support(flat, {.temperature = 0.0F}), ElementsAre(0));
  EXPECT_THAT(Support(flat, {.top_k = 1}), ElementsAre(0));
  EXPECT_THAT(Support(flat, {.top_k = 3}), ElementsAre(0, 1, 2));
  EXPECT_THAT(Support(flat, {.top_p = 0.5F}), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(Support(flat, {.min_p = 1.0F}), ElementsAre(0, 1, 2, 3, 4, 5, 6, 7));
  EXPECT_THAT(Support({1, 3, 2, 3}, {.temperature = 0.0F}), ElementsAre(1));
  EXPECT_THAT(Support({1, 3, 2, 3}, {.min_p = 1.0F}), ElementsAre(1, 3));
}

TEST(SamplerTest, TopPKeepsAtLeastOneAndStopsWhereReached) {
  const std::vector<float> logits = {0.0F, std::log(2.0F), std::log(5.0F)};  // 1/8 2/8 5/8
  EXPECT_THAT(Support(logits, {.top_p = 1e-6F}), ElementsAre(2));
  EXPECT_THAT(Support(logits, {.top_p = 0.62F}), ElementsAre(2));
  EXPECT_THAT(Support(logits, {.top_p = 0.63F}), ElementsAre(1, 2));
  EXPECT_THAT(Support(logits, {.top_p = 0.88F}), ElementsAre(0, 1, 2));
  EXPECT_THAT(Support(logits, {.top_p = 1.0F}), ElementsAre(0, 1, 2));
}

TEST(SamplerTest, TopKBeyondTheVocabularyIsOff) {
  EXPECT_THAT(Support({0, 0, 0}, {.top_k = 1000000}), ElementsAre(0, 1, 2));
}

TEST(SamplerTest, MinusInfinityMasks) {
  EXPECT_THAT(Support({-kInfinity, 0, -kInfinity, 0}, {}), ElementsAre(1, 3));
  EXPECT_THAT(Support({-kInfinity, 0, -kInfinity, 0}, {.top_k = 3, .top_p = 0.999F}),
              ElementsAre(1, 3));
  EXPECT_THAT(Support({-kInfinity, -5, -kInfinity}, {.temperature = 0.0F}), ElementsAre(1));
}

TEST(SamplerTest, NonFiniteLogitsAreErrors) {
  Sampler sampler;
  for (const float temperature : {0.0F, 1.0F}) {
    const SamplingParams params{.temperature = temperature};
    const std::vector<std::vector<float>> bad = {
        {0, kNan, 1}, {0, 1, kNan}, {kNan, 0, 1}, {0, kInfinity, 1}};
    for (const auto& logits : bad) {
      auto token = sampler.Sample(logits, params, {});
      EXPECT_EQ(token.status().code(), absl::StatusCode::kInternal);
      EXPECT_THAT(std::string(token.status().message()), HasSubstr("logit of token"));
    }
    for (const auto& logits : std::vector<std::vector<float>>{{-kInfinity, -kInfinity}, {}}) {
      EXPECT_EQ(sampler.Sample(logits, params, {}).status().code(),
                absl::StatusCode::kFailedPrecondition);
    }
  }
}

TEST(SamplerTest, ExtremeLogitsAndTemperatures) {
  const float big = std::numeric_limits<float>::max();
  EXPECT_THAT(Support({-big, big, 0}, {}), ElementsAre(1));
  EXPECT_THAT(Support({-big, -big}, {}), ElementsAre(0, 1));
  EXPECT_THAT(Support({1.0F, 1.00001F}, {.temperature = 1e-38F}), ElementsAre(1));
  EXPECT_THAT(Support({-3, 3}, {.temperature = 100.0F}), ElementsAre(0, 1));
}

TEST(SamplerTest, ResultDependsOnLogitsParamsAndIndexOnly) {
  const std::vector<float> logits = RandomLogits(300, 1.0F, 9);
  const std::vector<float> other = RandomLogits(77, 1.0F, 10);
  const SamplingParams params{.top_k = 100, .top_p = 0.95F, .seed = 0x123456789ABCDEF0};
  std::vector<int32_t> forward;
  Sampler sampler;
  for (uint64_t i = 0; i < 100; ++i) forward.push_back(*sampler.Sample(logits, params, {i}));
  EXPECT_GT(std::set<int32_t>(forward.begin(), forward.end()).size(), 10U);
  for (uint64_t i = 100; i-- > 0;) {
    ASSERT_TRUE(sampler.Sample(other, {.seed = i}, {i}).ok());
    Sampler fresh;
    EXPECT_EQ(*sampler.Sample(logits, params, {i}), forward[i]);
    EXPECT_EQ(*fresh.Sample(logits, params, {i}), forward[i]);
  }
}

TEST(SamplerTest, SeedsAndIndicesGiveIndependentNumbers) {
  std::set<double> seen;
  for (const uint64_t seed : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 32, ~uint64_t{0}}) {
    for (const uint64_t index : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 32, ~uint64_t{0}}) {
      const double uniform = UniformAt(seed, {index});
      EXPECT_GE(uniform, 0.0);
      EXPECT_LT(uniform, 1.0);
      seen.insert(uniform);
    }
  }
  EXPECT_EQ(seen.size(), 16U);
}

TEST(SamplerTest, RandomNumbersArePhilox4x32_10) {
  // Known answer of Random123 (kat_vectors, philox4x32 10) for counter 0 and key 0.
  constexpr uint64_t kFirst = 0x6627e8d5;
  constexpr uint64_t kSecond = 0xe169c58d;
  const uint64_t bits = ((kSecond << 32) | kFirst) >> 11;
  EXPECT_EQ(UniformAt(0, {}), std::ldexp(static_cast<double>(bits), -53));
}

TEST(SamplerTest, ChoicesDrawIndependently) {
  const std::vector<float> logits = RandomLogits(300, 1.0F, 19);
  Sampler sampler;
  std::set<std::vector<int32_t>> texts;
  for (uint32_t choice = 0; choice < 8; ++choice) {
    std::vector<int32_t> text;
    for (uint64_t i = 0; i < 20; ++i) {
      text.push_back(*sampler.Sample(logits, {.seed = 3}, {.index = i, .choice = choice}));
    }
    texts.insert(text);
  }
  EXPECT_EQ(texts.size(), 8U);
}

TEST(ValidateSamplingTest, AcceptsTheRanges) {
  EXPECT_TRUE(ValidateSampling({}, 10).empty());
  EXPECT_TRUE(ValidateSampling({.temperature = 0.0F, .top_p = 1e-9F, .min_p = 1.0F}, 10).empty());
  EXPECT_TRUE(ValidateSampling({.temperature = 100.0F, .top_k = 1 << 30}, 10).empty());
}

TEST(ValidateSamplingTest, NamesFieldValueAndRangeOfEverything) {
  const auto violations =
      ValidateSampling({.temperature = 101.0F, .top_k = -3, .top_p = 0.0F, .min_p = kNan}, 10);
  ASSERT_EQ(violations.size(), 4U);
  EXPECT_EQ(violations[0].field, "sampling.temperature");
  EXPECT_THAT(violations[0].description, HasSubstr("101 is outside [0, 100]"));
  EXPECT_EQ(violations[1].field, "sampling.top_k");
  EXPECT_THAT(violations[1].description, HasSubstr("-3 is outside [0, 2147483647]"));
  EXPECT_EQ(violations[2].field, "sampling.top_p");
  EXPECT_THAT(violations[2].description, HasSubstr("0 is outside (0, 1]"));
  EXPECT_EQ(violations[3].field, "sampling.min_p");
  EXPECT_THAT(violations[3].description, HasSubstr("nan is outside [0, 1]"));
  const auto more = ValidateSampling({.typical_p = 0.0F,
                                      .repetition_penalty = 0.0F,
                                      .presence_penalty = 2.5F,
                                      .frequency_penalty = kNan,
                                      .penalty_window = 8193,
                                      .logit_bias = {{10, 1}, {3, 1}, {3, 2}, {4, 101}, {5, kNan}}},
                                     10);
  std::vector<std::string> fields;
  for (const FieldViolation& violation : more) fields.push_back(violation.field);
  EXPECT_THAT(
      fields,
      ElementsAre("sampling.typical_p", "sampling.repetition_penalty", "sampling.presence_penalty",
                  "sampling.frequency_penalty", "sampling.penalty_window", "sampling.logit_bias[0]",
                  "sampling.logit_bias[2]", "sampling.logit_bias[3]", "sampling.logit_bias[4]"));
  EXPECT_TRUE(ValidateSampling({.logit_bias = {{0, -kInfinity}, {9, 100}, {1, -100}}}, 10).empty());
  EXPECT_EQ(ValidateSampling({.logit_bias = std::vector<LogitBias>(1025)}, 10).size(), 1U);
  EXPECT_EQ(ValidateSampling({.temperature = kNan}, 10).size(), 1U);
  EXPECT_EQ(ValidateSampling({.temperature = -0.1F}, 10).size(), 1U);
  EXPECT_EQ(ValidateSampling({.top_p = 1.01F}, 10).size(), 1U);
}

}  // namespace
}  // namespace osdn
