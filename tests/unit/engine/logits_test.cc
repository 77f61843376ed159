#include "engine/logits.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "engine/row_math.h"

namespace osdn {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<float> RandomRow(size_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0F, 4.0F);
  std::vector<float> row(n);
  for (float& x : row) x = normal(random);
  return row;
}

TEST(RowMathTest, PeakIsTheFirstOfTheLargest) {
  for (size_t n = 1; n < 70; ++n) {
    std::vector<float> row = RandomRow(n, static_cast<uint32_t>(n));
    for (size_t place = 0; place < n; ++place) {
      std::vector<float> changed = row;
      changed[place] = 100.0F;
      changed[n - 1] = 100.0F;
      const row_math::Peak peak = row_math::FindPeak(changed);
      EXPECT_EQ(peak.index, static_cast<int64_t>(place)) << n;
      EXPECT_EQ(peak.value, 100.0F);
      EXPECT_FALSE(peak.invalid);
      for (const float bad : {std::numeric_limits<float>::quiet_NaN(), kInfinity}) {
        changed[place] = bad;
        EXPECT_TRUE(row_math::FindPeak(changed).invalid) << n << ' ' << place;
      }
      changed.assign(n, -kInfinity);
      EXPECT_EQ(row_math::FindPeak(changed).index, -1);
      EXPECT_FALSE(row_math::FindPeak(changed).invalid);
    }
  }
  EXPECT_EQ(row_math::FindPeak({}).index, -1);
}

TEST(RowMathTest, ExpWeightsAndSums) {
  for (const size_t n : {1, 7, 16, 255, 256, 257, 1000, 4096}) {
    std::vector<float> row = RandomRow(n, static_cast<uint32_t>(n));
    if (n > 2) row[n / 2] = -kInfinity;
    const float peak = row_math::FindPeak(row).value;
    std::vector<float> weights(n);
    std::vector<double> blocks(static_cast<size_t>(row_math::NumBlocks(static_cast<int64_t>(n))));
    const double total =
        row_math::ExpWeights(row, peak, 0.7F, absl::MakeSpan(weights), absl::MakeSpan(blocks));
    double expected_total = 0.0;
    double sum_exp = 0.0;
    for (size_t i = 0; i < n; ++i) {
      const double expected = std::exp((static_cast<double>(row[i]) - peak) / 0.7F);
      EXPECT_NEAR(weights[i], expected, 1e-5 * expected + 1e-38);
      expected_total += expected;
      sum_exp += std::exp(static_cast<double>(row[i]));
    }
    EXPECT_NEAR(total, expected_total, 1e-5 * expected_total);
    EXPECT_NEAR(std::accumulate(blocks.begin(), blocks.end(), 0.0), total, 1e-9 * total);
    EXPECT_NEAR(row_math::LogSumExp(row, peak), std::log(sum_exp), 1e-5);
  }
}

TEST(RowMathTest, BitmaskKeepsWhatIsAllowed) {
  std::mt19937 random(3);
  for (const size_t n : {1, 31, 32, 33, 64, 100, 97}) {
    std::vector<uint32_t> allowed((n + 31) / 32);
    for (uint32_t& word : allowed) {
      word = random() % 3 == 0 ? 0 : random() % 2 == 0 ? ~0U : static_cast<uint32_t>(random());
    }
    const std::vector<float> row = RandomRow(n, 5);
    std::vector<float> masked = row;
    row_math::ApplyBitmask(allowed, absl::MakeSpan(masked));
    for (size_t i = 0; i < n; ++i) {
      EXPECT_EQ(masked[i], (allowed[i / 32] >> (i % 32) & 1U) != 0 ? row[i] : -kInfinity);
    }
  }
}

TEST(PenaltyWindowTest, CountsWhatIsInTheWindow) {
  PenaltyWindow window(4, std::vector<int32_t>{0, 0, 0, 1, 2, 2});  // of it: 0 1 2 2
  const SamplingParams repetition{.repetition_penalty = 2.0F};
  std::vector<float> logits = {8, -8, 8, 8};
  window.Apply(repetition, absl::MakeSpan(logits));
  EXPECT_THAT(logits, ElementsAre(4, -16, 4, 8));

  // Prompts are not penalised by presence and frequency.
  const SamplingParams additive{.presence_penalty = 1.0F, .frequency_penalty = 0.5F};
  logits = {0, 0, 0, 0};
  window.Apply(additive, absl::MakeSpan(logits));
  EXPECT_THAT(logits, ElementsAre(0, 0, 0, 0));

  window.Add(3);
  window.Add(3);
  window.Add(1);  // 2 3 3 1
  window.Apply(additive, absl::MakeSpan(logits));
  EXPECT_THAT(logits, ElementsAre(0, -1.5F, 0, -2.0F));
  logits = {8, -8, 8, 8};
  window.Apply(repetition, absl::MakeSpan(logits));
  EXPECT_THAT(logits, ElementsAre(8, -16, 4, 4));

  PenaltyWindow fork = window;
  for (int i = 0; i < 4; ++i) fork.Add(0);
  logits = {0, 0, 0, 0};
  fork.Apply(additive, absl::MakeSpan(logits));
  EXPECT_THAT(logits, ElementsAre(-3.0F, 0, 0, 0));
}

TEST(PenaltyWindowTest, TokensBeyondTheRowAreNoMatter) {
  PenaltyWindow window(8, std::vector<int32_t>{1, 500});
  std::vector<float> logits = {1, 1};
  window.Apply({.repetition_penalty = 2.0F}, absl::MakeSpan(logits));
  EXPECT_THAT(logits, ElementsAre(1, 0.5F));
}

TEST(LogitsTest, BiasAndMask) {
  std::vector<float> logits = {1, 2, 3};
  ApplyLogitBias(std::vector<LogitBias>{{0, 5}, {2, -kInfinity}, {9, 1}}, absl::MakeSpan(logits));
  EXPECT_THAT(logits, ElementsAre(6, 2, -kInfinity));
  MaskTokens({1, 7}, absl::MakeSpan(logits));
  EXPECT_THAT(logits, ElementsAre(6, -kInfinity, -kInfinity));
}

TEST(LogprobTest, AreThoseOfTheSoftmax) {
  const std::vector<float> row = {std::log(0.5F), std::log(0.125F), std::log(0.25F),
                                  std::log(0.125F), -kInfinity};
  const TokenLogprob logprob = ComputeLogprob(row, 1, 3);
  EXPECT_EQ(logprob.token, 1);
  EXPECT_NEAR(logprob.logprob, std::log(0.125), 1e-6);
  ASSERT_EQ(logprob.top.size(), 3U);
  EXPECT_EQ(logprob.top[0].token, 0);
  EXPECT_EQ(logprob.top[1].token, 2);
  EXPECT_EQ(logprob.top[2].token, 1) << "the lower id of two equals";
  EXPECT_NEAR(logprob.top[0].logprob, std::log(0.5), 1e-6);
  EXPECT_THAT(ComputeLogprob(row, 0, 0).top, IsEmpty());
  EXPECT_EQ(ComputeLogprob(row, 0, 20).top.size(), 4U) << "what is ruled out is not told";
  EXPECT_EQ(ComputeLogprob(row, 4, 0).logprob, -kInfinity);
}

TEST(LogprobTest, TopIsASortedPrefix) {
  const std::vector<float> row = RandomRow(5000, 17);
  std::vector<int32_t> order(row.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return row[static_cast<size_t>(a)] > row[static_cast<size_t>(b)];
  });
  const TokenLogprob logprob = ComputeLogprob(row, order[0], kMaxTopLogprobs);
  ASSERT_EQ(logprob.top.size(), 20U);
  EXPECT_EQ(logprob.logprob, logprob.top[0].logprob);
  for (size_t i = 0; i < 20; ++i) EXPECT_EQ(logprob.top[i].token, order[i]);
}

}  // namespace
}  // namespace osdn
