// The block of memory that a step sends to the device.
#include "kernels/cuda/step_layout.h"

#include <cstring>
#include <vector>

#include "gtest/gtest.h"

namespace osdn::kernels::cuda {
namespace {

TEST(PadDecodeBatchTest, AddsRowsWithoutASlot) {
  const std::vector<SequenceSpan> spans = {{0, 1, 5, 3}, {1, 1, 6, 0}, {2, 1, 7, 9}};
  const PaddedBatch padded = PadDecodeBatch({3, 3, spans}, 4);
  EXPECT_EQ(padded.rows, 4);
  EXPECT_EQ(padded.decode_rows, 4);
  ASSERT_EQ(padded.spans.size(), 4U);
  EXPECT_EQ(padded.spans[2].slot, 9);
  EXPECT_EQ(padded.spans[3].slot, -1);
  EXPECT_EQ(padded.spans[3].row, 3);
  EXPECT_EQ(padded.spans[3].length, 1);
  EXPECT_EQ(padded.view().spans.data(), padded.spans.data());
}

TEST(PadDecodeBatchTest, LeavesPrefillAlone) {
  const std::vector<SequenceSpan> spans = {{0, 1, 5, 3}, {1, 70, 0, 1}};
  const PaddedBatch padded = PadDecodeBatch({71, 1, spans}, 128);
  EXPECT_EQ(padded.rows, 71);
  EXPECT_EQ(padded.decode_rows, 1);
  EXPECT_EQ(padded.spans.size(), 2U);
}

TEST(PaddedRowsTest, IsTheBucketWithinTheLimit) {
  const std::vector<SequenceSpan> spans(70, SequenceSpan{0, 1, 0, 0});
  EXPECT_EQ(PaddedRows({70, 70, spans}, 512), 80);
  EXPECT_EQ(PaddedRows({70, 70, spans}, 75), 75);
  EXPECT_EQ(PaddedRows({70, 70, spans}, 70), 70);
  EXPECT_EQ(PaddedRows({70, 70, spans}, 10), 70);  // not below what is asked for
  EXPECT_EQ(PaddedRows({70, 69, spans}, 512), 70);
  EXPECT_EQ(PaddedRows({0, 0, {}}, 512), 0);
}

template <class T>
std::vector<T> Read(const std::vector<std::byte>& block, size_t offset, size_t count) {
  std::vector<T> values(count);
  std::memcpy(values.data(), block.data() + offset, count * sizeof(T));
  return values;
}

TEST(StepLayoutTest, EverythingIsWhereTheLayoutSays) {
  const std::vector<SequenceSpan> spans = {{0, 1, 5, 3}, {1, 1, 6, 8}, {2, 70, 60, 1}};
  const BatchPlan plan = PlanBatch({72, 2, spans});
  std::vector<int32_t> tokens(72);
  for (int32_t i = 0; i < 72; ++i) tokens[i] = 100 + i;
  const std::vector<int64_t> logit_rows = {0, 1, 71};
  const StepLayout layout = LayOutStep(plan, logit_rows.size());
  // A guard behind the block.
  std::vector<std::byte> block(layout.bytes + 16, std::byte{0xAB});
  WriteStep(plan, tokens, logit_rows, layout, block.data());
  for (size_t i = layout.bytes; i < block.size(); ++i) EXPECT_EQ(block[i], std::byte{0xAB});

  EXPECT_EQ(Read<int32_t>(block, layout.tokens, 72), tokens);
  EXPECT_EQ(Read<int64_t>(block, layout.logit_rows, 3), logit_rows);
  const DevicePlan view = ViewOfStep(plan, layout, block.data());
  EXPECT_EQ(view.rows, 72);
  EXPECT_EQ(view.decode_rows, 2);
  EXPECT_EQ(view.num_spans, 1);
  EXPECT_EQ(view.num_chunks, 3);
  EXPECT_EQ(view.max_chunks, 3);
  EXPECT_EQ(view.decode_slots[0], 3);
  EXPECT_EQ(view.decode_slots[1], 8);
  EXPECT_EQ(view.spans[0].row, 2);
  EXPECT_EQ(view.spans[0].length, 70);
  EXPECT_EQ(view.chunks[0].rows, 4);
  EXPECT_EQ(view.chunks[1].rows, 64);
  EXPECT_EQ(view.chunks[2].rows, 2);
  for (const size_t offset : {layout.tokens, layout.logit_rows, layout.decode_slots, layout.spans,
                              layout.chunks, layout.bytes}) {
    EXPECT_EQ(offset % 16, 0U);
  }
}

TEST(StepLayoutTest, PaddingTokensAreZeroAndTheShapeAloneSaysWhereThingsLie) {
  const std::vector<SequenceSpan> three = {{0, 1, 5, 3}, {1, 1, 6, 0}, {2, 1, 7, 9}};
  const std::vector<SequenceSpan> four = {{0, 1, 1, 1}, {1, 1, 2, 2}, {2, 1, 3, 3}, {3, 1, 4, 4}};
  const BatchPlan a = PlanBatch(PadDecodeBatch({3, 3, three}, 4).view());
  const BatchPlan b = PlanBatch({4, 4, four});
  const StepLayout layout = LayOutStep(a, 3);
  const StepLayout other = LayOutStep(b, 3);
  EXPECT_EQ(layout.tokens, other.tokens);
  EXPECT_EQ(layout.logit_rows, other.logit_rows);
  EXPECT_EQ(layout.decode_slots, other.decode_slots);
  EXPECT_EQ(layout.bytes, other.bytes);

  std::vector<std::byte> block(layout.bytes, std::byte{0xFF});
  WriteStep(a, std::vector<int32_t>{7, 8, 9}, std::vector<int64_t>{0, 1, 2}, layout, block.data());
  EXPECT_EQ(Read<int32_t>(block, layout.tokens, 4), (std::vector<int32_t>{7, 8, 9, 0}));
  EXPECT_EQ(Read<int32_t>(block, layout.decode_slots, 4), (std::vector<int32_t>{3, 0, 9, -1}));
}

}  // namespace
}  // namespace osdn::kernels::cuda
