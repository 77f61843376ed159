#include "engine/prefix_cache.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <string>
#include <vector>

#include "kernels/include/tensor.h"

namespace osdn {
namespace {

using Tokens = std::vector<int32_t>;

constexpr int64_t kChunk = kernels::kChunk;
constexpr size_t kStateBytes = 4096;
constexpr size_t kPlenty = size_t{1} << 30;

std::shared_ptr<StateImage> Image(int64_t position, bool with_logits) {
  auto image = std::make_shared<StateImage>(kStateBytes);
  image->position = position;
  if (with_logits) image->logits = {1.0F, 2.0F};
  return image;
}

Tokens Sequence(int64_t size, int32_t seed = 0) {
  Tokens tokens(static_cast<size_t>(size));
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i * 7 + 3) + seed;
  return tokens;
}

Tokens First(const Tokens& tokens, int64_t count) {
  return {tokens.begin(), tokens.begin() + count};
}

void Insert(PrefixCache* cache, const Tokens& prefix, bool with_logits,
            const std::string& salt = "") {
  cache->Insert(salt, prefix, Image(static_cast<int64_t>(prefix.size()), with_logits));
}

int64_t Found(const PrefixCache& cache, const Tokens& prompt, const std::string& salt = "") {
  const PrefixCache::Match match = cache.Find(salt, prompt);
  return match.image == nullptr ? 0 : match.image->position;
}

TEST(PrefixCacheTest, EmptyFindsNothing) {
  const PrefixCache cache(kPlenty);
  EXPECT_EQ(Found(cache, Sequence(10)), 0);
  EXPECT_EQ(cache.bytes(), 0U);
}

TEST(PrefixCacheTest, OffKeepsNothing) {
  PrefixCache cache(0);
  Insert(&cache, Sequence(64), true);
  EXPECT_EQ(Found(cache, Sequence(64)), 0);
  EXPECT_EQ(cache.bytes(), 0U);
}

TEST(PrefixCacheTest, TheDeepestUsableImageIsFound) {
  PrefixCache cache(kPlenty);
  const Tokens prompt = Sequence(300);
  Insert(&cache, First(prompt, 64), false);
  Insert(&cache, First(prompt, 192), false);
  EXPECT_EQ(Found(cache, prompt), 192);
  EXPECT_EQ(Found(cache, First(prompt, 193)), 192);
  EXPECT_EQ(Found(cache, First(prompt, 191)), 64);
  // At the very end logits are needed: one token at least must be read.
  EXPECT_EQ(Found(cache, First(prompt, 192)), 64);
  Insert(&cache, First(prompt, 192), true);
  EXPECT_EQ(Found(cache, First(prompt, 192)), 192);
  EXPECT_EQ(cache.images(), 2);
  // One without logits does not take its place.
  Insert(&cache, First(prompt, 192), false);
  EXPECT_EQ(Found(cache, First(prompt, 192)), 192);
}

TEST(PrefixCacheTest, EndsOffAChunkBorderServeTheSamePromptOnly) {
  PrefixCache cache(kPlenty);
  const Tokens prompt = Sequence(100);
  Insert(&cache, prompt, true);
  EXPECT_EQ(Found(cache, prompt), 100);
  EXPECT_EQ(Found(cache, Sequence(101)), 0);
  EXPECT_EQ(Found(cache, First(prompt, 99)), 0);
  EXPECT_EQ(cache.Find("", Sequence(101)).common, 100);
}

TEST(PrefixCacheTest, BranchesShareTheirStem) {
  PrefixCache cache(kPlenty);
  Tokens left = Sequence(256);
  Tokens right = left;
  right[130] = -1;
  Insert(&cache, First(left, 128), false);
  Insert(&cache, left, false);
  EXPECT_EQ(cache.Find("", right).common, 130);
  EXPECT_EQ(Found(cache, right), 128);
  Insert(&cache, right, true);
  EXPECT_EQ(Found(cache, right), 256);
  left.push_back(5);
  EXPECT_EQ(Found(cache, left), 256);
}

TEST(PrefixCacheTest, SaltsNeverMeet) {
  PrefixCache cache(kPlenty);
  const Tokens prompt = Sequence(64);
  Insert(&cache, prompt, true, "alice");
  EXPECT_EQ(Found(cache, prompt, "alice"), 64);
  EXPECT_EQ(Found(cache, prompt, "bob"), 0);
  EXPECT_EQ(Found(cache, prompt), 0);
  EXPECT_EQ(cache.Find("bob", prompt).common, 0);
}

TEST(PrefixCacheTest, BudgetHoldsAndEvictionPrefersTheCheapAndOld) {
  PrefixCache cache(8 * (kStateBytes + 1024));
  const Tokens costly = Sequence(640);
  Insert(&cache, costly, true);
  for (int32_t i = 1; i <= 20; ++i) {
    Insert(&cache, Sequence(64, i * 1000), true);
    EXPECT_LE(cache.bytes(), cache.max_bytes());
  }
  EXPECT_GT(cache.evictions(), 0);
  EXPECT_EQ(Found(cache, costly), 640) << "ten times the work of any other";
  EXPECT_EQ(Found(cache, Sequence(64, 1000)), 0);
  EXPECT_EQ(Found(cache, Sequence(64, 20000)), 64);
  // What is never used again goes in the end.
  for (int32_t i = 21; i <= 200; ++i) Insert(&cache, Sequence(64, i * 1000), true);
  EXPECT_EQ(Found(cache, costly), 0);
}

TEST(PrefixCacheTest, TouchedImagesStay) {
  PrefixCache cache(4 * (kStateBytes + 1024));
  const Tokens kept = Sequence(64);
  Insert(&cache, kept, true);
  for (int32_t i = 1; i <= 50; ++i) {
    cache.Touch("", kept);
    Insert(&cache, Sequence(64, i * 1000), true);
  }
  EXPECT_EQ(Found(cache, kept), 64);
}

// Against a plain map, with random prompts over a tiny vocabulary so that they often share.
TEST(PrefixCacheTest, RandomOperationsAgreeWithAMap) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  const auto pick = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  PrefixCache cache(kPlenty);
  std::map<std::pair<std::string, Tokens>, bool> truth;  // with logits?
  std::vector<Tokens> prompts;
  for (int i = 0; i < 12; ++i) {
    Tokens prompt =
        i > 0 && pick(0, 2) > 0 ? First(prompts[pick(0, i - 1)], pick(1, 60)) : Tokens();
    while (static_cast<int64_t>(prompt.size()) < 260) {
      prompt.push_back(static_cast<int32_t>(pick(0, 1)));
    }
    prompts.push_back(std::move(prompt));
  }
  for (int step = 0; step < 2000; ++step) {
    const std::string salt = pick(0, 3) == 0 ? "s" : "";
    const Tokens& prompt = prompts[static_cast<size_t>(pick(0, 11))];
    if (pick(0, 3) == 0) {
      const Tokens prefix = First(prompt, pick(0, 1) == 0 ? pick(1, 4) * kChunk : pick(1, 260));
      const bool logits = pick(0, 1) == 0;
      Insert(&cache, prefix, logits, salt);
      truth[{salt, prefix}] |= logits;
      continue;
    }
    const Tokens asked = First(prompt, pick(1, 260));
    int64_t want = 0;
    for (int64_t size = 1; size <= static_cast<int64_t>(asked.size()); ++size) {
      const auto it = truth.find({salt, First(asked, size)});
      if (it == truth.end()) continue;
      const bool at_end = size == static_cast<int64_t>(asked.size());
      if (at_end ? it->second : size % kChunk == 0) want = size;
    }
    ASSERT_EQ(Found(cache, asked, salt), want) << "step " << step;
    ASSERT_EQ(cache.Has(salt, asked, true),
              truth.contains({salt, asked}) && truth.at({salt, asked}));
  }
  EXPECT_EQ(cache.images(), static_cast<int64_t>(truth.size()));
}

// Under pressure the accounts stay right: emptied by one huge image that fits alone.
TEST(PrefixCacheTest, AccountsReturnToNothing) {
  std::mt19937 random(7);
  constexpr size_t kBudget = 20 * kStateBytes;
  PrefixCache cache(kBudget);
  for (int i = 0; i < 500; ++i) {
    Tokens prompt(std::uniform_int_distribution<size_t>(1, 300)(random));
    for (int32_t& token : prompt) token = std::uniform_int_distribution<int32_t>(0, 1)(random);
    Insert(&cache, prompt, true);
    ASSERT_LE(cache.bytes(), kBudget);
  }
  auto huge = std::make_shared<StateImage>(kBudget - 2000);
  huge->position = 1;
  cache.Insert("other", Tokens{9}, huge);
  for (int i = 0; i < 3 && cache.images() > 1; ++i) cache.Insert("other", Tokens{9}, huge);
  EXPECT_LE(cache.bytes(), kBudget);
}

}  // namespace
}  // namespace osdn
