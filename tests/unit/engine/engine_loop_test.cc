// The way of a request through the loop: tokens, text, endings.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/unit/engine/engine_loop_fixture.h"

namespace osdn {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST_F(EngineLoopTest, MaxTokens) {
  Start(Counting);
  const Outcome outcome = Generate(Request({5, 0}, 3));
  EXPECT_THAT(outcome.ids, ElementsAre(1, 2, 3));
  EXPECT_EQ(outcome.text, "bcd");
  EXPECT_EQ(outcome.finished.reason, FinishReason::kLength);
  EXPECT_TRUE(outcome.finished.status.ok());
  EXPECT_EQ(outcome.finished.prompt_tokens, 2);
  EXPECT_EQ(outcome.finished.cached_tokens, 0);
  EXPECT_EQ(outcome.finished.completion_tokens, 3);
  const GenerationTimings& timings = outcome.finished.timings;
  EXPECT_GT(timings.time_to_first_token.count(), 0);
  EXPECT_EQ(timings.time_to_first_token, timings.queue + timings.prefill);
  EXPECT_GT(timings.decode.count(), 0);
  ExpectAllZero();
}

TEST_F(EngineLoopTest, EndOfTextIsCountedButNotShown) {
  Start(Counting);
  const Outcome outcome = Generate(Request({28}, 100));  // 29 30 and then 31, end of text
  EXPECT_THAT(outcome.ids, ElementsAre(29, 30));
  EXPECT_EQ(outcome.finished.reason, FinishReason::kStop);
  EXPECT_EQ(outcome.finished.completion_tokens, 3);
}

TEST_F(EngineLoopTest, IgnoreEos) {
  Start(Counting);
  GenerationRequest request = Request({29}, 4);
  request.ignore_eos = true;
  const Outcome outcome = Generate(request);
  EXPECT_THAT(outcome.ids, ElementsAre(30, 31, 0, 1));
  EXPECT_EQ(outcome.finished.reason, FinishReason::kLength);
}

TEST_F(EngineLoopTest, StopTokensStopEvenWithIgnoreEos) {
  Start(Counting);
  GenerationRequest request = Request({0}, 10);
  request.ignore_eos = true;
  request.stop_token_ids = {20, 3};
  const Outcome outcome = Generate(request);
  EXPECT_EQ(outcome.text, "bc");
  EXPECT_EQ(outcome.finished.reason, FinishReason::kStop);
  EXPECT_EQ(outcome.finished.completion_tokens, 3);
}

TEST_F(EngineLoopTest, MinTokensMasksStopAndEndOfText) {
  Start([](const History& history, absl::Span<float> logits) {
    Counting(history, logits);
    logits[kEos] = 100.0F;  // always likeliest
    logits[7] = 90.0F;      // a stop token next
  });
  GenerationRequest request = Request({0}, 10);
  request.stop_token_ids = {7};
  EXPECT_EQ(Generate(request).finished.completion_tokens, 1);
  request.min_tokens = 4;
  const Outcome outcome = Generate(request);
  EXPECT_THAT(outcome.ids, ElementsAre(1, 2, 3, 4));
  EXPECT_EQ(outcome.finished.reason, FinishReason::kStop);
  EXPECT_EQ(outcome.finished.completion_tokens, 5);
  // With ignore_eos end of text is a token like others.
  request.ignore_eos = true;
  request.min_tokens = 10;
  EXPECT_THAT(Generate(request).ids, ElementsAre(31, 31, 31, 31, 31, 31, 31, 31, 31, 31));
}

TEST_F(EngineLoopTest, StopStrings) {
  Start(Counting);
  GenerationRequest request = Request({0}, 20);
  request.stop_strings = {"zz", "fgh"};
  const Outcome outcome = Generate(request);
  EXPECT_EQ(outcome.text, "bcde");
  EXPECT_EQ(outcome.finished.reason, FinishReason::kStopString);
  EXPECT_EQ(outcome.finished.matched_stop_string, "fgh");
  EXPECT_EQ(outcome.finished.completion_tokens, 7);
}

TEST_F(EngineLoopTest, StopStringsArePassedOverBeforeMinTokens) {
  Start(Counting);
  GenerationRequest request = Request({0}, 20);
  request.stop_strings = {"cd", "gh"};
  request.min_tokens = 7;
  const Outcome outcome = Generate(request);
  EXPECT_EQ(outcome.text, "bcdef");
  EXPECT_EQ(outcome.finished.matched_stop_string, "gh");
  EXPECT_EQ(outcome.finished.completion_tokens, 7);
}

TEST_F(EngineLoopTest, HeldTextComesBeforeTheEnd) {
  Start(Counting);
  GenerationRequest request = Request({0}, 4);
  request.stop_strings = {"defgh"};
  EXPECT_EQ(Generate(request).text, "bcde");
  // An unfinished character.
  EXPECT_EQ(Generate(Request({24}, 3)).text, "z\xEF\xBF\xBD");
  EXPECT_EQ(Generate(Request({24}, 4)).text, "z\xE2\x82\xAC");
}

TEST_F(EngineLoopTest, PrefillProgressTellsEveryPiece) {
  EngineLoop::Options options;
  options.limits = {.max_slots = 2, .max_step_tokens = 130, .max_prefill_tokens = 64};
  Start(Counting, options);
  GenerationRequest request = Request(std::vector<int32_t>(300, 3), 1);
  EXPECT_THAT(Generate(request).progress, IsEmpty());
  request.want_prefill_progress = true;
  EXPECT_THAT(Generate(request).progress, ElementsAre(128, 256, 300));
}

TEST_F(EngineLoopTest, TogetherEqualsAlone) {
  EngineLoop::Options options;
  options.limits = {.max_slots = 7, .max_step_tokens = 200, .max_prefill_tokens = 64};
  options.stream_capacity = 3;
  Start(Hashing, options);
  const std::vector<GenerationRequest> requests = RandomRequests(40, 17);
  std::vector<Outcome> alone;
  for (const GenerationRequest& request : requests) alone.push_back(Generate(request));
  EXPECT_EQ(executor_->max_sequences(), 1);

  std::vector<std::shared_ptr<TokenStream>> streams;
  executor_->Pause();
  for (const GenerationRequest& request : requests) streams.push_back(Submit(request));
  executor_->Resume();
  std::vector<std::thread> readers;
  std::vector<Outcome> together(requests.size());
  for (size_t i = 0; i < requests.size(); ++i) {
    readers.emplace_back([&, i] { together[i] = ReadAll(streams[i].get()); });
  }
  for (std::thread& reader : readers) reader.join();
  EXPECT_GT(executor_->max_sequences(), 1);
  EXPECT_LE(executor_->max_sequences(), 7);
  for (size_t i = 0; i < requests.size(); ++i) {
    SCOPED_TRACE(i);
    EXPECT_EQ(together[i].ids, alone[i].ids);
    EXPECT_EQ(together[i].text, alone[i].text);
    EXPECT_EQ(together[i].finished.reason, alone[i].finished.reason);
    EXPECT_EQ(together[i].finished.completion_tokens, alone[i].finished.completion_tokens);
  }
  ExpectAllZero();
}

TEST_F(EngineLoopTest, TextRestartsAfterAControlToken) {
  executor_ = std::make_unique<ScriptedExecutor>(kVocab, 1, Counting);
  VocabularyView vocabulary{.size = kVocab,
                            .eos_ids = {},
                            .token_bytes = [](int32_t) -> std::string_view { return " w"; },
                            .restarts_text = [](int32_t id) { return id == 29; }};
  loop_ = std::make_unique<EngineLoop>(EngineLoop::Options{.limits = {.max_slots = 1}},
                                       std::move(vocabulary), executor_.get());
  EXPECT_EQ(Generate(Request({29}, 2)).text, "w w");
  EXPECT_EQ(Generate(Request({1}, 2)).text, " w w");
}

TEST_F(EngineLoopTest, WithoutATokenizerThereAreIdsOnly) {
  executor_ = std::make_unique<ScriptedExecutor>(kVocab, 1, Counting);
  VocabularyView vocabulary{
      .size = 10, .eos_ids = {}, .token_bytes = nullptr, .restarts_text = nullptr};
  loop_ = std::make_unique<EngineLoop>(EngineLoop::Options{.limits = {.max_slots = 1}},
                                       std::move(vocabulary), executor_.get());
  const Outcome outcome = Generate(Request({7}, 3));
  // 10 is beyond the sampled vocabulary; all that is left is as likely as token 0.
  EXPECT_THAT(outcome.ids, ElementsAre(8, 9, 0));
  EXPECT_EQ(outcome.text, "");
}

}  // namespace
}  // namespace osdn
