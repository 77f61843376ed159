#include "tools/weight_encoding.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "tools/float_convert.h"

namespace osdn::tools {
namespace {

using kernels::DType;

constexpr DType kAllTypes[] = {DType::kF32, DType::kBF16, DType::kI8, DType::kI4};

std::vector<float> RandomRows(int64_t rows, int64_t columns) {
  std::mt19937 random(std::random_device{}());
  std::normal_distribution<float> normal(0, 0.02F);
  std::vector<float> values(static_cast<size_t>(rows * columns));
  for (float& value : values) value = normal(random);
  return values;
}

struct Coded {
  EncodedRows rows;
  RoundingError error;
  std::vector<float> decoded;
};

kernels::HostTensor View(const EncodedRows& rows, DType dtype, int64_t count, int64_t columns) {
  return {rows.data.data(), dtype, {count, columns}, rows.scales.data()};
}

Coded Code(const std::vector<float>& values, int64_t columns, DType dtype) {
  Coded coded;
  EXPECT_EQ(EncodeRows(values, columns, dtype, &coded.rows, &coded.error), std::nullopt);
  coded.decoded.resize(values.size());
  const int64_t count = static_cast<int64_t>(values.size()) / columns;
  DecodeRows(View(coded.rows, dtype, count, columns), 0, absl::MakeSpan(coded.decoded));
  return coded;
}

// Odd sizes: half bytes, short last groups, columns below a vector.
class ShapeTest : public testing::TestWithParam<std::pair<int64_t, int64_t>> {};

TEST_P(ShapeTest, DecodesToWhatTheErrorSays) {
  const auto [rows, columns] = GetParam();
  const std::vector<float> values = RandomRows(rows, columns);
  for (const DType dtype : kAllTypes) {
    SCOPED_TRACE(kernels::DTypeName(dtype));
    const Coded coded = Code(values, columns, dtype);
    EXPECT_EQ(coded.rows.data.size(),
              static_cast<size_t>(rows * kernels::RowBytes(dtype, columns)));
    double error = 0;
    double signal = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      error += std::pow(static_cast<double>(coded.decoded[i]) - values[i], 2);
      signal += std::pow(static_cast<double>(values[i]), 2);
    }
    if (dtype == DType::kF32) {
      EXPECT_EQ(coded.decoded, values);
      continue;
    }
    EXPECT_NEAR(coded.error.error, error, 1e-4 * error + 1e-20);
    EXPECT_NEAR(coded.error.signal, signal, 1e-9 * signal);
    // A third of what a normal distribution loses by 8 bits a row and 4 bits a group, and above.
    const double bound = dtype == DType::kBF16 ? 0.003 : dtype == DType::kI8 ? 0.012 : 0.11;
    EXPECT_LT(coded.error.relative_rms(), bound);
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, ShapeTest,
                         testing::Values(std::pair(1, 1), std::pair(3, 7), std::pair(5, 32),
                                         std::pair(2, 33), std::pair(130, 257),
                                         std::pair(64, 1024)));

// The search is worth its time: never worse than giving the largest weight the largest code, and
// clearly better for int4.
TEST(EncodeRowsTest, BeatsPlainAbsMax) {
  constexpr int64_t kColumns = 256;
  const std::vector<float> values = RandomRows(64, kColumns);
  for (const DType dtype : {DType::kI8, DType::kI4}) {
    const int64_t group = dtype == DType::kI8 ? kColumns : kernels::kInt4Group;
    const float limit = dtype == DType::kI8 ? 127 : 7;
    double plain = 0;
    for (size_t begin = 0; begin < values.size(); begin += static_cast<size_t>(group)) {
      float largest = 0;
      for (int64_t i = 0; i < group; ++i) {
        largest = std::max(largest, std::fabs(values[begin + static_cast<size_t>(i)]));
      }
      const float scale = largest / limit;
      for (int64_t i = 0; i < group; ++i) {
        const float value = values[begin + static_cast<size_t>(i)];
        plain += std::pow(value - std::nearbyint(value / scale) * scale, 2.0);
      }
    }
    const double searched = Code(values, kColumns, dtype).error.error;
    EXPECT_LT(searched, plain * (dtype == DType::kI4 ? 0.95 : 1.000001));
  }
}

TEST(EncodeRowsTest, CodesStayInTheFormatsRange) {
  std::vector<float> values = RandomRows(8, 96);
  values[5] = 3;  // outliers, which the search clips or not
  values[700] = -1e30F;
  const Coded eight = Code(values, 96, DType::kI8);
  for (const std::byte byte : eight.rows.data) EXPECT_NE(static_cast<int8_t>(byte), -128);
  const Coded four = Code(values, 96, DType::kI4);
  for (const std::byte byte : four.rows.data) {
    EXPECT_NE(static_cast<int>(byte) & 0x0F, 0);
    EXPECT_NE(static_cast<int>(byte) & 0xF0, 0);
  }
  for (const float value : four.decoded) EXPECT_TRUE(std::isfinite(value));
}

TEST(EncodeRowsTest, ZeroAndTinyRowsAreZero) {
  for (const DType dtype : {DType::kI8, DType::kI4}) {
    for (const float value : {0.0F, 1e-42F, -std::numeric_limits<float>::denorm_min()}) {
      const Coded coded = Code(std::vector<float>(66, value), 33, dtype);
      for (const float decoded : coded.decoded) EXPECT_EQ(decoded, 0);
      EXPECT_TRUE(std::isfinite(coded.error.relative_rms()));
    }
  }
}

TEST(EncodeRowsTest, LargeValuesStayFinite) {
  const float large = std::numeric_limits<float>::max() / 2;
  for (const DType dtype : {DType::kI8, DType::kI4}) {
    const Coded coded = Code(std::vector<float>(64, -large), 64, dtype);
    for (const float decoded : coded.decoded) EXPECT_NEAR(decoded / large, -1, 0.01);
    EncodedRows out;
    RoundingError error;
    const std::vector<float> larger(64, std::numeric_limits<float>::max());
    EXPECT_EQ(EncodeRows(larger, 64, dtype, &out, &error), 0U);
  }
}

TEST(EncodeRowsTest, ReportsTheFirstValueThatIsNotFinite) {
  EncodedRows out;
  RoundingError error;
  for (const DType dtype : kAllTypes) {
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
      std::vector<float> values = RandomRows(3, 40);
      values[77] = values[90] = bad;
      EXPECT_EQ(EncodeRows(values, 40, dtype, &out, &error), 77U);
    }
  }
}

// Pieces and threads must not show in the file.
TEST(EncodeRowsTest, RowsAreIndependent) {
  constexpr int64_t kColumns = 1000;
  const std::vector<float> values = RandomRows(200, kColumns);
  for (const DType dtype : {DType::kI8, DType::kI4}) {
    const Coded whole = Code(values, kColumns, dtype);
    const std::vector<float> last(values.begin() + 150 * kColumns, values.end());
    const Coded part = Code(last, kColumns, dtype);
    EXPECT_TRUE(
        std::equal(part.rows.data.rbegin(), part.rows.data.rend(), whole.rows.data.rbegin()));
    EXPECT_TRUE(
        std::equal(part.rows.scales.rbegin(), part.rows.scales.rend(), whole.rows.scales.rbegin()));
    std::vector<float> row(kColumns);
    DecodeRows(View(whole.rows, dtype, 200, kColumns), 163, absl::MakeSpan(row));
    EXPECT_TRUE(std::equal(row.begin(), row.end(), whole.decoded.begin() + 163 * kColumns));
  }
}

}  // namespace
}  // namespace osdn::tools
