// The loop under faults, full queues, cancels, slow readers and shutdown.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/unit/engine/engine_loop_fixture.h"

namespace osdn {
namespace {

using ::testing::HasSubstr;

TEST_F(EngineLoopTest, NonFiniteLogitsEndThatSequenceOnly) {
  Start(Hashing);
  executor_->Pause();
  auto healthy = Submit(Request({1, 2, 3}, 50));
  auto poisoned = Submit(Request({1, kPoison, 3}, 50));
  executor_->Resume();
  const Outcome bad = ReadAll(poisoned.get());
  EXPECT_EQ(bad.finished.reason, FinishReason::kError);
  EXPECT_EQ(bad.finished.status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(bad.finished.status.message()), HasSubstr("is nan"));
  EXPECT_EQ(bad.finished.completion_tokens, 0);
  EXPECT_TRUE(ReadAll(healthy.get()).finished.status.ok());
  EXPECT_TRUE(loop_->health().ok());
  // Its slot is as new (ScriptedExecutor checks that it was wiped).
  EXPECT_TRUE(Generate(Request({1, 2, 3}, 5)).finished.status.ok());
  ExpectAllZero();
}

TEST_F(EngineLoopTest, FailedForwardEndsTheRunningAndServesTheQueue) {
  EngineLoop::Options options;
  options.limits = {.max_slots = 2};
  Start(Counting, options);
  executor_->Pause();
  auto first = Submit(Request({0}, 5));
  executor_->AwaitHeld();
  auto second = Submit(Request({0}, 5));
  executor_->FailForwards(1);
  executor_->Resume();
  const Outcome failed = ReadAll(first.get());
  EXPECT_EQ(failed.finished.reason, FinishReason::kError);
  EXPECT_EQ(failed.finished.status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(failed.finished.status.message()), HasSubstr("device on fire"));
  EXPECT_EQ(ReadAll(second.get()).text, "bcdef");
  EXPECT_TRUE(loop_->health().ok());
  ExpectAllZero();
}

TEST_F(EngineLoopTest, RepeatedFailuresStopTheEngine) {
  EngineLoop::Options options;
  options.limits = {.max_slots = 1};
  Start(Counting, options);
  executor_->Pause();
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (int i = 0; i < 5; ++i) streams.push_back(Submit(Request({0}, 5)));
  executor_->FailForwards(1000);
  executor_->Resume();
  for (int i = 0; i < 5; ++i) {
    const Outcome outcome = ReadAll(streams[static_cast<size_t>(i)].get());
    EXPECT_EQ(outcome.finished.reason, FinishReason::kError);
    EXPECT_EQ(outcome.finished.status.code(),
              i < 3 ? absl::StatusCode::kInternal : absl::StatusCode::kUnavailable);
  }
  EXPECT_EQ(executor_->forwards(), EngineLoop::kMaxConsecutiveFailures);
  EXPECT_EQ(loop_->health().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(loop_->health().message()), HasSubstr("device on fire"));
  EXPECT_EQ(loop_->Submit(Request({0}, 5)).status(), loop_->health());
  loop_->Drain(kLong);
  ExpectAllZero();
}

TEST_F(EngineLoopTest, FailuresWithSuccessBetweenDoNotAddUp) {
  Start(Counting);
  for (int i = 0; i < 2 * EngineLoop::kMaxConsecutiveFailures; ++i) {
    executor_->FailForwards(1);
    EXPECT_EQ(Generate(Request({0}, 2)).finished.reason, FinishReason::kError);
    EXPECT_EQ(Generate(Request({0}, 2)).text, "bc");
  }
}

TEST_F(EngineLoopTest, SlotThatCannotBeWipedIsNeverUsedAgain) {
  EngineLoop::Options options;
  options.limits = {.max_slots = 2};
  Start(Counting, options);
  executor_->FailReleases(1);
  EXPECT_EQ(Generate(Request({0}, 2)).text, "bc");
  EXPECT_EQ(Generate(Request({0}, 2)).text, "bc");  // the other slot
  EXPECT_EQ(loop_->stats().slots_used, 1) << "the lost one";
  executor_->FailReleases(1);
  EXPECT_EQ(Generate(Request({0}, 2)).text, "bc");
  loop_->Drain(kLong);
  EXPECT_EQ(loop_->health().code(), absl::StatusCode::kUnavailable);
}

// Two sequences would share a state: both end, everybody else goes on, the slot is out of use.
TEST_F(EngineLoopTest, ASlotOfTwoSequencesEndsBothAndIsNeverUsedAgain) {
  EngineLoop::Options options;
  options.limits = {.max_slots = 3};
  Start(Hashing, options);
  const Outcome alone = Generate(Request({1, 2, 3}, 50));
  executor_->Pause();
  auto healthy = Submit(Request({1, 2, 3}, 50));
  executor_->AwaitHeld();
  GenerationRequest endless = Request({4, 5}, 1'000'000);
  endless.ignore_eos = true;
  auto robbed = Submit(endless);
  executor_->Resume();
  robbed->Next();  // it runs, in the second slot
  executor_->GiveOutAgain(1);
  auto newcomer = Submit(Request({6, 7}, 50));
  for (TokenStream* stream : {robbed.get(), newcomer.get()}) {
    const Outcome outcome = ReadAll(stream);
    EXPECT_EQ(outcome.finished.reason, FinishReason::kError);
    EXPECT_EQ(outcome.finished.status.code(), absl::StatusCode::kInternal);
    EXPECT_THAT(std::string(outcome.finished.status.message()), HasSubstr("slot"));
  }
  EXPECT_EQ(ReadAll(healthy.get()).ids, alone.ids);
  EXPECT_TRUE(loop_->health().ok());
  EXPECT_EQ(Generate(Request({1, 2, 3}, 50)).ids, alone.ids);
  EXPECT_EQ(loop_->stats().slots_used, 1) << "the quarantined one";
  EXPECT_EQ(loop_->stats().running, 0);
}

TEST_F(EngineLoopTest, QueueIsBoundedByRequests) {
  EngineLoop::Options options;
  options.limits = {.max_slots = 1};
  options.queue = {.max_requests = 2, .max_tokens = 1000};
  Start(Counting, options);
  executor_->Pause();
  std::vector<std::shared_ptr<TokenStream>> streams = {Submit(Request({0}, 2))};
  executor_->AwaitHeld();
  streams.push_back(Submit(Request({0, 0, 0}, 2)));
  streams.push_back(Submit(Request({0}, 2)));
  EXPECT_EQ(loop_->stats().running, 1);
  EXPECT_EQ(loop_->stats().slots_used, 1);
  EXPECT_EQ(loop_->stats().queued, 2);
  EXPECT_EQ(loop_->stats().queued_tokens, 4);
  const absl::Status full = loop_->Submit(Request({0}, 2)).status();
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(full.message()), HasSubstr("2 requests wait, at most 2"));
  EXPECT_EQ(loop_->stats().queued, 2);
  executor_->Resume();
  for (auto& stream : streams) EXPECT_EQ(ReadAll(stream.get()).text, "bc");
  EXPECT_EQ(Generate(Request({0}, 2)).text, "bc");
  ExpectAllZero();
}

TEST_F(EngineLoopTest, QueueIsBoundedByPromptTokens) {
  EngineLoop::Options options;
  options.limits = {.max_slots = 1};
  options.queue = {.max_requests = 100, .max_tokens = 10};
  Start(Counting, options);
  executor_->Pause();
  auto running = Submit(Request({0}, 2));
  executor_->AwaitHeld();
  auto queued = Submit(Request(std::vector<int32_t>(7, 0), 2));
  const absl::Status full = loop_->Submit(Request({0, 0, 0, 0}, 2)).status();
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(full.message()),
              HasSubstr("7 prompt tokens wait and this request has 4, at most 10"));
  auto fits = Submit(Request({0, 0, 0}, 2));
  executor_->Resume();
  for (auto& stream : {running, queued, fits}) EXPECT_EQ(ReadAll(stream.get()).text, "bc");
  ExpectAllZero();
}

TEST_F(EngineLoopTest, CancelInTheQueueCostsNoCompute) {
  EngineLoop::Options options;
  options.limits = {.max_slots = 1};
  Start(Counting, options);
  executor_->Pause();
  auto running = Submit(Request({0}, 2));
  executor_->AwaitHeld();
  auto queued = Submit(Request({0}, 2));
  queued->Cancel();
  executor_->Resume();
  const Outcome outcome = ReadAll(queued.get());
  EXPECT_EQ(outcome.finished.reason, FinishReason::kCancelled);
  EXPECT_TRUE(outcome.finished.status.ok());
  EXPECT_EQ(outcome.finished.completion_tokens, 0);
  EXPECT_EQ(outcome.finished.timings.prefill.count(), 0);
  EXPECT_EQ(ReadAll(running.get()).text, "bc");
  EXPECT_EQ(executor_->forwards(), 2);
  ExpectAllZero();
}

TEST_F(EngineLoopTest, CancelInPrefillEndsWithinOneStep) {
  EngineLoop::Options options;
  options.limits = {.max_slots = 2, .max_step_tokens = 128, .max_prefill_tokens = 64};
  Start(Counting, options);
  executor_->Pause();
  auto stream = Submit(Request(std::vector<int32_t>(100000, 0), 2));
  executor_->AwaitHeld();
  stream->Cancel();
  executor_->Resume();
  const Outcome outcome = ReadAll(stream.get());
  EXPECT_EQ(outcome.finished.reason, FinishReason::kCancelled);
  EXPECT_TRUE(outcome.ids.empty());
  EXPECT_EQ(executor_->forwards(), 1);
  ExpectAllZero();
}

TEST_F(EngineLoopTest, CancelInDecodeEndsWithinOneStep) {
  Start(Counting);
  GenerationRequest request = Request({0}, std::numeric_limits<int64_t>::max());
  request.ignore_eos = true;
  auto stream = Submit(request);
  for (int i = 0; i < 5; ++i) stream->Next();
  executor_->Pause();
  executor_->AwaitHeld();
  const int64_t before = executor_->forwards();
  stream->Cancel();
  executor_->Resume();
  const Outcome outcome = ReadAll(stream.get());
  EXPECT_EQ(outcome.finished.reason, FinishReason::kCancelled);
  EXPECT_EQ(executor_->forwards(), before);
  EXPECT_EQ(outcome.finished.completion_tokens, static_cast<int64_t>(outcome.ids.size()) + 5);
  ExpectAllZero();
}

TEST_F(EngineLoopTest, SlowReaderStallsItselfOnly) {
  EngineLoop::Options options;
  options.limits = {.max_slots = 4};
  options.stream_capacity = 8;
  Start(Counting, options);
  GenerationRequest request = Request({0}, 500);
  request.ignore_eos = true;
  auto slow = Submit(request);
  EXPECT_EQ(Generate(request).finished.completion_tokens, 500);
  EXPECT_EQ(Generate(request).finished.completion_tokens, 500);
  // The slow one has exactly its queue, one token an event.
  EXPECT_TRUE(slow->full());
  EXPECT_EQ(loop_->stats().running, 1);
  int events = 0;
  while (slow->TryNext().has_value()) {
    ++events;
    if (events == 8) break;
  }
  EXPECT_EQ(events, 8);
  // And goes on where it stood.
  const Outcome rest = ReadAll(slow.get());
  EXPECT_EQ(rest.ids.size(), 500U - 8U);
  EXPECT_EQ(rest.ids.front(), 9);
  EXPECT_EQ(rest.finished.reason, FinishReason::kLength);
  ExpectAllZero();
}

TEST_F(EngineLoopTest, StalledReaderCanBeCancelled) {
  EngineLoop::Options options;
  options.stream_capacity = 2;
  Start(Counting, options);
  auto stream = Submit(Request({0}, 20));
  while (!stream->full()) std::this_thread::yield();
  stream->Cancel();
  const Outcome outcome = ReadAll(stream.get());
  EXPECT_EQ(outcome.finished.reason, FinishReason::kCancelled);
  EXPECT_LE(outcome.ids.size(), 3U);
  ExpectAllZero();
}

TEST_F(EngineLoopTest, DrainLetsEverythingFinish) {
  EngineLoop::Options options;
  options.limits = {.max_slots = 2};
  Start(Counting, options);
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (int i = 0; i < 6; ++i) streams.push_back(Submit(Request({0}, 20)));
  loop_->Drain(kLong);
  ExpectAllZero();
  for (auto& stream : streams) {
    EXPECT_EQ(ReadAll(stream.get()).finished.reason, FinishReason::kLength);
  }
  const absl::Status refused = loop_->Submit(Request({0}, 1)).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("draining"));
  loop_->Drain(kLong);  // idempotent
}

TEST_F(EngineLoopTest, DrainEndsWhatIsLeftAfterTheTimeout) {
  EngineLoop::Options options;
  options.limits = {.max_slots = 1};
  options.stream_capacity = 2;
  Start(Counting, options);
  auto stalled = Submit(Request({0}, 20));  // nobody reads
  auto queued = Submit(Request({0}, 20));
  while (!stalled->full()) std::this_thread::yield();
  std::thread other([&] { loop_->Drain(std::chrono::milliseconds(1)); });
  loop_->Drain(std::chrono::milliseconds(1));
  other.join();
  // What has begun to answer leaves its state, asked for or not.
  const Outcome begun = ReadAll(stalled.get());
  EXPECT_EQ(begun.finished.reason, FinishReason::kDrained);
  EXPECT_TRUE(begun.finished.status.ok());
  ASSERT_NE(begun.finished.state, nullptr);
  ASSERT_FALSE(begun.ids.empty());
  EXPECT_EQ(begun.finished.state->pending_token, begun.ids.back());
  EXPECT_EQ(begun.finished.state->random_index, begun.ids.size());
  const Outcome waiting = ReadAll(queued.get());
  EXPECT_EQ(waiting.finished.reason, FinishReason::kError);
  EXPECT_EQ(waiting.finished.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(waiting.finished.status.message()), HasSubstr("drain timeout 1 ms"));
  EXPECT_EQ(waiting.finished.state, nullptr);
  ExpectAllZero();
}

TEST_F(EngineLoopTest, DestructionCancelsAndStreamsStayReadable) {
  EngineLoop::Options options;
  options.limits = {.max_slots = 2};
  options.stream_capacity = 4;
  Start(Counting, options);
  GenerationRequest request = Request({0}, std::numeric_limits<int64_t>::max());
  request.ignore_eos = true;
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (int i = 0; i < 6; ++i) streams.push_back(Submit(request));
  loop_.reset();
  for (auto& stream : streams) {
    EXPECT_EQ(ReadAll(stream.get()).finished.reason, FinishReason::kCancelled);
    stream->Cancel();  // harmless
  }
}

// Threads that submit, read, leave early and let go, at random. Nothing may be lost or left over.
TEST_F(EngineLoopTest, RandomArrivalsAndCancelsLeaveNothingBehind) {
  EngineLoop::Options options;
  options.limits = {.max_slots = 5, .max_step_tokens = 200, .max_prefill_tokens = 64};
  options.queue = {.max_requests = 12, .max_tokens = 4000};
  options.stream_capacity = 4;
  Start(Hashing, options);
  std::atomic<int64_t> accepted{0};
  std::atomic<int64_t> finished{0};
  const auto client = [&](uint32_t seed) {
    std::mt19937 random(seed);
    for (GenerationRequest& request : RandomRequests(60, seed)) {
      auto stream = loop_->Submit(std::move(request));
      if (!stream.ok()) {
        EXPECT_EQ(stream.status().code(), absl::StatusCode::kResourceExhausted);
        std::this_thread::yield();
        continue;
      }
      ++accepted;
      // Reads some events, then cancels one time in two.
      for (uint32_t left = random() % 40;; --left) {
        if (left == 0 && random() % 2 == 0) (*stream)->Cancel();
        if (std::holds_alternative<GenerationFinished>((*stream)->Next())) break;
        if (left == 0) left = 1000000;
      }
      ++finished;
    }
  };
  std::vector<std::thread> clients;
  for (uint32_t seed = 1; seed <= 8; ++seed) clients.emplace_back(client, seed);
  for (std::thread& thread : clients) thread.join();
  EXPECT_GT(accepted, 50);
  EXPECT_EQ(finished, accepted);
  ExpectAllZero();
  loop_->Drain(kLong);
}

}  // namespace
}  // namespace osdn
