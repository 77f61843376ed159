#include "engine/token_stream.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

namespace osdn {
namespace {

using ::testing::ElementsAre;

TokenDelta Delta(int32_t id) { return {{id}, std::to_string(id)}; }

TEST(TokenStreamTest, GivesEventsInOrder) {
  TokenStream stream(4, [] {});
  EXPECT_FALSE(stream.TryNext().has_value());
  stream.Push(PrefillProgress{1, 2});
  stream.Push(Delta(7));
  stream.Push(GenerationFinished{.reason = FinishReason::kLength});
  EXPECT_EQ(std::get<PrefillProgress>(stream.Next()).prompt_tokens, 2);
  EXPECT_EQ(std::get<TokenDelta>(*stream.TryNext()).text, "7");
  EXPECT_EQ(std::get<GenerationFinished>(stream.Next()).reason, FinishReason::kLength);
  EXPECT_FALSE(stream.TryNext().has_value());
}

TEST(TokenStreamTest, FullQueueMergesAndLosesNothing) {
  TokenStream stream(2, [] {});
  stream.Push(Delta(1));
  EXPECT_FALSE(stream.full());
  stream.Push(Delta(2));
  EXPECT_TRUE(stream.full());
  stream.Push(Delta(3));
  stream.Push(Delta(4));
  stream.Push(GenerationFinished{});
  EXPECT_THAT(std::get<TokenDelta>(stream.Next()).token_ids, ElementsAre(1));
  const auto merged = std::get<TokenDelta>(stream.Next());
  EXPECT_THAT(merged.token_ids, ElementsAre(2, 3, 4));
  EXPECT_EQ(merged.text, "234");
  EXPECT_TRUE(std::holds_alternative<GenerationFinished>(stream.Next()));
}

TEST(TokenStreamTest, FullQueueMergesChoiceByChoice) {
  TokenStream stream(2, [] {});
  const auto push = [&](int32_t id, int32_t choice) {
    TokenDelta delta = Delta(id);
    delta.choice = choice;
    stream.Push(std::move(delta));
  };
  push(1, 0);
  push(2, 1);
  push(3, 0);
  push(4, 2);  // has none to merge into yet
  stream.Push(GenerationFinished{.choice = 1, .last = false});
  push(5, 2);
  const auto next = [&] { return std::get<TokenDelta>(stream.Next()); };
  const TokenDelta first = next();
  EXPECT_EQ(first.choice, 0);
  EXPECT_THAT(first.token_ids, ElementsAre(1, 3));
  EXPECT_THAT(next().token_ids, ElementsAre(2));
  const TokenDelta third = next();
  EXPECT_EQ(third.choice, 2);
  EXPECT_THAT(third.token_ids, ElementsAre(4, 5));
  EXPECT_EQ(std::get<GenerationFinished>(stream.Next()).choice, 1);
}

TEST(TokenStreamTest, FullQueueReplacesProgress) {
  TokenStream stream(1, [] {});
  stream.Push(PrefillProgress{64, 200});
  stream.Push(PrefillProgress{128, 200});
  stream.Push(Delta(5));
  EXPECT_EQ(std::get<PrefillProgress>(stream.Next()).processed_tokens, 128);
  EXPECT_EQ(std::get<TokenDelta>(stream.Next()).text, "5");
}

TEST(TokenStreamTest, WakesTheProducerWhenAFullQueueDrains) {
  int wakes = 0;
  TokenStream stream(2, [&] { ++wakes; });
  stream.Push(Delta(1));
  stream.Next();
  EXPECT_EQ(wakes, 0);
  stream.Push(Delta(1));
  stream.Push(Delta(2));
  stream.Push(GenerationFinished{});  // three in a queue of two
  stream.Next();
  EXPECT_EQ(wakes, 0) << "still full";
  EXPECT_TRUE(stream.full());
  stream.Next();
  EXPECT_EQ(wakes, 1);
  EXPECT_FALSE(stream.full());
  stream.Next();
  EXPECT_EQ(wakes, 1);
}

TEST(TokenStreamTest, CancelWakesOnce) {
  int wakes = 0;
  TokenStream stream(2, [&] { ++wakes; });
  EXPECT_FALSE(stream.cancelled());
  stream.Cancel();
  stream.Cancel();
  EXPECT_TRUE(stream.cancelled());
  EXPECT_EQ(wakes, 1);
}

TEST(TokenStreamTest, ReadyCallbackRunsAtOnceAndAfterEachPush) {
  TokenStream stream(8, [] {});
  std::vector<std::string> seen;
  const auto drain = [&] {
    while (auto event = stream.TryNext()) seen.push_back(std::get<TokenDelta>(*event).text);
  };
  stream.SetReadyCallback(drain);
  EXPECT_TRUE(seen.empty());
  stream.Push(Delta(1));
  EXPECT_THAT(seen, ElementsAre("1"));
  stream.SetReadyCallback(nullptr);
  stream.Push(Delta(2));
  EXPECT_THAT(seen, ElementsAre("1"));
  stream.SetReadyCallback(drain);
  EXPECT_THAT(seen, ElementsAre("1", "2"));
}

TEST(TokenStreamTest, NoCallbackRunsAfterItWasReplaced) {
  TokenStream stream(1 << 20, [] {});
  std::thread producer([&] {
    for (int i = 0; i < 20000; ++i) stream.Push(Delta(i));
    stream.Push(GenerationFinished{});
  });
  for (int round = 0; round < 200; ++round) {
    // Freed right after the callback is taken back: a late call would be a use after free.
    auto target = std::make_unique<std::atomic<int>>(0);
    stream.SetReadyCallback([raw = target.get()] { ++*raw; });
    stream.SetReadyCallback(nullptr);
    target.reset();
  }
  producer.join();
}

TEST(TokenStreamTest, OneProducerOneConsumer) {
  constexpr int kTokens = 20000;
  std::atomic<int> wakes{0};
  TokenStream stream(16, [&] { ++wakes; });
  std::thread producer([&] {
    for (int i = 0; i < kTokens;) {
      if (stream.full()) {
        std::this_thread::yield();
        continue;
      }
      stream.Push(Delta(i++));
    }
    stream.Push(GenerationFinished{.completion_tokens = kTokens});
  });
  std::vector<int32_t> ids;
  while (true) {
    GenerationEvent event = stream.Next();
    if (std::holds_alternative<GenerationFinished>(event)) break;
    for (int32_t id : std::get<TokenDelta>(event).token_ids) ids.push_back(id);
  }
  producer.join();
  ASSERT_EQ(ids.size(), static_cast<size_t>(kTokens));
  for (int i = 0; i < kTokens; ++i) ASSERT_EQ(ids[static_cast<size_t>(i)], i);
}

TEST(TokenStreamTest, CancelFromAnotherThreadAndFromTheCallback) {
  std::atomic<int> wakes{0};
  TokenStream stream(4, [&] { ++wakes; });
  stream.SetReadyCallback([&] { stream.Cancel(); });
  std::thread producer([&] {
    while (!stream.cancelled()) stream.Push(Delta(1));
    stream.Push(GenerationFinished{.reason = FinishReason::kCancelled});
  });
  producer.join();
  EXPECT_EQ(wakes, 1);
}

}  // namespace
}  // namespace osdn
