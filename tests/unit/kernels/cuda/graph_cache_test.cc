// Which recorded steps are kept.
#include "kernels/cuda/graph_cache.h"

#include <memory>

#include "gtest/gtest.h"

namespace osdn::kernels::cuda {
namespace {

using Cache = GraphCache<std::shared_ptr<int>>;

TEST(GraphCacheTest, CountsUsesOfEachShape) {
  Cache cache(5);
  int model = 0;
  int other = 0;
  int state = 0;
  const GraphKey key = {&model, &state, 8, 8};
  EXPECT_EQ(cache.Use(key)->uses, 0);
  EXPECT_EQ(cache.Use(key)->uses, 1);
  EXPECT_EQ(cache.Use(key)->uses, 2);
  // Each part of the key tells shapes apart.
  EXPECT_EQ(cache.Use({&other, &state, 8, 8})->uses, 0);
  EXPECT_EQ(cache.Use({&model, &other, 8, 8})->uses, 0);
  EXPECT_EQ(cache.Use({&model, &state, 16, 8})->uses, 0);
  EXPECT_EQ(cache.Use({&model, &state, 8, 7})->uses, 0);
  EXPECT_EQ(cache.size(), 5U);
  EXPECT_EQ(cache.Use(key)->uses, 3);
}

TEST(GraphCacheTest, KeepsTheGraphAndTheRefusal) {
  Cache cache(2);
  Cache::Entry* entry = cache.Use({nullptr, nullptr, 1, 1});
  EXPECT_EQ(entry->graph, nullptr);
  EXPECT_FALSE(entry->refused);
  entry->graph = std::make_shared<int>(7);
  entry->refused = true;
  cache.Use({nullptr, nullptr, 2, 1});
  entry = cache.Use({nullptr, nullptr, 1, 1});
  ASSERT_NE(entry->graph, nullptr);
  EXPECT_EQ(*entry->graph, 7);
  EXPECT_TRUE(entry->refused);
}

TEST(GraphCacheTest, DropsTheLeastRecentlyUsed) {
  Cache cache(2);
  std::weak_ptr<int> graphs[3];
  for (int i = 0; i < 2; ++i) {
    Cache::Entry* entry = cache.Use({nullptr, nullptr, i, 0});
    entry->graph = std::make_shared<int>(i);
    graphs[i] = entry->graph;
  }
  cache.Use({nullptr, nullptr, 0, 0});  // now 1 is the older one
  cache.Use({nullptr, nullptr, 2, 0});
  EXPECT_EQ(cache.size(), 2U);
  EXPECT_FALSE(graphs[0].expired());
  EXPECT_TRUE(graphs[1].expired());
  EXPECT_EQ(cache.Use({nullptr, nullptr, 0, 0})->uses, 2);
  EXPECT_EQ(cache.Use({nullptr, nullptr, 1, 0})->uses, 0);
}

TEST(GraphCacheTest, ClearFreesAll) {
  Cache cache(2);
  auto graph = std::make_shared<int>(1);
  cache.Use({nullptr, nullptr, 1, 1})->graph = graph;
  cache.Clear();
  EXPECT_EQ(graph.use_count(), 1);
  EXPECT_EQ(cache.size(), 0U);
  EXPECT_EQ(cache.Use({nullptr, nullptr, 1, 1})->uses, 0);
}

}  // namespace
}  // namespace osdn::kernels::cuda
