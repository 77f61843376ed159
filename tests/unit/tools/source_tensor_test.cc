#include "tools/source_tensor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <numeric>

#include "tests/unit/tools/checkpoint_fixture.h"

namespace osdn::tools {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// The numbers 0, 1, 2, ... as float32.
class SourceTensorTest : public testing::Test {
 protected:
  SourceTensorTest() {
    std::iota(numbers_.begin(), numbers_.end(), 0.0F);
    storage_ = absl::MakeConstSpan(reinterpret_cast<const std::byte*>(numbers_.data()),
                                   numbers_.size() * sizeof(float));
  }

  SourceTensor Strided(std::vector<int64_t> shape, std::vector<int64_t> strides, int64_t offset) {
    absl::StatusOr<SourceTensor> tensor =
        StridedTensor("F32", std::move(shape), std::move(strides), offset, storage_);
    EXPECT_TRUE(tensor.ok()) << tensor.status();
    return *tensor;
  }

  std::vector<float> numbers_ = std::vector<float>(24);
  absl::Span<const std::byte> storage_;
};

TEST_F(SourceTensorTest, StridesAndOffsets) {
  EXPECT_THAT(FloatsOf(Strided({2, 3}, {3, 1}, 4)), ElementsAre(4, 5, 6, 7, 8, 9));
  EXPECT_THAT(FloatsOf(Strided({2, 3}, {1, 2}, 0)), ElementsAre(0, 2, 4, 1, 3, 5));
  EXPECT_THAT(FloatsOf(Strided({2, 2}, {0, 1}, 7)), ElementsAre(7, 8, 7, 8));  // expand()
  EXPECT_THAT(FloatsOf(Strided({2, 1, 2}, {10, 99, 1}, 3)), ElementsAre(3, 4, 13, 14));
  EXPECT_THAT(FloatsOf(Strided({3}, {10}, 3)), ElementsAre(3, 13, 23));
  EXPECT_THAT(FloatsOf(Strided({0, 3}, {3, 1}, 24)), ElementsAre());
}

TEST_F(SourceTensorTest, ViewsBeyondTheStorageAreRefused) {
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  const std::vector<std::tuple<std::vector<int64_t>, std::vector<int64_t>, int64_t>> views = {
      {{25}, {1}, 0},   {{24}, {1}, 1},
      {{2}, {24}, 0},   {{2}, {-1}, 5},
      {{-1}, {1}, 0},   {{1}, {1}, -1},
      {{1}, {1}, kMax}, {{2, 2}, {kMax, kMax}, 0},
      {{kMax}, {1}, 0}, {{kMax, kMax}, {0, 0}, 0},
      {{2, 2}, {1}, 0}, {{3}, {kMax / 2}, 0},
  };
  for (const auto& [shape, strides, offset] : views) {
    const auto status = StridedTensor("F32", shape, strides, offset, storage_).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument)
        << ShapeText(shape) << ShapeText(strides) << offset;
  }
  EXPECT_FALSE(StridedTensor("complex64", {1}, {1}, 0, storage_).ok());
}

TEST_F(SourceTensorTest, CutsTurnsAndJoins) {
  const SourceTensor matrix = Strided({4, 3}, {3, 1}, 0);
  EXPECT_THAT(FloatsOf(*Transpose(matrix)), ElementsAre(0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11));
  EXPECT_THAT(FloatsOf(*Narrow(matrix, 0, 1, 2)), ElementsAre(3, 4, 5, 6, 7, 8));
  EXPECT_THAT(FloatsOf(*Narrow(matrix, 1, 1, 1)), ElementsAre(1, 4, 7, 10));
  // Rows 2, 3 before rows 0, 1; then the middle of that; then turned.
  const SourceTensor parts[] = {*Narrow(matrix, 0, 2, 2), *Narrow(matrix, 0, 0, 2)};
  const absl::StatusOr<SourceTensor> joined = Concatenate(parts, 0);
  ASSERT_TRUE(joined.ok()) << joined.status();
  EXPECT_TRUE(CheckPieces(*joined).ok());
  EXPECT_THAT(FloatsOf(*joined), ElementsAre(6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4, 5));
  const absl::StatusOr<SourceTensor> middle = Narrow(*joined, 0, 1, 2);
  EXPECT_THAT(FloatsOf(*middle), ElementsAre(9, 10, 11, 0, 1, 2));
  EXPECT_THAT(FloatsOf(*Transpose(*middle)), ElementsAre(9, 0, 10, 1, 11, 2));
  const SourceTensor columns[] = {*Narrow(matrix, 1, 2, 1), *Narrow(matrix, 1, 0, 2)};
  EXPECT_THAT(FloatsOf(*Concatenate(columns, 1)),
              ElementsAre(2, 0, 1, 5, 3, 4, 8, 6, 7, 11, 9, 10));

  EXPECT_THAT(std::string(Transpose(Strided({3}, {1}, 0)).status().message()), HasSubstr("[3]"));
  EXPECT_FALSE(Narrow(matrix, 2, 0, 1).ok());
  EXPECT_FALSE(Narrow(matrix, 0, 3, 2).ok());
  EXPECT_FALSE(Narrow(matrix, 0, -1, 2).ok());
  const SourceTensor unequal[] = {matrix, *Transpose(matrix)};
  EXPECT_FALSE(Concatenate(unequal, 0).ok());
  EXPECT_FALSE(Concatenate({}, 0).ok());
}

TEST_F(SourceTensorTest, UnitDimensionsComeAndGo) {
  const SourceTensor matrix = Strided({2, 3}, {1, 2}, 0);
  const absl::StatusOr<SourceTensor> wide = ReshapeUnits(matrix, {2, 1, 3});
  ASSERT_TRUE(wide.ok()) << wide.status();
  EXPECT_EQ(FloatsOf(*wide), FloatsOf(matrix));
  EXPECT_EQ(FloatsOf(*ReshapeUnits(*wide, {1, 2, 3, 1})), FloatsOf(matrix));
  EXPECT_FALSE(ReshapeUnits(matrix, {3, 2}).ok());
  EXPECT_FALSE(ReshapeUnits(matrix, {2}).ok());
  EXPECT_FALSE(ReshapeUnits(matrix, {2, 3, 2}).ok());
}

TEST_F(SourceTensorTest, PiecesMustCoverOnce) {
  const SourceTensor half = Strided({2, 3}, {3, 1}, 0);
  SourceTensor tensor{"F32", {4, 3}, {half.pieces[0], half.pieces[0]}};
  EXPECT_THAT(std::string(CheckPieces(tensor).message()), HasSubstr("overlap"));
  tensor.pieces[1].offset = {2, 0};
  EXPECT_TRUE(CheckPieces(tensor).ok());
  tensor.pieces[1].offset = {3, 0};
  EXPECT_THAT(std::string(CheckPieces(tensor).message()), HasSubstr("does not lie in"));
  tensor.pieces.pop_back();
  EXPECT_THAT(std::string(CheckPieces(tensor).message()), HasSubstr("6 of the 12"));
}

TEST_F(SourceTensorTest, RowsAreReadAlone) {
  const SourceTensor turned = *Transpose(Strided({3, 4}, {4, 1}, 0));
  std::vector<float> rows(6);
  ReadRows(turned, 1, absl::MakeSpan(rows));
  EXPECT_THAT(rows, ElementsAre(1, 5, 9, 2, 6, 10));
}

TEST_F(SourceTensorTest, HalvesAreWidened) {
  const uint16_t bits[] = {0x3F80, 0xC000, 0x3C00, 0x4000};  // 1 and -2 as bf16, 1 and 2 as f16
  const auto bytes = absl::MakeConstSpan(reinterpret_cast<const std::byte*>(bits), sizeof(bits));
  EXPECT_THAT(FloatsOf(WholeTensor("BF16", {2}, bytes.first(4))), ElementsAre(1, -2));
  EXPECT_THAT(FloatsOf(*StridedTensor("F16", {2}, {1}, 2, bytes)), ElementsAre(1, 2));
  EXPECT_THAT(FloatsOf(*StridedTensor("BF16", {2}, {0}, 1, bytes)), ElementsAre(-2, -2));
}

TEST_F(SourceTensorTest, SameElementsWhereverTheyLie) {
  const SourceTensor matrix = Strided({2, 3}, {3, 1}, 0);
  EXPECT_TRUE(SameElements(matrix, *Transpose(*Transpose(matrix))));
  EXPECT_FALSE(SameElements(matrix, Strided({2, 3}, {3, 1}, 1)));
  EXPECT_FALSE(SameElements(matrix, Strided({3, 2}, {2, 1}, 0)));
}

}  // namespace
}  // namespace osdn::tools
