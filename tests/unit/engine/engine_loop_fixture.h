// What the loop's tests share: requests, networks of a few lines, and a loop on a ScriptedExecutor.
#ifndef OSDN_TESTS_UNIT_ENGINE_ENGINE_LOOP_FIXTURE_H_
#define OSDN_TESTS_UNIT_ENGINE_ENGINE_LOOP_FIXTURE_H_

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine_loop.h"
#include "tests/unit/engine/scripted_executor.h"
#include "tests/unit/engine/stream_reader.h"

namespace osdn {

using History = ScriptedExecutor::History;
using testing_support::Outcome;
using testing_support::ReadAll;

inline constexpr int64_t kVocab = 32;
inline constexpr int32_t kEos = 31;
inline constexpr int32_t kPoison = 30;  // in the history: logits are NaN
inline constexpr auto kLong = std::chrono::hours(1);

// Token i is the letter 'a' + i up to 25; 26.. are bytes of a euro sign, then silent control
// tokens.
inline std::string_view TokenBytes(int32_t id) {
  static const std::string kLetters = "abcdefghijklmnopqrstuvwxyz\xE2\x82\xAC";
  return id < 29 ? std::string_view(kLetters).substr(static_cast<size_t>(id), 1) : "";
}

// The next token is the last one plus 1, surely.
inline void Counting(const History& history, absl::Span<float> logits) {
  std::fill(logits.begin(), logits.end(), 0.0F);
  logits[static_cast<size_t>((history.back() + 1) % kVocab)] = 50.0F;
}

// Logits that depend on the whole history, so that any mix-up shows.
inline void Hashing(const History& history, absl::Span<float> logits) {
  uint32_t hash = 2166136261U;
  for (const int32_t token : history) hash = (hash ^ static_cast<uint32_t>(token)) * 16777619U;
  std::mt19937 random(hash);
  std::normal_distribution<float> normal(0.0F, 1.5F);
  const bool poisoned = std::find(history.begin(), history.end(), kPoison) != history.end();
  for (float& logit : logits) {
    logit = poisoned ? std::numeric_limits<float>::quiet_NaN() : normal(random);
  }
  if (!poisoned) logits[kPoison] = -std::numeric_limits<float>::infinity();
}

inline GenerationRequest Request(std::vector<int32_t> prompt, int64_t max_tokens) {
  GenerationRequest request;
  request.prompt = std::move(prompt);
  request.max_tokens = max_tokens;
  request.sampling.temperature = 0.0F;
  return request;
}

inline std::vector<GenerationRequest> RandomRequests(int count, uint32_t seed) {
  std::mt19937 random(seed);
  const auto pick = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  std::vector<GenerationRequest> requests;
  for (int i = 0; i < count; ++i) {
    std::vector<int32_t> prompt(
        static_cast<size_t>(pick(0, 3) == 0 ? pick(100, 400) : pick(1, 30)));
    for (int32_t& id : prompt) id = pick(0, 29);
    GenerationRequest request = Request(std::move(prompt), pick(1, 60));
    request.sampling = {.temperature = static_cast<float>(pick(0, 2)) * 0.7F,
                        .top_k = pick(0, 10),
                        .top_p = pick(0, 1) == 0 ? 1.0F : 0.9F,
                        .seed = static_cast<uint64_t>(pick(0, 1 << 30))};
    request.min_tokens = pick(0, 1) == 0 ? 0 : pick(0, static_cast<int>(request.max_tokens));
    request.ignore_eos = pick(0, 1) == 0;
    if (pick(0, 1) == 0) request.stop_strings = {"ab", "q", "xyz"};
    requests.push_back(std::move(request));
  }
  return requests;
}

class EngineLoopTest : public ::testing::Test {
 protected:
  void Start(ScriptedExecutor::NextLogits next_logits, EngineLoop::Options options = {}) {
    executor_ = std::make_unique<ScriptedExecutor>(
        kVocab, static_cast<int32_t>(options.limits.max_slots), std::move(next_logits));
    VocabularyView vocabulary{.size = kVocab,
                              .eos_ids = {kEos},
                              .token_bytes = TokenBytes,
                              .restarts_text = [](int32_t id) { return id >= 29; }};
    loop_ = std::make_unique<EngineLoop>(options, std::move(vocabulary), executor_.get());
  }

  void TearDown() override {
    loop_.reset();
    if (executor_ != nullptr) {
      EXPECT_THAT(executor_->problems(), ::testing::IsEmpty());
    }
  }

  std::shared_ptr<TokenStream> Submit(GenerationRequest request) {
    auto stream = loop_->Submit(std::move(request));
    EXPECT_TRUE(stream.ok()) << stream.status();
    return stream.ok() ? *stream : nullptr;
  }

  Outcome Generate(GenerationRequest request) { return ReadAll(Submit(std::move(request)).get()); }

  void ExpectAllZero() {
    const EngineStats stats = loop_->stats();
    EXPECT_EQ(stats.running, 0);
    EXPECT_EQ(stats.queued, 0);
    EXPECT_EQ(stats.queued_tokens, 0);
    EXPECT_EQ(stats.slots_used, 0);
  }

  std::unique_ptr<ScriptedExecutor> executor_;
  std::unique_ptr<EngineLoop> loop_;
};

}  // namespace osdn

#endif  // OSDN_TESTS_UNIT_ENGINE_ENGINE_LOOP_FIXTURE_H_
