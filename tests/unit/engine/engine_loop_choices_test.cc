// Requests of several choices: forks of one read prompt, sampled or scored.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "tests/unit/engine/engine_loop_fixture.h"

namespace osdn {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using testing_support::ReadChoices;

class ChoicesTest : public EngineLoopTest {
 protected:
  std::vector<Outcome> GenerateChoices(GenerationRequest request) {
    const auto count = static_cast<size_t>(request.choice_count());
    return ReadChoices(Submit(std::move(request)).get(), count);
  }
};

GenerationRequest Sampled(std::vector<int32_t> prompt, int64_t max_tokens, int64_t choices) {
  GenerationRequest request = Request(std::move(prompt), max_tokens);
  request.sampling.temperature = 1.0F;
  request.sampling.seed = 77;
  request.choices = choices;
  request.ignore_eos = true;
  return request;
}

// Choice i of a seed is the same whatever n, the number of slots and the cache are.
TEST_F(ChoicesTest, ChoicesDoNotDependOnTheirNumber) {
  std::vector<Outcome> want;
  for (const int64_t slots : {1, 2, 3, 32}) {
    EngineLoop::Options options;
    options.limits.max_slots = slots;
    options.prefix_cache = {.max_bytes = slots == 3 ? size_t{1} << 20 : 0, .interval = 64};
    loop_.reset();
    Start(Hashing, options);
    for (const int64_t n : {8, 1, 3}) {
      SCOPED_TRACE(testing::Message() << slots << " slots, n = " << n);
      GenerationRequest request = Sampled(std::vector<int32_t>(150, 3), 20, n);
      const std::vector<Outcome> got = GenerateChoices(request);
      if (want.empty()) want = got;
      for (size_t i = 0; i < got.size(); ++i) {
        EXPECT_EQ(got[i].ids, want[i].ids) << i;
        EXPECT_EQ(got[i].text, want[i].text) << i;
        EXPECT_EQ(got[i].finished.completion_tokens, 20);
      }
      EXPECT_THAT(executor_->problems(), IsEmpty());
    }
    ExpectAllZero();
  }
  for (size_t i = 1; i < want.size(); ++i) EXPECT_NE(want[i].ids, want[0].ids) << i;
}

TEST_F(ChoicesTest, ThePromptIsReadOnce) {
  Start(Hashing);
  const std::vector<Outcome> got = GenerateChoices(Sampled(std::vector<int32_t>(200, 5), 10, 5));
  // The last token of each choice is never fed.
  EXPECT_EQ(executor_->tokens_computed(), 200 + 5 * 9);
  EXPECT_EQ(executor_->max_sequences(), 5);
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(got[i].finished.prompt_tokens, 200);
    EXPECT_EQ(got[i].finished.cached_tokens, i == 0 ? 0 : 200);
  }
}

// What the reader sees of a request with options that every choice has for itself.
TEST_F(ChoicesTest, EveryChoiceHasItsOwnTextPenaltiesAndStops) {
  Start(Hashing);
  GenerationRequest request = Sampled({1, 2, 3}, 60, 6);
  request.ignore_eos = false;
  request.sampling.presence_penalty = 1.5F;
  request.stop_strings = {"ab", "q"};
  request.echo = true;
  request.logprobs = true;
  const std::vector<Outcome> together = GenerateChoices(request);
  for (size_t n = 1; n <= together.size(); ++n) {
    request.choices = static_cast<int64_t>(n);
    const Outcome again = GenerateChoices(request)[n - 1];
    EXPECT_EQ(again.text, together[n - 1].text);
    EXPECT_EQ(again.ids, together[n - 1].ids);
    EXPECT_EQ(again.text.substr(0, 3), "bcd");
    EXPECT_EQ(again.finished.reason, together[n - 1].finished.reason);
    EXPECT_EQ(again.logprobs.size(), again.ids.size() - 3);
  }
}

// Every choice ends in the queue too, and each tells it.
TEST_F(ChoicesTest, CancelEndsAllOfThem) {
  EngineLoop::Options options;
  options.limits.max_slots = 2;
  Start(Hashing, options);
  const auto running = Submit(Sampled({1}, 1'000'000, 5));
  running->Next();
  const auto queued = Submit(Sampled({2}, 1'000'000, 16));
  queued->Cancel();
  for (const Outcome& outcome : ReadChoices(queued.get(), 16)) {
    EXPECT_EQ(outcome.finished.reason, FinishReason::kCancelled);
    EXPECT_THAT(outcome.ids, IsEmpty());
  }
  const EngineStats stats = loop_->stats();
  EXPECT_EQ(stats.running, 5);
  EXPECT_EQ(stats.swapped, 3);
  EXPECT_EQ(stats.slots_used, 2);
  running->Cancel();
  for (const Outcome& outcome : ReadChoices(running.get(), 5)) {
    EXPECT_EQ(outcome.finished.reason, FinishReason::kCancelled);
    EXPECT_FALSE(outcome.ids.empty()) << "its first token came with the prompt";
  }
  ExpectAllZero();
  EXPECT_EQ(loop_->stats().swapped, 0);
}

TEST_F(ChoicesTest, TimeEndsAllOfThem) {
  EngineLoop::Options options;
  options.limits.max_slots = 1;
  Start(Hashing, options);
  GenerationRequest request = Sampled({1}, 1'000'000'000, 3);
  request.scheduling.max_time = std::chrono::milliseconds(50);
  request.state.want_state = true;
  for (const Outcome& outcome : GenerateChoices(request)) {
    EXPECT_EQ(outcome.finished.reason, FinishReason::kTime);
    ASSERT_NE(outcome.finished.state, nullptr);
    EXPECT_EQ(outcome.finished.state->pending_token, outcome.ids.back());
  }
  // In the queue, behind one that does not end.
  const auto endless = Submit(Sampled({1}, 1'000'000'000, 1));
  endless->Next();
  request.scheduling.client = "another";
  for (const Outcome& outcome : GenerateChoices(request)) {
    EXPECT_EQ(outcome.finished.reason, FinishReason::kTime);
    EXPECT_EQ(outcome.finished.completion_tokens, 0);
    EXPECT_EQ(outcome.finished.state, nullptr);
  }
  endless->Cancel();
  ReadAll(endless.get());
  ExpectAllZero();
}

// Choices that wait for slots do not go before other clients who got less.
TEST_F(ChoicesTest, WaitingChoicesQueueFairly) {
  EngineLoop::Options options;
  options.limits.max_slots = 1;
  Start(Hashing, options);
  GenerationRequest many = Sampled({1}, 200, 4);
  many.scheduling.client = "many";
  executor_->Pause();
  const auto forks = Submit(many);
  executor_->AwaitHeld();
  GenerationRequest one = Request({2}, 5);
  one.ignore_eos = true;
  one.scheduling.client = "one";
  const auto single = Submit(one);
  std::atomic<int64_t> computed = 0;  // when the single's last event came
  single->SetReadyCallback([&] { computed = executor_->tokens_computed(); });
  executor_->Resume();
  EXPECT_EQ(ReadAll(single.get()).ids.size(), 5U);
  single->SetReadyCallback(nullptr);
  for (const Outcome& choice : ReadChoices(forks.get(), 4)) EXPECT_EQ(choice.ids.size(), 200U);
  EXPECT_EQ(computed, 1 + 199 + 1 + 4) << "the one goes after the choice that has the slot";
  EXPECT_EQ(executor_->tokens_computed(), 1 + 4 * 199 + 1 + 4);
  ExpectAllZero();
}

// A flood of wide requests through few slots, with slow readers and cancels, always comes to an
// end.
TEST_F(ChoicesTest, AFloodComesToItsEnd) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  const auto pick = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  for (int round = 0; round < 6; ++round) {
    EngineLoop::Options options;
    options.limits.max_slots = pick(1, 5);
    options.max_swapped = pick(0, 3);
    options.swap_after = std::chrono::milliseconds(1);
    options.stream_capacity = static_cast<size_t>(pick(1, 8));
    options.ageing = std::chrono::milliseconds(pick(1, 50));
    options.prefix_cache = {.max_bytes = pick(0, 1) == 0 ? 0 : size_t{1} << 16, .interval = 64};
    loop_.reset();
    Start(Hashing, options);
    std::vector<GenerationRequest> requests;
    std::vector<std::vector<Outcome>> alone;
    for (int i = 0; i < 24; ++i) {
      GenerationRequest request =
          Sampled(std::vector<int32_t>(static_cast<size_t>(pick(1, 150)), pick(0, 3)), pick(1, 20),
                  pick(1, 8));
      request.sampling.seed = static_cast<uint64_t>(i);
      request.scheduling.priority = static_cast<Priority>(pick(0, 2));
      request.scheduling.client = std::to_string(pick(0, 3));
      requests.push_back(request);
      alone.push_back(GenerateChoices(request));
    }
    std::vector<std::thread> readers;
    for (size_t i = 0; i < requests.size(); ++i) {
      const int nap = pick(0, 4) == 0 ? 20 : 0;
      const bool hangs_up = pick(0, 3) == 0;
      readers.emplace_back([&, i, nap, hangs_up] {
        const auto count = static_cast<size_t>(requests[i].choices);
        const auto stream = Submit(requests[i]);
        std::this_thread::sleep_for(std::chrono::milliseconds(nap));
        if (hangs_up) stream->Cancel();
        const std::vector<Outcome> got = ReadChoices(stream.get(), count);
        if (hangs_up) return;
        for (size_t c = 0; c < count; ++c) EXPECT_EQ(got[c].ids, alone[i][c].ids);
      });
    }
    for (std::thread& reader : readers) reader.join();
    ExpectAllZero();
    EXPECT_EQ(loop_->stats().swapped, 0);
    EXPECT_THAT(executor_->problems(), IsEmpty());
  }
}

// One bad choice does not end the others.
TEST_F(ChoicesTest, AFaultIsOfOneChoice) {
  Start([](const History& history, absl::Span<float> logits) {
    Hashing(history, logits);
    // Only the completion's second token decides.
    if (history.size() > 2 && history[1] % 2 == 0) {
      logits[0] = std::numeric_limits<float>::quiet_NaN();
    }
  });
  const std::vector<Outcome> got = GenerateChoices(Sampled({1}, 30, 16));
  int failed = 0;
  for (const Outcome& outcome : got) {
    const bool bad = outcome.ids[0] % 2 == 0;
    failed += bad ? 1 : 0;
    EXPECT_EQ(outcome.finished.reason, bad ? FinishReason::kError : FinishReason::kLength);
    EXPECT_EQ(outcome.ids.size(), bad ? 2U : 30U);
  }
  EXPECT_GT(failed, 0);
  EXPECT_LT(failed, 16);
  ExpectAllZero();
}

TEST_F(ChoicesTest, AFailedForwardEndsTheUnforkedRequestOnceAChoice) {
  Start(Hashing);
  executor_->FailForwards(1);
  for (const Outcome& outcome : GenerateChoices(Sampled({1, 2}, 4, 3))) {
    EXPECT_EQ(outcome.finished.reason, FinishReason::kError);
    EXPECT_TRUE(absl::IsInternal(outcome.finished.status));
  }
  ExpectAllZero();
}

// A choice's state goes on with the choice's own random numbers.
TEST_F(ChoicesTest, EveryChoiceLeavesAState) {
  for (const int64_t slots : {1, 8}) {
    EngineLoop::Options options;
    options.limits.max_slots = slots;
    loop_.reset();
    Start(Hashing, options);
    for (const int64_t cut : {1, 7}) {
      GenerationRequest request = Sampled({4, 5, 6}, 20, 5);
      request.state.want_state = true;
      const std::vector<Outcome> whole = GenerateChoices(request);
      request.max_tokens = cut;
      const std::vector<Outcome> parts = GenerateChoices(request);
      for (size_t i = 0; i < parts.size(); ++i) {
        SCOPED_TRACE(testing::Message() << "choice " << i << " cut after " << cut);
        ASSERT_NE(parts[i].finished.state, nullptr);
        GenerationRequest rest = request;
        rest.prompt.clear();
        rest.choices = 1;
        rest.max_tokens = 20 - cut;
        rest.state.resume = parts[i].finished.state;
        const Outcome after = Generate(rest);
        std::vector<int32_t> ids = parts[i].ids;
        ids.insert(ids.end(), after.ids.begin(), after.ids.end());
        EXPECT_EQ(ids, whole[i].ids);
        // A state may be forked in turn.
        rest.choices = 3;
        EXPECT_EQ(GenerateChoices(rest)[0].ids, after.ids);
      }
    }
    ExpectAllZero();
  }
}

// --- Scoring ---

GenerationRequest Scoring(std::vector<int32_t> prompt,
                          std::vector<std::vector<int32_t>> continuations) {
  GenerationRequest request;
  request.prompt = std::move(prompt);
  request.continuations = std::move(continuations);
  return request;
}

TEST_F(ChoicesTest, ScoresAreWhatGeneratingTells) {
  for (const int64_t slots : {1, 4, 32}) {
    EngineLoop::Options options;
    options.limits.max_slots = slots;
    loop_.reset();
    Start(Hashing, options);
    GenerationRequest request = Sampled(std::vector<int32_t>(100, 9), 12, 6);
    request.logprobs = true;
    request.top_logprobs = 3;
    const std::vector<Outcome> sampled = GenerateChoices(request);
    std::vector<std::vector<int32_t>> continuations;
    for (const Outcome& outcome : sampled) continuations.push_back(outcome.ids);
    GenerationRequest scoring = Scoring(request.prompt, continuations);
    scoring.top_logprobs = 3;
    const std::vector<Outcome> scored = GenerateChoices(scoring);
    for (size_t i = 0; i < scored.size(); ++i) {
      EXPECT_EQ(scored[i].ids, sampled[i].ids);
      EXPECT_THAT(scored[i].text, IsEmpty());
      EXPECT_EQ(scored[i].finished.reason, FinishReason::kLength);
      EXPECT_EQ(scored[i].finished.completion_tokens, 12);
      EXPECT_EQ(scored[i].finished.cached_tokens, i == 0 ? 0 : 100);
      ASSERT_EQ(scored[i].logprobs.size(), sampled[i].logprobs.size());
      for (size_t t = 0; t < scored[i].logprobs.size(); ++t) {
        const TokenLogprob& got = scored[i].logprobs[t];
        EXPECT_EQ(got.logprob, sampled[i].logprobs[t].logprob);
        ASSERT_EQ(got.top.size(), 3U);
        EXPECT_EQ(got.greedy, got.top[0].token == got.token);
      }
    }
    ExpectAllZero();
  }
}

TEST_F(ChoicesTest, GreedyIsToldAndEndTokensAreOnlyTokens) {
  Start(Counting);
  const std::vector<Outcome> scored =
      GenerateChoices(Scoring({29}, {{30, 31, 0, 1}, {30, 5}, {31}, {kEos, kEos, kEos}}));
  const auto greedy = [&](size_t choice) {
    std::vector<bool> told;
    for (const TokenLogprob& token : scored[choice].logprobs) told.push_back(token.greedy);
    return told;
  };
  EXPECT_THAT(greedy(0), ElementsAre(true, true, true, true));
  EXPECT_THAT(greedy(1), ElementsAre(true, false));
  EXPECT_THAT(greedy(2), ElementsAre(false));
  EXPECT_EQ(scored[3].finished.completion_tokens, 3);
}

// A continuation of one token is in the prompt's own logits.
TEST_F(ChoicesTest, OneTokenNeedsNoSlotAndNoStep) {
  EngineLoop::Options options;
  options.limits.max_slots = 1;
  Start(Hashing, options);
  std::vector<std::vector<int32_t>> all;
  for (int32_t id = 0; id < 30; ++id) all.push_back({id});
  const std::vector<Outcome> scored = GenerateChoices(Scoring({1, 2, 3}, all));
  EXPECT_EQ(executor_->forwards(), 1);
  double total = 0;
  for (const Outcome& outcome : scored) {
    total += std::exp(static_cast<double>(outcome.logprobs[0].logprob));
  }
  EXPECT_NEAR(total, 1.0, 0.2) << "all but one of the tokens";
  ExpectAllZero();
}

TEST_F(ChoicesTest, AFaultyPromptIsNotScored) {
  Start(Hashing);
  for (const Outcome& outcome : GenerateChoices(Scoring({kPoison}, {{1, 2}, {3}}))) {
    EXPECT_EQ(outcome.finished.reason, FinishReason::kError);
    EXPECT_TRUE(absl::IsInternal(outcome.finished.status));
    EXPECT_THAT(outcome.logprobs, IsEmpty());
  }
  ExpectAllZero();
}

}  // namespace
}  // namespace osdn
