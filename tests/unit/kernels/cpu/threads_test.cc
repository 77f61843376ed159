// Sharing out of work, thread counts, and working memory.
#include "kernels/cpu/threads.h"

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/pieces.h"

namespace osdn::kernels::cpu {
namespace {

constexpr int64_t kMuchWork = int64_t{1} << 40;

TEST(ThreadsTest, ForVisitsEveryTaskOnceWithAThreadOfTheTeam) {
  for (const int count : {1, 3}) {
    for (const int64_t work : {int64_t{0}, kMuchWork}) {
      for (const int64_t tasks : {0, 1, 2, 7, 100}) {
        std::vector<int> visits(tasks);
        Threads(count).For(tasks, work, [&](int64_t task, int thread) {
          ++visits[task];
          EXPECT_GE(thread, 0);
          EXPECT_LT(thread, count);
        });
        EXPECT_EQ(visits, std::vector<int>(tasks, 1));
      }
    }
  }
}

TEST(ThreadsTest, LittleWorkStaysOnTheCaller) {
  Threads(3).For(8, 100, [](int64_t, int thread) { EXPECT_EQ(thread, 0); });
}

TEST(ThreadsTest, SharesCoverEveryItemOnceAndStartAtGrains) {
  for (const int count : {1, 2, 5}) {
    for (const int64_t items : {0, 1, 15, 16, 17, 1000}) {
      std::mutex mutex;
      std::vector<int> visits(items);
      Threads(count).ForShares(items, 16, kMuchWork, [&](int64_t begin, int64_t end) {
        const std::lock_guard<std::mutex> lock(mutex);
        EXPECT_EQ(begin % 16, 0);
        for (int64_t i = begin; i < end; ++i) ++visits[i];
      });
      EXPECT_EQ(visits, std::vector<int>(items, 1)) << count << " threads, " << items << " items";
    }
  }
}

TEST(CpuBackendTest, ThreadCounts) {
  EXPECT_GE(UsableCores(), 1);
  const auto one = CreateCpuBackend(1);
  ASSERT_TRUE(one.ok()) << one.status();
  EXPECT_NE((*one)->Describe().find("1 thread"), std::string::npos) << (*one)->Describe();
  const auto automatic = CreateCpuBackend(0);
  ASSERT_TRUE(automatic.ok()) << automatic.status();
  EXPECT_NE((*automatic)->Describe().find(std::to_string(UsableCores()) + " thread"),
            std::string::npos)
      << (*automatic)->Describe();
  for (const int bad : {-1, 100'000}) {
    EXPECT_EQ(CreateCpuBackend(bad).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

TEST(CpuBackendTest, RefusesAWeightThatIsNotAMatrix) {
  const auto backend = CreateCpuBackend(1);
  ASSERT_TRUE(backend.ok()) << backend.status();
  const std::vector<float> data(8);
  for (const std::vector<int64_t>& shape : {std::vector<int64_t>{8}, {2, 2, 2}, {0, 8}, {8, 0}}) {
    const auto weight = (*backend)->PrepareLinear({data.data(), DType::kF32, shape});
    EXPECT_EQ(weight.status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(PiecesTest, CutsAtAbsoluteMultiplesOfTheChunk) {
  const auto cut = [](int64_t position, int64_t length) {
    std::vector<int64_t> lengths;
    int64_t offset = 0;
    ForEachPiece({0, length, position, 0}, [&](const Piece& piece) {
      EXPECT_EQ(piece.offset, offset);
      offset += piece.length;
      lengths.push_back(piece.length);
    });
    return lengths;
  };
  EXPECT_EQ(cut(0, 64), (std::vector<int64_t>{64}));
  EXPECT_EQ(cut(0, 65), (std::vector<int64_t>{64, 1}));
  EXPECT_EQ(cut(63, 66), (std::vector<int64_t>{1, 64, 1}));
  EXPECT_EQ(cut(1'000'000, 1), (std::vector<int64_t>{1}));
  EXPECT_EQ(cut(37, 20), (std::vector<int64_t>{20}));
}

TEST(ScratchTest, KeepsItsMemoryUntilItMustGrow) {
  Scratch scratch;
  ASSERT_TRUE(scratch.Reserve(1000).ok());
  const char* first = scratch.As<char>();
  ASSERT_TRUE(scratch.Reserve(500).ok());
  EXPECT_EQ(scratch.As<char>(), first);
  ASSERT_TRUE(scratch.Reserve(size_t{4} << 20).ok());
  EXPECT_EQ(reinterpret_cast<uintptr_t>(scratch.As<char>()) % 64, 0U);
}

TEST(ScratchTest, ThreadsGetBlocksOfTheirOwn) {
  ThreadScratch scratch(3);
  for (const int64_t floats : {100, 7, 5000}) {
    ASSERT_TRUE(scratch.Reserve(floats).ok());
    for (int thread = 0; thread < 3; ++thread) {
      EXPECT_EQ(reinterpret_cast<uintptr_t>(scratch.at(thread)) % 64, 0U);
      if (thread == 0) continue;
      EXPECT_GE(scratch.at(thread) - scratch.at(thread - 1), floats);
    }
  }
}

}  // namespace
}  // namespace osdn::kernels::cpu
