// From a BatchView to the flat arrays of the CUDA kernels, and the buckets of decode rows.
#include "kernels/cuda/batch_plan.h"

#include <vector>

#include "gtest/gtest.h"

namespace osdn::kernels::cuda {
namespace {

TEST(PlanBatchTest, DecodeRowsKeepTheirSlots) {
  const std::vector<SequenceSpan> spans = {{0, 1, 7, 4}, {1, 1, 1'000'000, 0}, {2, 1, 0, -1}};
  const BatchPlan plan = PlanBatch({3, 3, spans});
  EXPECT_EQ(plan.rows, 3);
  EXPECT_EQ(plan.decode_slots, (std::vector<int32_t>{4, 0, -1}));
  EXPECT_TRUE(plan.spans.empty());
  EXPECT_TRUE(plan.chunks.empty());
}

TEST(PlanBatchTest, SpansAreCutAtAbsoluteMultiplesOfTheChunk) {
  // One decode row, then a span from 61 to 191 and one of three tokens at 128.
  const std::vector<SequenceSpan> spans = {{0, 1, 9, 2}, {1, 130, 61, 5}, {131, 3, 128, 1}};
  const BatchPlan plan = PlanBatch({134, 1, spans});
  EXPECT_EQ(plan.decode_slots, std::vector<int32_t>{2});
  ASSERT_EQ(plan.spans.size(), 2U);
  EXPECT_EQ(plan.spans[0].row, 1);
  EXPECT_EQ(plan.spans[0].length, 130);
  EXPECT_EQ(plan.spans[0].slot, 5);
  EXPECT_EQ(plan.spans[0].first_chunk, 0);
  EXPECT_EQ(plan.spans[0].chunks, 3);
  EXPECT_EQ(plan.spans[1].first_chunk, 3);
  EXPECT_EQ(plan.spans[1].chunks, 1);
  ASSERT_EQ(plan.chunks.size(), 4U);
  const int32_t rows[] = {3, 64, 63, 3};
  int32_t row = 1;
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(plan.chunks[i].row, row) << i;
    EXPECT_EQ(plan.chunks[i].rows, rows[i]) << i;
    EXPECT_EQ(plan.chunks[i].span, i < 3 ? 0 : 1) << i;
    row += rows[i];
  }
}

TEST(PlanBatchTest, EveryRowOfEverySpanIsInOneChunk) {
  for (int64_t position = 0; position < 130; ++position) {
    for (const int64_t length : {1, 2, 63, 64, 65, 128, 129, 300}) {
      const SequenceSpan span = {0, length, position, 0};
      const BatchPlan plan = PlanBatch({length, 0, {&span, 1}});
      int64_t next = 0;
      for (const ChunkPlan& chunk : plan.chunks) {
        ASSERT_EQ(chunk.row, next);
        ASSERT_GE(chunk.rows, 1);
        // Within one absolute chunk.
        ASSERT_EQ((position + chunk.row) / kChunk,
                  (position + chunk.row + chunk.rows - 1) / kChunk);
        next += chunk.rows;
      }
      ASSERT_EQ(next, length);
    }
  }
}

TEST(DecodeBucketTest, HoldsTheRowsAndWastesLittle) {
  int64_t last = 0;
  int buckets = 0;
  for (int64_t rows = 1; rows <= 512; ++rows) {
    const int64_t bucket = DecodeBucket(rows);
    ASSERT_GE(bucket, rows);
    ASSERT_GE(bucket, last);
    ASSERT_LE(bucket, rows + 63);
    ASSERT_EQ(DecodeBucket(bucket), bucket);
    if (bucket != last) ++buckets;
    last = bucket;
  }
  EXPECT_EQ(last, 512);
  EXPECT_LE(buckets, 24);
  EXPECT_EQ(DecodeBucket(1), 1);
  EXPECT_EQ(DecodeBucket(3), 4);
  EXPECT_EQ(DecodeBucket(9), 16);
  EXPECT_EQ(DecodeBucket(65), 80);
}

}  // namespace
}  // namespace osdn::kernels::cuda
