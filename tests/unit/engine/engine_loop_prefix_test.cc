// Prompts that were read before: what is computed, what is told, and that nothing else changes.
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

std::vector<int32_t> Prompt(int64_t size, int32_t seed = 1) {
  std::mt19937 random(static_cast<uint32_t>(seed));
  std::vector<int32_t> prompt(static_cast<size_t>(size));
  for (int32_t& id : prompt) id = std::uniform_int_distribution<int32_t>(0, 28)(random);
  return prompt;
}

std::vector<int32_t> With(std::vector<int32_t> prompt, const std::vector<int32_t>& more) {
  prompt.insert(prompt.end(), more.begin(), more.end());
  return prompt;
}

class PrefixTest : public EngineLoopTest {
 protected:
  void StartCached(EngineLoop::Options options = {}) {
    options.prefix_cache = {.max_bytes = size_t{64} << 20, .interval = 128};
    Start(Hashing, options);
  }

  // Tokens that answering `request` makes the model compute.
  int64_t Cost(const GenerationRequest& request, Outcome* outcome = nullptr) {
    const int64_t before = executor_->tokens_computed();
    Outcome got = Generate(request);
    if (outcome != nullptr) *outcome = std::move(got);
    return executor_->tokens_computed() - before;
  }
};

TEST_F(PrefixTest, TheSamePromptCostsNothingAgain) {
  StartCached();
  for (const int64_t size : {1, 63, 64, 65, 500}) {
    SCOPED_TRACE(size);
    const GenerationRequest request = Request(Prompt(size, static_cast<int32_t>(size)), 5);
    Outcome first;
    Outcome second;
    const int64_t first_cost = Cost(request, &first);
    const int64_t second_cost = Cost(request, &second);
    EXPECT_EQ(first_cost, size + first.finished.completion_tokens - 1);
    EXPECT_EQ(second_cost, first.finished.completion_tokens - 1);
    EXPECT_EQ(first.finished.cached_tokens, 0);
    EXPECT_EQ(second.finished.cached_tokens, size);
    EXPECT_EQ(second.ids, first.ids);
    EXPECT_EQ(second.text, first.text);
    EXPECT_EQ(second.finished.prompt_tokens, size);
    EXPECT_EQ(second.finished.completion_tokens, first.finished.completion_tokens);
  }
  EXPECT_EQ(loop_->stats().prefix_cache.queries, 10);
  EXPECT_EQ(loop_->stats().prefix_cache.hits, 5);
  ExpectAllZero();
}

TEST_F(PrefixTest, OneTokenAnswersFromTheCacheOnly) {
  StartCached();
  const GenerationRequest request = Request(Prompt(70), 1);
  const Outcome first = Generate(request);
  Outcome second;
  EXPECT_EQ(Cost(request, &second), 0);
  EXPECT_EQ(second.ids, first.ids);
  EXPECT_EQ(second.finished.reason, FinishReason::kLength);
}

TEST_F(PrefixTest, ALongerPromptReadsFromTheLastChunkBorder) {
  StartCached();
  const std::vector<int32_t> stem = Prompt(300);
  Generate(Request(stem, 1));
  Outcome outcome;
  EXPECT_EQ(Cost(Request(With(stem, {1, 2, 3}), 1), &outcome), 303 - 256);
  EXPECT_EQ(outcome.finished.cached_tokens, 256);
  EXPECT_EQ(outcome.finished.prompt_tokens, 303);
}

TEST_F(PrefixTest, BranchPointsAreLearned) {
  StartCached();
  const std::vector<int32_t> stem = Prompt(200);  // no state of its own: the prompts go on
  Generate(Request(With(stem, Prompt(300, 2)), 1));
  Outcome outcome;
  // Every 128 tokens there is one.
  Cost(Request(With(stem, Prompt(300, 3)), 1), &outcome);
  EXPECT_EQ(outcome.finished.cached_tokens, 128);
  // The second prompt left one where it branched off.
  Cost(Request(With(stem, Prompt(300, 4)), 1), &outcome);
  EXPECT_EQ(outcome.finished.cached_tokens, 192);
}

TEST_F(PrefixTest, TheRequestsBordersAreKept) {
  StartCached();
  GenerationRequest request = Request(Prompt(127), 1);
  request.cache.borders = {70, 100};
  Generate(request);
  Outcome outcome;
  Cost(Request(With({request.prompt.begin(), request.prompt.begin() + 70}, Prompt(90, 9)), 1),
       &outcome);
  EXPECT_EQ(outcome.finished.cached_tokens, 64);
}

// A prompt of high class that waits for what one of low class is reading must not wait for those
// between the two.
TEST_F(PrefixTest, WhoLeadsAFollowerOfAHigherClassReadsInThatClass) {
  EngineLoop::Options options;
  options.limits = {.max_slots = 4, .max_step_tokens = 128, .max_prefill_tokens = 128};
  options.ageing = std::chrono::hours(1);
  options.prefix_cache = {.max_bytes = size_t{64} << 20, .interval = 128};
  std::vector<size_t> answered;  // lengths of prompts, in the order in which they were through
  Start(
      [&](const History& history, absl::Span<float> logits) {
        answered.push_back(history.size());
        Hashing(history, logits);
      },
      options);
  executor_->Pause();
  GenerationRequest low = Request(Prompt(1280), 1);
  low.scheduling.priority = Priority::kLow;
  const auto leader = Submit(low);
  executor_->AwaitHeld();  // it has begun
  const auto between = Submit(Request(Prompt(12800, 2), 1));
  GenerationRequest high = Request(With(Prompt(1280), {1, 2, 3}), 1);
  high.scheduling.priority = Priority::kHigh;
  const auto follower = Submit(high);
  executor_->Resume();
  EXPECT_EQ(ReadAll(follower.get()).finished.cached_tokens, 1280);
  ReadAll(leader.get());
  ReadAll(between.get());
  EXPECT_THAT(answered, ElementsAre(1280, 1283, 12800)) << "it waited for the prompt between";
}

TEST_F(PrefixTest, SaltsShareNothingAndSkippersNeitherReadNorWrite) {
  StartCached();
  GenerationRequest request = Request(Prompt(100), 1);
  request.cache.salt = "a";
  Generate(request);
  EXPECT_EQ(Generate(request).finished.cached_tokens, 100);
  request.cache.salt = "b";
  EXPECT_EQ(Generate(request).finished.cached_tokens, 0);
  request.cache.skip = true;
  EXPECT_EQ(Generate(request).finished.cached_tokens, 0);
  request = Request(Prompt(100, 2), 1);
  request.cache.skip = true;
  Generate(request);
  request.cache.skip = false;
  EXPECT_EQ(Generate(request).finished.cached_tokens, 0);
}

TEST_F(PrefixTest, OffMeansOff) {
  Start(Hashing);
  Generate(Request(Prompt(100), 1));
  EXPECT_EQ(Generate(Request(Prompt(100), 1)).finished.cached_tokens, 0);
  EXPECT_EQ(loop_->stats().prefix_cache.bytes, 0);
}

TEST_F(PrefixTest, EqualPromptsInFlightAreComputedOnce) {
  StartCached();
  const GenerationRequest request = Request(Prompt(1000), 3);
  executor_->Pause();
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (int i = 0; i < 5; ++i) streams.push_back(Submit(request));
  executor_->Resume();
  std::vector<Outcome> outcomes;
  for (const auto& stream : streams) outcomes.push_back(ReadAll(stream.get()));
  int64_t cached = 0;
  int64_t decoded = 0;
  for (const Outcome& outcome : outcomes) {
    EXPECT_EQ(outcome.ids, outcomes[0].ids);
    cached += outcome.finished.cached_tokens;
    decoded += outcome.finished.completion_tokens - 1;
  }
  EXPECT_EQ(cached, 4000);
  EXPECT_EQ(executor_->tokens_computed(), 1000 + decoded);
  ExpectAllZero();
}

TEST_F(PrefixTest, PromptsThatShareAStemInFlightReadItOnce) {
  EngineLoop::Options options;
  options.limits = {.max_slots = 8, .max_step_tokens = 200, .max_prefill_tokens = 64};
  StartCached(options);
  const std::vector<int32_t> stem = Prompt(700);
  executor_->Pause();
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (int i = 0; i < 4; ++i) {
    streams.push_back(Submit(Request(With(stem, Prompt(20, 100 + i)), 1)));
  }
  executor_->Resume();
  int64_t cached = 0;
  for (const auto& stream : streams) cached += ReadAll(stream.get()).finished.cached_tokens;
  EXPECT_EQ(cached, 3 * 640);
  EXPECT_EQ(executor_->tokens_computed(), 4 * 720 - cached);
}

TEST_F(PrefixTest, ACancelledLeaderLeavesNobodyWaiting) {
  EngineLoop::Options options;
  options.limits = {.max_slots = 8, .max_step_tokens = 128, .max_prefill_tokens = 64};
  StartCached(options);
  const GenerationRequest request = Request(Prompt(2000), 1);
  executor_->Pause();
  const std::shared_ptr<TokenStream> leader = Submit(request);
  executor_->AwaitHeld();
  const std::shared_ptr<TokenStream> follower = Submit(request);
  leader->Cancel();
  executor_->Resume();
  EXPECT_EQ(ReadAll(leader.get()).finished.reason, FinishReason::kCancelled);
  EXPECT_EQ(ReadAll(follower.get()).finished.reason, FinishReason::kLength);
  ExpectAllZero();
}

TEST_F(PrefixTest, AStalledLeaderIsNotWaitedFor) {
  EngineLoop::Options options;
  options.limits = {.max_slots = 8, .max_step_tokens = 128, .max_prefill_tokens = 64};
  options.stream_capacity = 1;
  StartCached(options);
  GenerationRequest request = Request(Prompt(2000), 1);
  request.want_prefill_progress = true;  // fills the stream, and nobody reads it
  const std::shared_ptr<TokenStream> leader = Submit(request);
  request.want_prefill_progress = false;
  EXPECT_EQ(Generate(request).finished.reason, FinishReason::kLength);
  EXPECT_EQ(ReadAll(leader.get()).finished.reason, FinishReason::kLength);
}

// Random prompts over few stems, at random times, from several readers, with a cache that holds a
// part of them: everything as without a cache.
TEST_F(PrefixTest, RandomLoadIsAnsweredAsWithoutACache) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  std::vector<GenerationRequest> requests = RandomRequests(60, seed);
  for (GenerationRequest& request : requests) {
    const int64_t stem = std::uniform_int_distribution<int64_t>(0, 300)(random);
    request.prompt =
        With(Prompt(stem, std::uniform_int_distribution<int>(1, 3)(random)), request.prompt);
    request.prompt.resize(std::min<size_t>(request.prompt.size(), 350));
  }
  std::vector<Outcome> plain;
  Start(Hashing);
  for (const GenerationRequest& request : requests) plain.push_back(Generate(request));
  TearDown();

  EngineLoop::Options options;
  options.limits = {.max_slots = 6, .max_step_tokens = 200, .max_prefill_tokens = 64};
  options.stream_capacity = 3;
  options.prefix_cache = {.max_bytes = 8000, .interval = 64};
  Start(Hashing, options);
  std::vector<Outcome> cached(requests.size());
  std::vector<std::thread> clients;
  for (size_t client = 0; client < 4; ++client) {
    clients.emplace_back([&, client] {
      for (size_t i = client; i < requests.size(); i += 4) cached[i] = Generate(requests[i]);
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_GT(loop_->stats().prefix_cache.hits, 0);
  EXPECT_GT(loop_->stats().prefix_cache.evictions, 0);
  for (size_t i = 0; i < requests.size(); ++i) {
    SCOPED_TRACE(i);
    EXPECT_EQ(cached[i].ids, plain[i].ids);
    EXPECT_EQ(cached[i].text, plain[i].text);
    EXPECT_EQ(cached[i].finished.reason, plain[i].finished.reason);
  }
  ExpectAllZero();
}

}  // namespace
}  // namespace osdn
