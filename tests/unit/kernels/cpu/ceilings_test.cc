// The ceilings are measurements: what can be tested is that they measure what they say.
#include "kernels/cpu/ceilings.h"

#include <gtest/gtest.h>

#include <memory>
#include <numeric>
#include <random>

#include "kernels/cpu/memory.h"

namespace osdn::kernels::cpu {
namespace {

TEST(CeilingsTest, EveryWordIsRead) {
  const absl::StatusOr<Buffer> buffer = AllocateZeroed(4096 * sizeof(uint64_t));
  ASSERT_TRUE(buffer.ok()) << buffer.status();
  auto* words = static_cast<uint64_t*>(buffer->data());
  std::mt19937_64 random(std::random_device{}());
  for (int i = 0; i < 4096; ++i) words[i] = random();
  for (const int64_t count : {1024, 2048, 4096}) {
    const uint64_t sum = std::accumulate(words, words + count, uint64_t{0});
    for (const int64_t ahead : {0, 256}) {
      EXPECT_EQ(internal::SumWords(words, count, ahead), sum);
    }
  }
}

TEST(CeilingsTest, MeasuresEachLimit) {
  const absl::StatusOr<std::unique_ptr<Ceilings>> ceilings =
      Ceilings::Create({.threads = 2, .buffer_bytes = (1 << 20) + 1, .gemm_sizes = {64, 128}});
  ASSERT_TRUE(ceilings.ok()) << ceilings.status();
  EXPECT_EQ((*ceilings)->threads(), 2);
  EXPECT_EQ((*ceilings)->buffer_bytes(), 1U << 20) << "whole pieces only";
  EXPECT_GT((*ceilings)->ReadBandwidth(), 0);
  EXPECT_GT((*ceilings)->UpdateBandwidth(), 0);
  for (int i = 0; i < 2; ++i) {
    const absl::StatusOr<double> peak = (*ceilings)->GemmPeak(DType::kF32);
    ASSERT_TRUE(peak.ok()) << peak.status();
    EXPECT_GT(*peak, 0);
  }
}

}  // namespace
}  // namespace osdn::kernels::cpu
