#include "engine/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

#include "kernels/include/tensor.h"

namespace osdn {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr int64_t kChunk = kernels::kChunk;

std::vector<std::pair<uint64_t, int64_t>> Pieces(const StepPlan& plan) {
  std::vector<std::pair<uint64_t, int64_t>> pieces;
  for (const PrefillStep& piece : plan.prefill) pieces.emplace_back(piece.id, piece.tokens);
  return pieces;
}

TEST(SchedulerTest, NothingToDo) {
  EXPECT_TRUE(PlanStep({}, {}, {}).empty());
  EXPECT_TRUE(PlanStep({{.id = 1, .position = 5, .stalled = true}}, {}, {}).empty());
}

TEST(SchedulerTest, EveryRunnableDecodeGetsItsToken) {
  const StepPlan plan = PlanStep({{.id = 1, .position = 5},
                                  {.id = 2, .position = 9, .stalled = true},
                                  {.id = 3, .position = 700}},
                                 {}, {});
  EXPECT_THAT(plan.decode, ElementsAre(1, 3));
  EXPECT_THAT(plan.prefill, IsEmpty());
}

TEST(SchedulerTest, AdmitsInOrderWhileSlotsLast) {
  const StepPlan plan =
      PlanStep({{.id = 1, .position = 5}}, {{2, 10}, {3, 20}, {4, 30}}, {.max_slots = 3});
  EXPECT_THAT(plan.admit, ElementsAre(2, 3));
  EXPECT_THAT(Pieces(plan), ElementsAre(std::pair(2, 10), std::pair(3, 20)));
}

TEST(SchedulerTest, StalledSequencesKeepTheirSlots) {
  const StepPlan plan =
      PlanStep({{.id = 1, .position = 5, .stalled = true}}, {{2, 10}}, {.max_slots = 1});
  EXPECT_TRUE(plan.empty());
}

TEST(SchedulerTest, PromptIsCutAtChunkBorders) {
  const SchedulerLimits limits{.max_step_tokens = 200, .max_prefill_tokens = 100};
  // Alone, the whole step: 200 tokens hold three chunks.
  EXPECT_THAT(Pieces(PlanStep({}, {{1, 1000}}, limits)), ElementsAre(std::pair(1, 192)));
  // Off a border (a resumed state): up to the next one.
  EXPECT_THAT(Pieces(PlanStep({{.id = 1, .position = 30, .prompt_remaining = 1000}}, {}, limits)),
              ElementsAre(std::pair(1, 192 - 30)));
  // The end of the prompt is a cut too.
  EXPECT_THAT(Pieces(PlanStep({{.id = 1, .position = 64, .prompt_remaining = 200}}, {}, limits)),
              ElementsAre(std::pair(1, 200)));
}

TEST(SchedulerTest, DecodersBoundThePrefill) {
  const SchedulerLimits limits{.max_step_tokens = 512, .max_prefill_tokens = 128};
  const RunningSequence decoder{.id = 9, .position = 3};
  const RunningSequence first{.id = 1, .position = 0, .prompt_remaining = 1000};
  EXPECT_THAT(Pieces(PlanStep({first, decoder}, {}, limits)), ElementsAre(std::pair(1, 128)));
  // Stalled decoders do not wait for anything.
  RunningSequence stalled = decoder;
  stalled.stalled = true;
  EXPECT_THAT(Pieces(PlanStep({first, stalled}, {}, limits)), ElementsAre(std::pair(1, 512)));
}

TEST(SchedulerTest, WhatHoldsNoChunkServesLaterShortPrompts) {
  const SchedulerLimits limits{.max_step_tokens = 512, .max_prefill_tokens = 150};
  const RunningSequence decoder{.id = 9, .position = 3};
  const StepPlan plan =
      PlanStep({{.id = 1, .prompt_remaining = 1000}, decoder}, {{2, 15}, {3, 300}, {4, 1}}, limits);
  // 128 + 15 = 143; 7 are left, and 4 does not overtake 3.
  EXPECT_THAT(Pieces(plan), ElementsAre(std::pair(1, 128), std::pair(2, 15)));
  EXPECT_THAT(plan.admit, ElementsAre(2));
}

TEST(SchedulerTest, PiecesEndAtCuts) {
  EXPECT_THAT(Pieces(PlanStep({{.id = 1, .position = 64, .prompt_remaining = 400, .next_cut = 192}},
                              {{.id = 2, .prompt_tokens = 100, .next_cut = 64}}, {})),
              ElementsAre(std::pair(1, 128), std::pair(2, 64)));
}

TEST(SchedulerTest, BetterClassesReadTheirPromptsFirst) {
  const SchedulerLimits limits{.max_step_tokens = 512, .max_prefill_tokens = 128};
  const std::vector<RunningSequence> running = {{.id = 1, .position = 5},
                                                {.id = 2, .prompt_remaining = 1000, .priority = 2},
                                                {.id = 3, .prompt_remaining = 64, .priority = 1}};
  // A waiting prompt of a better class comes before running ones of worse ones.
  const StepPlan plan = PlanStep(running,
                                 {{.id = 4, .prompt_tokens = 30, .priority = 0},
                                  {.id = 5, .prompt_tokens = 10, .priority = 1}},
                                 limits);
  EXPECT_THAT(Pieces(plan), ElementsAre(std::pair(4, 30), std::pair(3, 64), std::pair(5, 10)));
  EXPECT_THAT(plan.admit, ElementsAre(4, 5));
}

TEST(SchedulerTest, IdleSequencesMakeRoomForAsManyAsWait) {
  const std::vector<RunningSequence> running = {
      {.id = 1, .position = 5, .stalled = true, .idle = true},
      {.id = 2, .position = 5, .stalled = true},
      {.id = 3, .position = 5, .stalled = true, .idle = true},
      {.id = 4, .position = 5, .stalled = true, .idle = true}};
  SchedulerLimits limits{.max_slots = 4, .swap_room = 2};
  EXPECT_THAT(PlanStep(running, {}, limits).swap_out, IsEmpty());
  EXPECT_THAT(PlanStep(running, {{9, 10}}, limits).swap_out, ElementsAre(1));
  const StepPlan plan = PlanStep(running, {{9, 10}, {10, 10}, {11, 10}}, limits);
  EXPECT_THAT(plan.swap_out, ElementsAre(1, 3));
  EXPECT_THAT(plan.admit, ElementsAre(9, 10));
  limits.swap_room = 0;
  EXPECT_TRUE(PlanStep(running, {{9, 10}}, limits).empty());
}

TEST(SchedulerTest, WhatNeedsASlotOnlyTakesNoTokens) {
  const SchedulerLimits limits{.max_slots = 3, .max_step_tokens = 70, .max_prefill_tokens = 64};
  const StepPlan plan = PlanStep({{.id = 1, .position = 0, .prompt_remaining = 640}},
                                 {{.id = 2, .prompt_tokens = 0, .position = 500}}, limits);
  EXPECT_THAT(plan.admit, ElementsAre(2));
  EXPECT_THAT(Pieces(plan), ElementsAre(std::pair(1, 64)));
}

TEST(SchedulerTest, PrefillNeverStarvesUnderATinyLimit) {
  const StepPlan plan = PlanStep({{.id = 1, .position = 3}}, {{2, 1000}},
                                 {.max_step_tokens = 512, .max_prefill_tokens = 1});
  EXPECT_THAT(Pieces(plan), ElementsAre(std::pair(2, kChunk)));
}

// A world of random requests run to the end, with every promise checked at every step.
class RandomSchedule {
 public:
  explicit RandomSchedule(uint32_t seed) : random_(seed) {
    limits_.max_slots = Pick(1, 12);
    limits_.max_step_tokens = limits_.max_slots + kChunk + Pick(0, 300);
    limits_.max_prefill_tokens = Pick(kChunk, 200);
  }

  void Run() {
    int64_t to_arrive = Pick(1, 40);
    for (int step = 0; to_arrive > 0 || !running_.empty() || !waiting_.empty(); ++step) {
      ASSERT_LT(step, 20000) << "no end in sight";
      while (to_arrive > 0 && Pick(0, 2) == 0) {
        waiting_.push_back({next_id_++, Pick(0, 1) == 0 ? Pick(1, 20) : Pick(1, 700)});
        --to_arrive;
      }
      for (RunningSequence& sequence : running_) sequence.stalled = Pick(0, 5) == 0;
      const StepPlan plan = PlanStep(running_, waiting_, limits_);
      ASSERT_NO_FATAL_FAILURE(Check(plan));
      Apply(plan);
    }
  }

 private:
  int64_t Pick(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random_);
  }

  void Check(const StepPlan& plan) {
    std::vector<uint64_t> decodes;
    bool runnable = !waiting_.empty() && static_cast<int64_t>(running_.size()) < limits_.max_slots;
    for (const RunningSequence& sequence : running_) {
      runnable |= !sequence.stalled;
      if (!sequence.stalled && sequence.prompt_remaining == 0) decodes.push_back(sequence.id);
    }
    ASSERT_EQ(plan.decode, decodes);
    ASSERT_EQ(plan.empty(), !runnable) << "progress exactly when something can run";
    ASSERT_LE(static_cast<int64_t>(running_.size() + plan.admit.size()), limits_.max_slots);
    for (size_t i = 0; i < plan.admit.size(); ++i) ASSERT_EQ(plan.admit[i], waiting_[i].id);

    int64_t prefill_tokens = 0;
    uint64_t last_id = 0;
    size_t admitted_pieces = 0;
    for (const PrefillStep& piece : plan.prefill) {
      ASSERT_GT(piece.id, last_id) << "arrival order, one piece each";
      last_id = piece.id;
      ASSERT_NO_FATAL_FAILURE(CheckPiece(piece, &admitted_pieces));
      prefill_tokens += piece.tokens;
    }
    ASSERT_EQ(admitted_pieces, plan.admit.size());
    ASSERT_LE(static_cast<int64_t>(decodes.size()) + prefill_tokens, limits_.max_step_tokens);
    if (!decodes.empty()) {
      ASSERT_LE(prefill_tokens, limits_.max_prefill_tokens);
    } else if (runnable) {
      ASSERT_GT(prefill_tokens, 0);
    }
  }

  void CheckPiece(const PrefillStep& piece, size_t* admitted_pieces) {
    int64_t position = 0;
    int64_t remaining = 0;
    const auto it = std::find_if(running_.begin(), running_.end(),
                                 [&](const auto& sequence) { return sequence.id == piece.id; });
    if (it != running_.end()) {
      ASSERT_FALSE(it->stalled);
      position = it->position;
      remaining = it->prompt_remaining;
    } else {
      remaining = waiting_[(*admitted_pieces)++].prompt_tokens;
    }
    ASSERT_GT(piece.tokens, 0);
    ASSERT_LE(piece.tokens, remaining);
    ASSERT_TRUE(piece.tokens == remaining || (position + piece.tokens) % kChunk == 0);
  }

  void Apply(const StepPlan& plan) {
    for (size_t i = 0; i < plan.admit.size(); ++i) {
      running_.push_back({.id = waiting_[i].id, .prompt_remaining = waiting_[i].prompt_tokens});
      to_decode_[waiting_[i].id] = Pick(1, 30);
    }
    waiting_.erase(waiting_.begin(), waiting_.begin() + static_cast<int64_t>(plan.admit.size()));
    const auto find = [&](uint64_t id) {
      return std::find_if(running_.begin(), running_.end(),
                          [id](const auto& sequence) { return sequence.id == id; });
    };
    for (const PrefillStep& piece : plan.prefill) {
      find(piece.id)->position += piece.tokens;
      find(piece.id)->prompt_remaining -= piece.tokens;
    }
    for (const uint64_t id : plan.decode) {
      ++find(id)->position;
      if (--to_decode_[id] == 0) running_.erase(find(id));
    }
  }

  std::mt19937 random_;
  SchedulerLimits limits_;
  uint64_t next_id_ = 1;
  std::vector<RunningSequence> running_;
  std::vector<WaitingPrompt> waiting_;
  std::map<uint64_t, int64_t> to_decode_;
};

TEST(SchedulerTest, RandomSchedulesKeepEveryPromise) {
  for (uint32_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE(seed);
    RandomSchedule schedule(seed);
    schedule.Run();
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace osdn
