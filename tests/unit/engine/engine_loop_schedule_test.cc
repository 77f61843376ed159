// Who runs when: priorities, fairness, deadlines, time limits, slow readers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <thread>
#include <vector>

#include "tests/unit/engine/engine_loop_fixture.h"

namespace osdn {
namespace {

using std::chrono::milliseconds;
using Streams = std::vector<std::shared_ptr<TokenStream>>;

class ScheduleTest : public EngineLoopTest {
 protected:
  // A request that holds the loop in its forward pass while others are submitted.
  std::shared_ptr<TokenStream> Hold() {
    executor_->Pause();
    auto held = Submit(Request({1}, 2));
    executor_->AwaitHeld();
    return held;
  }
  static GenerationRequest From(const std::string& client, Priority priority = Priority::kNormal) {
    GenerationRequest request = Request({1, 2}, 1);
    request.scheduling.client = client;
    request.scheduling.priority = priority;
    return request;
  }
};

EngineLoop::Options OneSlot() { return {.limits = {.max_slots = 1}}; }

TEST_F(ScheduleTest, ClassesGoFirst) {
  EngineLoop::Options options = OneSlot();
  options.ageing = std::chrono::hours(1);
  Start(Counting, options);
  Hold();
  Streams streams = {Submit(From("c", Priority::kLow)), Submit(From("c", Priority::kNormal)),
                     Submit(From("c", Priority::kHigh)), Submit(From("c", Priority::kNormal))};
  executor_->Resume();
  std::vector<GenerationFinished> finished;
  for (const auto& stream : streams) finished.push_back(ReadAll(stream.get()).finished);
  // Each waited longer than those before it in this order, though it came sooner.
  EXPECT_LT(finished[2].timings.queue, finished[1].timings.queue);
  EXPECT_LT(finished[3].timings.queue, finished[0].timings.queue);
  EXPECT_LT(finished[1].timings.queue, finished[0].timings.queue);
  ExpectAllZero();
}

TEST_F(ScheduleTest, ClientsTakeTurns) {
  Start(Counting, OneSlot());
  Hold();
  Streams flood;
  for (int i = 0; i < 20; ++i) flood.push_back(Submit(From("flood")));
  const auto modest = Submit(From("modest"));
  executor_->Resume();
  const auto wait = ReadAll(modest.get()).finished.timings.queue;
  std::vector<std::chrono::nanoseconds> waits;
  for (const auto& stream : flood) waits.push_back(ReadAll(stream.get()).finished.timings.queue);
  EXPECT_GE(std::count_if(waits.begin(), waits.end(), [&](auto other) { return other > wait; }),
            18);
  ExpectAllZero();
}

TEST_F(ScheduleTest, ADeadlinePastInTheQueueCostsNothing) {
  Start(Counting, OneSlot());
  Hold();
  GenerationRequest request = Request(std::vector<int32_t>(100, 3), 5);
  request.scheduling.deadline = std::chrono::steady_clock::now();
  const auto late = Submit(request);
  executor_->Resume();
  const Outcome outcome = ReadAll(late.get());
  EXPECT_EQ(outcome.finished.reason, FinishReason::kError);
  EXPECT_EQ(outcome.finished.status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_LT(executor_->tokens_computed(), 100);
}

// A stalled loop must wake by itself for it.
TEST_F(ScheduleTest, ADeadlineIsKeptWhileNothingElseHappens) {
  EngineLoop::Options options = OneSlot();
  options.stream_capacity = 1;
  Start(Counting, options);
  GenerationRequest endless = Request({1}, 1'000'000'000);
  endless.ignore_eos = true;
  const auto stalled = Submit(endless);  // nobody reads it: the only slot is taken for good
  GenerationRequest request = Request({1}, 5);
  request.scheduling.deadline = std::chrono::steady_clock::now() + milliseconds(50);
  EXPECT_EQ(Generate(request).finished.status.code(), absl::StatusCode::kDeadlineExceeded);
  request.scheduling = {.max_time = milliseconds(50)};
  const Outcome outcome = Generate(request);
  EXPECT_EQ(outcome.finished.reason, FinishReason::kTime);
  EXPECT_EQ(outcome.finished.completion_tokens, 0);
  stalled->Cancel();
  ReadAll(stalled.get());
  ExpectAllZero();
}

TEST_F(ScheduleTest, MaxTimeEndsWithTimeAndAState) {
  Start(Counting);
  GenerationRequest request = Request({1}, 1'000'000'000);
  request.ignore_eos = true;
  request.scheduling.max_time = milliseconds(30);
  request.state.want_state = true;
  const Outcome outcome = Generate(request);
  EXPECT_EQ(outcome.finished.reason, FinishReason::kTime);
  EXPECT_TRUE(outcome.finished.status.ok());
  ASSERT_NE(outcome.finished.state, nullptr);
  EXPECT_EQ(outcome.finished.state->pending_token, outcome.ids.back());
  ExpectAllZero();
}

EngineLoop::Options Swapping(int64_t slots) {
  EngineLoop::Options options;
  options.limits = {.max_slots = slots, .max_step_tokens = 200, .max_prefill_tokens = 64};
  options.stream_capacity = 2;
  options.max_swapped = 8;
  options.swap_after = milliseconds(1);
  return options;
}

TEST_F(ScheduleTest, AReaderThatStopsGivesUpItsSlotAndComesBackExactly) {
  Start(Hashing, Swapping(1));
  GenerationRequest request = Request(std::vector<int32_t>(90, 3), 50);
  request.ignore_eos = true;
  const Outcome plain = Generate(request);
  const auto slow = Submit(request);
  // Others are served meanwhile though there is one slot only.
  for (int i = 0; i < 3; ++i) EXPECT_EQ(Generate(Request({5}, 3)).ids.size(), 3U);
  EXPECT_EQ(loop_->stats().swapped, 1);
  EXPECT_EQ(loop_->stats().running, 1);
  EXPECT_EQ(ReadAll(slow.get()).ids, plain.ids);
  ExpectAllZero();
  EXPECT_EQ(loop_->stats().swapped, 0);
}

TEST_F(ScheduleTest, WithoutRoomNobodyIsSwapped) {
  EngineLoop::Options options = Swapping(1);
  options.max_swapped = 0;
  Start(Hashing, options);
  GenerationRequest request = Request({3}, 50);
  request.ignore_eos = true;
  const auto slow = Submit(request);
  request.scheduling.max_time = milliseconds(50);
  EXPECT_EQ(Generate(request).finished.reason, FinishReason::kTime);
  EXPECT_EQ(ReadAll(slow.get()).ids.size(), 50U);
}

TEST_F(ScheduleTest, SwappedOnesCanBeCancelledAndTimed) {
  Start(Hashing, Swapping(1));
  GenerationRequest request = Request({3}, 1'000'000);
  request.ignore_eos = true;
  request.state.want_state = true;
  const auto cancelled = Submit(request);
  EXPECT_EQ(Generate(Request({5}, 3)).ids.size(), 3U);
  EXPECT_EQ(loop_->stats().swapped, 1);
  cancelled->Cancel();
  EXPECT_EQ(ReadAll(cancelled.get()).finished.reason, FinishReason::kCancelled);
  request.scheduling.max_time = milliseconds(100);
  const auto timed = Submit(request);
  EXPECT_EQ(Generate(Request({5}, 3)).ids.size(), 3U);
  std::this_thread::sleep_for(milliseconds(150));
  const Outcome outcome = ReadAll(timed.get());
  EXPECT_EQ(outcome.finished.reason, FinishReason::kTime);
  ASSERT_NE(outcome.finished.state, nullptr);
  EXPECT_EQ(outcome.finished.state->image->position,
            static_cast<int64_t>(outcome.ids.size()));  // 1 of the prompt, the last is pending
  ExpectAllZero();
}

// Readers of every pace, few slots, swaps, a small prefix cache, cancels: what is read to its end
// is what it is alone.
TEST_F(ScheduleTest, RandomPacesChangeNoAnswer) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::vector<GenerationRequest> requests = RandomRequests(40, seed);
  Start(Hashing);
  std::vector<Outcome> alone;
  for (const GenerationRequest& request : requests) alone.push_back(Generate(request));
  TearDown();
  EngineLoop::Options options = Swapping(3);
  options.prefix_cache = {.max_bytes = 8000, .interval = 64};
  Start(Hashing, options);
  std::vector<std::thread> readers;
  for (size_t i = 0; i < requests.size(); ++i) {
    requests[i].scheduling.client = std::to_string(i % 5);
    requests[i].scheduling.priority = static_cast<Priority>(i % 3);
    readers.emplace_back([&, i, stream = Submit(requests[i])] {
      std::mt19937 random(seed + static_cast<uint32_t>(i));
      const bool cancels = i % 4 == 3;
      if (cancels) {
        std::this_thread::sleep_for(milliseconds(random() % 20));
        stream->Cancel();
      }
      std::vector<int32_t> ids;
      while (true) {
        if (random() % 8 == 0) std::this_thread::sleep_for(milliseconds(random() % 4));
        GenerationEvent event = stream->Next();
        if (auto* delta = std::get_if<TokenDelta>(&event)) {
          ids.insert(ids.end(), delta->token_ids.begin(), delta->token_ids.end());
        }
        if (std::holds_alternative<GenerationFinished>(event)) break;
      }
      if (!cancels) {
        EXPECT_EQ(ids, alone[i].ids) << i;
      }
    });
  }
  for (std::thread& reader : readers) reader.join();
  ExpectAllZero();
}

}  // namespace
}  // namespace osdn
