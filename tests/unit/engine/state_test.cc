#include "engine/state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <set>

#include "absl/strings/str_cat.h"
#include "tests/unit/engine/test_support.h"

namespace osdn {
namespace {

using ::testing::HasSubstr;
using testing_support::HostBackends;
using testing_support::MakeBackend;
using testing_support::SmallArchitecture;

TEST(StateLayoutTest, PartsAreAlignedAndDisjoint) {
  const ArchitectureConfig arch = SmallArchitecture();  // 3 heads, K 5, V 7, conv 4, 2 layers
  const StateLayout layout(arch);
  ASSERT_EQ(layout.num_layers(), 2);
  struct Part {
    int64_t offset;
    int64_t floats;
  };
  std::vector<Part> parts;
  for (int64_t i = 0; i < layout.num_layers(); ++i) {
    const StateLayout::Layer& layer = layout.layer(i);
    parts.insert(parts.end(), {{layer.s, 3 * 7 * 5},
                               {layer.d, 3 * 5},
                               {layer.conv_q, 3 * 15},
                               {layer.conv_k, 3 * 15},
                               {layer.conv_v, 3 * 21}});
  }
  int64_t end = 0;
  for (const Part& part : parts) {
    EXPECT_EQ(part.offset % 16, 0) << "64 bytes";
    EXPECT_GE(part.offset, end) << "overlaps the part before it";
    end = part.offset + part.floats;
  }
  EXPECT_GE(layout.slot_floats(), end);
  EXPECT_EQ(layout.slot_floats() % 16, 0);
  // 105, 15, 45, 45, 63 floats, each rounded up to 16.
  EXPECT_EQ(layout.slot_floats(), 2 * (112 + 16 + 48 + 48 + 64));
  EXPECT_EQ(layout.slot_bytes(), static_cast<size_t>(layout.slot_floats()) * 4);
  EXPECT_EQ(layout.d_floats(), 15);
}

TEST(StateLayoutTest, NoTailsWithoutConvolution) {
  ArchitectureConfig arch = SmallArchitecture();
  arch.use_short_conv = false;
  EXPECT_EQ(StateLayout(arch).slot_floats(), 2 * (112 + 16));
}

// The figures of docs/model.md: a 340M model's state, whatever the context's length.
TEST(StateLayoutTest, ReferenceSize) {
  ArchitectureConfig arch;
  arch.num_layers = 24;
  arch.num_heads = 8;
  arch.key_dim = arch.value_dim = 128;
  EXPECT_EQ(StateLayout(arch).slot_bytes(), 24U * 4 * (8 * 128 * 128 + 8 * 128 + 3 * 3 * 1024));
}

class StatePoolTest : public testing::TestWithParam<std::string> {
 protected:
  StatePoolTest() : backend_(MakeBackend(GetParam())), layout_(SmallArchitecture()) {}

  StatePool MakePool(int32_t slots) {
    auto pool = StatePool::Create(backend_.get(), layout_, slots);
    EXPECT_TRUE(pool.ok()) << pool.status();
    return *std::move(pool);
  }

  int32_t Acquire(StatePool* pool) {
    const auto slot = pool->Acquire();
    EXPECT_TRUE(slot.ok() && slot->has_value()) << slot.status();
    return **slot;
  }

  std::vector<float> Content(const StatePool& pool, int32_t slot) {
    std::vector<float> floats(static_cast<size_t>(layout_.slot_floats()));
    const absl::Status status =
        pool.Save(slot, {reinterpret_cast<std::byte*>(floats.data()), layout_.slot_bytes()});
    EXPECT_TRUE(status.ok()) << status;
    return floats;
  }

  void Restore(StatePool* pool, int32_t slot, const std::vector<float>& floats) {
    const absl::Status status = pool->Restore(
        slot, {reinterpret_cast<const std::byte*>(floats.data()), layout_.slot_bytes()});
    EXPECT_TRUE(status.ok()) << status;
  }

  std::vector<float> Initial() {
    std::vector<float> floats(static_cast<size_t>(layout_.slot_floats()), 0.0F);
    for (int64_t i = 0; i < layout_.num_layers(); ++i) {
      for (int64_t j = 0; j < layout_.d_floats(); ++j) {
        floats[static_cast<size_t>(layout_.layer(i).d + j)] = 1.0F;
      }
    }
    return floats;
  }

  std::unique_ptr<kernels::Backend> backend_;
  StateLayout layout_;
};

TEST_P(StatePoolTest, AcquireUntilEmpty) {
  StatePool pool = MakePool(3);
  std::set<int32_t> slots;
  for (int i = 0; i < 3; ++i) slots.insert(Acquire(&pool));
  EXPECT_EQ(slots, (std::set<int32_t>{0, 1, 2}));
  EXPECT_EQ(pool.used(), 3);
  const auto none = pool.Acquire();
  ASSERT_TRUE(none.ok()) << none.status();
  EXPECT_FALSE(none->has_value());
  ASSERT_TRUE(pool.Release(1).ok());
  EXPECT_EQ(pool.used(), 2);
  EXPECT_EQ(Acquire(&pool), 1);
}

TEST_P(StatePoolTest, SlotsStartInTheInitialState) {
  StatePool pool = MakePool(2);
  EXPECT_EQ(Content(pool, Acquire(&pool)), Initial());
  EXPECT_EQ(Content(pool, Acquire(&pool)), Initial());
}

// A canary in one slot is in no other slot, in nothing given out later, and not left in memory.
TEST_P(StatePoolTest, CanaryNeverLeaksToOthers) {
  StatePool pool = MakePool(3);
  const int32_t left = Acquire(&pool);
  const int32_t middle = Acquire(&pool);
  const int32_t right = Acquire(&pool);
  const std::vector<float> canary(static_cast<size_t>(layout_.slot_floats()), 1234.5F);
  Restore(&pool, middle, canary);
  EXPECT_EQ(Content(pool, middle), canary);
  EXPECT_EQ(Content(pool, left), Initial());
  EXPECT_EQ(Content(pool, right), Initial());

  ASSERT_TRUE(pool.Release(middle).ok());
  // Straight from the arena, before anything could initialise it again.
  std::vector<float> memory(static_cast<size_t>(layout_.slot_floats()), -1);
  ASSERT_TRUE(
      backend_->CopyToHost(memory.data(), pool.At(0).at(middle), layout_.slot_bytes()).ok());
  EXPECT_EQ(memory, std::vector<float>(memory.size(), 0.0F)) << "not wiped on release";
  EXPECT_EQ(Acquire(&pool), middle);
  EXPECT_EQ(Content(pool, middle), Initial());
}

TEST_P(StatePoolTest, SaveAndRestoreCopyTheWholeSlot) {
  StatePool pool = MakePool(2);
  const int32_t a = Acquire(&pool);
  const int32_t b = Acquire(&pool);
  std::vector<float> pattern(static_cast<size_t>(layout_.slot_floats()));
  for (size_t i = 0; i < pattern.size(); ++i) pattern[i] = static_cast<float>(i) + 0.5F;
  Restore(&pool, a, pattern);
  Restore(&pool, b, Content(pool, a));
  EXPECT_EQ(Content(pool, b), pattern);
}

TEST_P(StatePoolTest, CopyForksASlotAndTouchesNoOther) {
  StatePool pool = MakePool(3);
  const int32_t a = Acquire(&pool);
  const int32_t b = Acquire(&pool);
  const int32_t c = Acquire(&pool);
  std::vector<float> pattern(static_cast<size_t>(layout_.slot_floats()));
  for (size_t i = 0; i < pattern.size(); ++i) pattern[i] = static_cast<float>(i) + 0.5F;
  Restore(&pool, a, pattern);
  ASSERT_TRUE(pool.Copy(a, c).ok());
  EXPECT_EQ(Content(pool, a), pattern);
  EXPECT_EQ(Content(pool, b), Initial());
  EXPECT_EQ(Content(pool, c), pattern);
  // From here on they are two.
  Restore(&pool, a, Initial());
  EXPECT_EQ(Content(pool, c), pattern);
}

TEST_P(StatePoolTest, MisuseIsRefused) {
  StatePool pool = MakePool(2);
  const int32_t slot = Acquire(&pool);
  std::vector<std::byte> bytes(layout_.slot_bytes());
  const auto code = absl::StatusCode::kInvalidArgument;
  for (const int32_t bad : {-1, 2, slot == 0 ? 1 : 0}) {
    EXPECT_EQ(pool.Release(bad).code(), code) << bad;
    EXPECT_EQ(pool.Save(bad, absl::MakeSpan(bytes)).code(), code) << bad;
    EXPECT_EQ(pool.Restore(bad, bytes).code(), code) << bad;
    EXPECT_EQ(pool.Copy(bad, slot).code(), code) << bad;
    EXPECT_EQ(pool.Copy(slot, bad).code(), code) << bad;
  }
  EXPECT_EQ(pool.Copy(slot, slot).code(), code);
  EXPECT_EQ(pool.Save(slot, absl::MakeSpan(bytes).first(bytes.size() - 1)).code(), code);
  EXPECT_EQ(pool.Restore(slot, absl::MakeConstSpan(bytes).first(8)).code(), code);
  ASSERT_TRUE(pool.Release(slot).ok());
  EXPECT_EQ(pool.Release(slot).code(), code) << "released twice";
  EXPECT_EQ(pool.used(), 0);
  EXPECT_EQ(StatePool::Create(backend_.get(), layout_, 0).status().code(), code);
}

TEST_P(StatePoolTest, TooManySlotsAreResourceExhaustedWithTheNumbers) {
  ArchitectureConfig arch;
  arch.num_layers = 1024;
  arch.num_heads = 1024;
  arch.key_dim = 1024;
  arch.value_dim = 4096;
  const StateLayout huge(arch);
  const auto pool = StatePool::Create(backend_.get(), huge, 1 << 20);
  EXPECT_EQ(pool.status().code(), absl::StatusCode::kResourceExhausted) << pool.status();
  EXPECT_THAT(std::string(pool.status().message()), HasSubstr(absl::StrCat(huge.slot_bytes())));
}

INSTANTIATE_TEST_SUITE_P(All, StatePoolTest, testing::ValuesIn(HostBackends()),
                         [](const auto& param_info) { return param_info.param; });

}  // namespace
}  // namespace osdn
