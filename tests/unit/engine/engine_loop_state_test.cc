// States that requests leave and go on from.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "tests/unit/engine/engine_loop_fixture.h"

namespace osdn {
namespace {

using ::testing::ElementsAre;

std::shared_ptr<const SequenceSnapshot> StateOf(const Outcome& outcome) {
  EXPECT_NE(outcome.finished.state, nullptr);
  return outcome.finished.state;
}

class StateTest : public EngineLoopTest {
 protected:
  Outcome From(const std::shared_ptr<const SequenceSnapshot>& state, std::vector<int32_t> prompt,
               GenerationRequest request) {
    request.prompt = std::move(prompt);
    request.state.resume = state;
    return Generate(std::move(request));
  }
};

// A generation cut into parts at random places is the generation.
TEST_F(StateTest, PartsAreTheWhole) {
  Start(Hashing);
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (GenerationRequest& request : RandomRequests(40, seed)) {
    request.min_tokens = 0;
    request.state.want_state = true;
    const Outcome whole = Generate(request);
    std::vector<int32_t> ids;
    std::shared_ptr<const SequenceSnapshot> state;
    Outcome part;
    while (static_cast<int64_t>(ids.size()) < request.max_tokens) {
      GenerationRequest next = request;
      next.max_tokens = std::uniform_int_distribution<int64_t>(
          1, request.max_tokens - static_cast<int64_t>(ids.size()))(random);
      part = state == nullptr ? Generate(next) : From(state, {}, next);
      if (state != nullptr) {
        EXPECT_EQ(part.finished.cached_tokens, state->image->position);
      }
      ids.insert(ids.end(), part.ids.begin(), part.ids.end());
      state = StateOf(part);
      if (part.finished.reason != FinishReason::kLength) break;
    }
    EXPECT_EQ(ids, whole.ids);
    EXPECT_EQ(part.finished.reason, whole.finished.reason);
    const SequenceSnapshot& left = *StateOf(whole);
    EXPECT_EQ(state->history_hash, left.history_hash);
    EXPECT_EQ(state->random_index, left.random_index);
    EXPECT_EQ(state->recent_tokens, left.recent_tokens);
    EXPECT_EQ(state->pending_token, left.pending_token);
    EXPECT_EQ(state->image->position, left.image->position);
    EXPECT_EQ(state->image->logits, left.image->logits);
  }
  ExpectAllZero();
}

// The image of a resumed state goes once the slot has it; what else it says is still used.
TEST_F(StateTest, AResumedStatesMemoryGoesWhenItRuns) {
  Start(Hashing);
  GenerationRequest first = Request({1, 2, 3}, 3);
  first.state.want_state = true;
  first.ignore_eos = true;
  std::shared_ptr<const SequenceSnapshot> state = StateOf(Generate(first));
  const std::vector<int32_t> recent = state->recent_tokens;
  const std::weak_ptr<const StateImage> image = state->image;
  GenerationRequest request = first;
  request.prompt = {};
  request.max_tokens = 1'000'000;
  request.state.resume = std::move(state);
  const auto running = Submit(std::move(request));
  running->Next();
  EXPECT_TRUE(image.expired());
  running->Cancel();
  ReadAll(running.get());

  state = StateOf(Generate(first));
  const Outcome second = From(state, {}, first);
  std::vector<int32_t> all = recent;
  all.insert(all.end(), second.ids.begin(), second.ids.end());
  EXPECT_EQ(StateOf(second)->recent_tokens, all);
}

// A resumed prompt that is read in pieces is not done where a fresh one of its length would be: it
// must not take the logits of whoever shares the step.
TEST_F(StateTest, PiecesAfterAResumedStateLeaveOthersTheirLogits) {
  EngineLoop::Options options;
  options.limits.max_prefill_tokens = 128;
  options.limits.max_step_tokens = 192;
  Start(Hashing, options);
  std::vector<int32_t> history(300, 4);
  GenerationRequest first = Request(history, 0);
  first.state.want_state = true;
  const auto state = StateOf(Generate(first));

  GenerationRequest resumed = Request(std::vector<int32_t>(260, 7), 8);
  resumed.state.resume = state;
  resumed.ignore_eos = true;
  GenerationRequest fresh = Request({1, 2, 3, 5, 8}, 8);
  fresh.ignore_eos = true;
  const Outcome resumed_alone = Generate(resumed);
  const Outcome fresh_alone = Generate(fresh);
  executor_->Pause();
  const auto held = Submit(Request({9}, 4));
  executor_->AwaitHeld();
  const auto a = Submit(resumed);
  const auto b = Submit(fresh);
  executor_->Resume();
  EXPECT_EQ(ReadAll(b.get()).ids, fresh_alone.ids);
  EXPECT_EQ(ReadAll(a.get()).ids, resumed_alone.ids);
  ReadAll(held.get());
}

TEST_F(StateTest, NewTokensFollowThePendingOne) {
  Start(Hashing);
  GenerationRequest request = Request({1, 2, 3}, 4);
  request.ignore_eos = true;
  request.state.want_state = true;
  // Nor is the pending token seen twice.
  request.sampling.repetition_penalty = 3.0F;
  request.sampling.penalty_window = 5;
  const Outcome first = Generate(request);
  const Outcome second = From(StateOf(first), {9, 8}, request);
  std::vector<int32_t> all = {1, 2, 3};
  all.insert(all.end(), first.ids.begin(), first.ids.end());
  all.insert(all.end(), {9, 8});
  EXPECT_EQ(second.finished.prompt_tokens, static_cast<int64_t>(all.size()));
  EXPECT_EQ(second.finished.cached_tokens, 6);
  GenerationRequest plain = request;
  plain.prompt = all;
  EXPECT_EQ(Generate(plain).ids, second.ids);
}

TEST_F(StateTest, AStopTokenIsNotInTheState) {
  Start(Counting);
  GenerationRequest request = Request({27}, 100);
  request.state.want_state = true;
  const Outcome first = Generate(request);  // 28 29 30 and end of text
  EXPECT_EQ(first.finished.reason, FinishReason::kStop);
  EXPECT_EQ(StateOf(first)->image->position, 4);
  EXPECT_EQ(StateOf(first)->pending_token, -1);
  // Going on is ending at once, unless told otherwise.
  EXPECT_EQ(From(StateOf(first), {}, request).finished.reason, FinishReason::kStop);
  request.ignore_eos = true;
  request.max_tokens = 2;
  EXPECT_THAT(From(StateOf(first), {}, request).ids, ElementsAre(31, 0));
  EXPECT_THAT(From(StateOf(first), {5}, request).ids, ElementsAre(6, 7));
}

TEST_F(StateTest, OneStateManyFutures) {
  Start(Hashing);
  GenerationRequest request = Request({4, 5, 6}, 3);
  request.ignore_eos = true;
  request.state.want_state = true;
  const auto state = StateOf(Generate(request));
  const Outcome once = From(state, {1}, request);
  From(state, {2}, request);
  EXPECT_EQ(From(state, {1}, request).ids, once.ids);
}

TEST_F(StateTest, APromptAloneMakesAState) {
  Start(Hashing, {.prefix_cache = {.max_bytes = 1 << 20, .interval = 64}});
  for (int again = 0; again < 2; ++again) {  // the second time from the prefix cache
    GenerationRequest request = Request(std::vector<int32_t>(100, 3), 0);
    request.state.want_state = true;
    const Outcome saved = Generate(request);
    EXPECT_EQ(saved.finished.reason, FinishReason::kLength);
    EXPECT_EQ(saved.finished.completion_tokens, 0);
    EXPECT_EQ(saved.finished.cached_tokens, again * 100);
    EXPECT_EQ(StateOf(saved)->image->position, 100);
    request.max_tokens = 5;
    EXPECT_EQ(From(StateOf(saved), {}, request).ids, Generate(request).ids);
  }
}

TEST_F(StateTest, StopStringsAndCharactersMayCrossTheCut) {
  Start(Counting);
  GenerationRequest request = Request({0}, 3);  // b c d
  request.state.want_state = true;
  request.stop_strings = {"cdef"};
  const Outcome first = Generate(request);
  EXPECT_EQ(first.text, "bcd");  // what was held is given out at the end
  request.max_tokens = 20;
  const Outcome second = From(StateOf(first), {}, request);
  EXPECT_EQ(second.text, "");
  EXPECT_EQ(second.finished.matched_stop_string, "cdef");
  // Without a match nothing is told twice.
  request.stop_strings = {"cdX"};
  request.max_tokens = 3;
  const Outcome third = Generate(request);
  EXPECT_EQ(third.text, "bcd");
  EXPECT_EQ(From(StateOf(third), {}, request).text, "efg");
  // A euro sign in two parts: U+FFFD first, then the whole of it.
  request.stop_strings = {};
  request.prompt = {24};
  const Outcome half = Generate(request);
  EXPECT_EQ(half.text, "z\xEF\xBF\xBD");
  EXPECT_EQ(From(StateOf(half), {}, request).text.substr(0, 3), "\xE2\x82\xAC");
}

TEST_F(StateTest, CancelledRequestsLeaveNone) {
  Start(Hashing);
  GenerationRequest request = Request({1}, 1'000'000'000);
  request.ignore_eos = true;
  request.state.want_state = true;
  const auto stream = Submit(request);
  stream->Next();
  stream->Cancel();
  EXPECT_EQ(ReadAll(stream.get()).finished.state, nullptr);
  ExpectAllZero();
}

}  // namespace
}  // namespace osdn
