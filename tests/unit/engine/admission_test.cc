#include "engine/admission.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <string>
#include <vector>

namespace osdn {
namespace {

using std::chrono::seconds;
using ::testing::ElementsAre;

std::vector<uint64_t> Order(std::vector<QueueEntry> entries) {
  std::shuffle(entries.begin(), entries.end(), std::mt19937(std::random_device{}()));
  SortForAdmission(&entries);
  std::vector<uint64_t> ids;
  for (const QueueEntry& entry : entries) ids.push_back(entry.id);
  return ids;
}

TEST(AdmissionTest, ClassesThenReturningThenServedThenArrival) {
  EXPECT_THAT(Order({{.id = 1, .priority = 2},
                     {.id = 2, .priority = 0, .served = 500},
                     {.id = 3, .priority = 0, .served = 100},
                     {.id = 4, .priority = 0, .served = 100},
                     {.id = 5, .priority = 0, .returning = true, .served = 900},
                     {.id = 6, .priority = 1}}),
              ElementsAre(5, 3, 4, 2, 6, 1));
}

TEST(AdmissionTest, WaitingRaises) {
  EXPECT_EQ(EffectivePriority(Priority::kLow, seconds(0), seconds(10)), 2);
  EXPECT_EQ(EffectivePriority(Priority::kLow, seconds(9), seconds(10)), 2);
  EXPECT_EQ(EffectivePriority(Priority::kLow, seconds(10), seconds(10)), 1);
  EXPECT_EQ(EffectivePriority(Priority::kLow, seconds(25), seconds(10)), 0);
  EXPECT_EQ(EffectivePriority(Priority::kNormal, seconds(1000), seconds(10)), 0);
  EXPECT_EQ(EffectivePriority(Priority::kHigh, seconds(1000), seconds(10)), 0);
}

TEST(FairShareTest, NewcomersStartWithTheLeastServed) {
  FairShare shares;
  shares.Arrive("a");
  shares.Charge("a", 1000);
  shares.Arrive("b");
  EXPECT_EQ(shares.served("b"), 1000);
  shares.Charge("b", 10);
  shares.Arrive("c");
  EXPECT_EQ(shares.served("c"), 1000);
  // A second request changes nothing, and the client stays until its last one ends.
  shares.Arrive("b");
  shares.Leave("b");
  EXPECT_EQ(shares.served("b"), 1010);
  shares.Leave("b");
  EXPECT_EQ(shares.clients(), 2U);
  shares.Charge("nobody", 5);
  EXPECT_EQ(shares.served("nobody"), 0);
}

// One client with a hundred requests and one that asks for one after the other get as much.
TEST(FairShareTest, AFloodDoesNotStarveAnybody) {
  struct Waiting {
    uint64_t id;
    std::string client;
  };
  std::mt19937 random(3);
  FairShare shares;
  std::vector<Waiting> waiting;
  std::map<std::string, int64_t> tokens;
  uint64_t id = 1;
  const auto arrive = [&](const std::string& client) {
    shares.Arrive(client);
    waiting.push_back({id++, client});
  };
  for (int i = 0; i < 200; ++i) arrive("flood");
  arrive("modest");
  for (int step = 0; step < 150; ++step) {
    std::vector<QueueEntry> entries;
    for (const Waiting& one : waiting) {
      entries.push_back({.id = one.id, .served = shares.served(one.client)});
    }
    SortForAdmission(&entries);
    const auto it = std::find_if(waiting.begin(), waiting.end(),
                                 [&](const Waiting& one) { return one.id == entries.front().id; });
    const std::string client = it->client;
    waiting.erase(it);
    const int64_t cost = std::uniform_int_distribution<int64_t>(50, 150)(random);
    shares.Charge(client, cost);
    tokens[client] += cost;
    if (client == "modest") arrive("modest");  // before it leaves: it is never away
    shares.Leave(client);
  }
  EXPECT_LT(std::abs(tokens["flood"] - tokens["modest"]), 400);
}

}  // namespace
}  // namespace osdn
