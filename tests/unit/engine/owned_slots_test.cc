#include "engine/owned_slots.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "tests/unit/engine/scripted_executor.h"

namespace osdn {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kAlice = 7;
constexpr uint64_t kBob = 12;

class OwnedSlotsTest : public ::testing::Test {
 protected:
  OwnedSlotsTest()
      : executor_(8, 2, [](const auto&, absl::Span<float>) {}),
        slots_(&executor_),
        bytes_(slots_.bytes()) {}

  SlotRef Acquire(uint64_t owner) {
    const auto slot = slots_.Acquire(owner);
    EXPECT_TRUE(slot.ok()) << slot.status();
    return {slot.ok() ? *slot : -1, owner};
  }

  ScriptedExecutor executor_;
  OwnedSlots slots_;
  std::vector<std::byte> bytes_;
};

TEST_F(OwnedSlotsTest, TheOwnerMayDoEverything) {
  const SlotRef a = Acquire(kAlice);
  const SlotRef b = Acquire(kAlice);
  EXPECT_TRUE(slots_.Check(a).ok());
  EXPECT_TRUE(slots_.Save(a, absl::MakeSpan(bytes_)).ok());
  EXPECT_TRUE(slots_.Restore(b, bytes_).ok());
  EXPECT_TRUE(slots_.Copy(a, b).ok());
  EXPECT_EQ(slots_.used(), 2);
  EXPECT_EQ(slots_.Acquire(kBob).status().code(), absl::StatusCode::kInternal) << "all are taken";
  EXPECT_TRUE(slots_.Release(a).ok());
  EXPECT_TRUE(slots_.Release(b).ok());
  EXPECT_EQ(slots_.used(), 0);
  EXPECT_EQ(slots_.quarantined(), 0);
}

TEST_F(OwnedSlotsTest, EveryUseUnderAnotherIdIsRefusedAndTakesTheSlotOut) {
  using Use = std::function<absl::Status(OwnedSlots*, SlotRef, SlotRef, std::vector<std::byte>*)>;
  const std::vector<Use> uses = {
      [](auto* s, SlotRef stolen, SlotRef, auto*) { return s->Check(stolen); },
      [](auto* s, SlotRef stolen, SlotRef, auto* bytes) {
        return s->Save(stolen, absl::MakeSpan(*bytes));
      },
      [](auto* s, SlotRef stolen, SlotRef, auto* bytes) { return s->Restore(stolen, *bytes); },
      [](auto* s, SlotRef stolen, SlotRef own, auto*) { return s->Copy(stolen, own); },
      [](auto* s, SlotRef stolen, SlotRef own, auto*) { return s->Copy(own, stolen); },
      [](auto* s, SlotRef stolen, SlotRef, auto*) { return s->Release(stolen); },
  };
  for (const Use& use : uses) {
    ScriptedExecutor executor(8, 2, [](const auto&, absl::Span<float>) {});
    OwnedSlots slots(&executor);
    const SlotRef own{*slots.Acquire(kAlice), kAlice};
    const SlotRef other{*slots.Acquire(kBob), kBob};
    const absl::Status refused = use(&slots, {other.slot, kAlice}, own, &bytes_);
    EXPECT_EQ(refused.code(), absl::StatusCode::kInternal);
    EXPECT_THAT(std::string(refused.message()), HasSubstr("sequence 12's"));
    EXPECT_EQ(slots.quarantined(), 1);
    // Its owner finds out too, and it is never met again.
    EXPECT_EQ(slots.Check(other).code(), absl::StatusCode::kInternal);
    EXPECT_TRUE(slots.Release(other).ok());
    EXPECT_TRUE(slots.Release(own).ok());
    EXPECT_EQ(*slots.Acquire(kBob), own.slot);
    EXPECT_FALSE(slots.Acquire(kBob).ok());
    EXPECT_EQ(slots.used(), 2);
    EXPECT_EQ(slots.quarantined(), 1);
  }
}

TEST_F(OwnedSlotsTest, ASlotThatWasGivenBackIsNobodys) {
  const SlotRef stale = Acquire(kAlice);
  ASSERT_TRUE(slots_.Release(stale).ok());
  EXPECT_THAT(std::string(slots_.Check(stale).message()), HasSubstr("nobody's"));
  // The executor has it free, but it is not given out any more.
  const SlotRef left = Acquire(kBob);
  EXPECT_NE(left.slot, stale.slot);
  EXPECT_FALSE(slots_.Acquire(kBob).ok());
}

TEST_F(OwnedSlotsTest, NoSlotIsAnErrorAndHarmsNobody) {
  EXPECT_EQ(slots_.Check({-1, kAlice}).code(), absl::StatusCode::kInternal);
  EXPECT_EQ(slots_.Check({100, kAlice}).code(), absl::StatusCode::kInternal);
  EXPECT_TRUE(slots_.Check(Acquire(kBob)).ok());
}

TEST_F(OwnedSlotsTest, ASlotThatCannotBeWipedIsQuarantined) {
  const SlotRef ref = Acquire(kAlice);
  executor_.FailReleases(1);
  EXPECT_FALSE(slots_.Release(ref).ok());
  EXPECT_EQ(slots_.quarantined(), 1);
  EXPECT_NE(Acquire(kBob).slot, ref.slot);
}

TEST_F(OwnedSlotsTest, ASlotThatIsGivenOutTwiceIsNobodysAnyMore) {
  const SlotRef first = Acquire(kAlice);
  executor_.GiveOutAgain(first.slot);
  const absl::Status twice = slots_.Acquire(kBob).status();
  EXPECT_EQ(twice.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(twice.message()), HasSubstr("while sequence 7 has it"));
  EXPECT_FALSE(slots_.Check(first).ok());
  EXPECT_EQ(slots_.quarantined(), 1);
}

}  // namespace
}  // namespace osdn
