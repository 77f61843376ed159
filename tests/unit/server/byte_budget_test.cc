#include "server/byte_budget.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace osdn {
namespace {

using ::testing::HasSubstr;

constexpr char kRetryInfo[] = "type.googleapis.com/google.rpc.RetryInfo";

TEST(ByteBudgetTest, WhatIsTakenGoesBackWithItsHolder) {
  ByteBudget budget(100, "things", "some.option");
  {
    auto first = budget.Take(60);
    ASSERT_TRUE(first.ok()) << first.status();
    ASSERT_TRUE(budget.Add(10, &*first).ok());
    EXPECT_EQ(budget.used(), 70);
    ByteBudget::Hold moved = *std::move(first);
    EXPECT_EQ(budget.used(), 70);
    ByteBudget::Hold other = *budget.Take(30);
    EXPECT_EQ(budget.used(), 100);
    other = std::move(moved);
    EXPECT_FALSE(budget.Take(31).ok());
  }
  EXPECT_EQ(budget.used(), 0);
}

TEST(ByteBudgetTest, RefusalsNameLimitOptionAndWhetherToTryAgain) {
  ByteBudget budget(100, "things", "some.option");
  ByteBudget::Hold hold = *budget.Take(60);
  const absl::Status full = budget.Add(41, &hold);
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  for (const char* part : {"things", "60 bytes", "41 more", "at most 100", "some.option"}) {
    EXPECT_THAT(std::string(full.message()), HasSubstr(part));
  }
  EXPECT_TRUE(full.GetPayload(kRetryInfo).has_value());
  const absl::Status never = budget.Take(101).status();
  EXPECT_EQ(never.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(never.message()), HasSubstr("some.option is too small"));
  EXPECT_FALSE(never.GetPayload(kRetryInfo).has_value()) << "waiting does not help";
  EXPECT_EQ(budget.used(), 60);
}

TEST(ByteBudgetTest, AHoldMayOutliveTheBudget) {
  std::optional<ByteBudget> budget(std::in_place, 100, "things", "some.option");
  const ByteBudget::Hold hold = *budget->Take(60);
  budget.reset();
}

TEST(ByteBudgetTest, ManyThreadsNeverTakeMoreThanThereIs) {
  ByteBudget budget(10, "things", "some.option");
  std::atomic<int> held{0};
  std::atomic<int> taken{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 10'000; ++i) {
        const auto hold = budget.Take(4);
        if (!hold.ok()) continue;
        EXPECT_LE(++held, 2);
        ++taken;
        --held;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(taken, 0);
  EXPECT_EQ(budget.used(), 0);
}

}  // namespace
}  // namespace osdn
