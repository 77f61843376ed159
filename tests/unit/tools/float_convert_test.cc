#include "tools/float_convert.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

namespace osdn::tools {
namespace {

float FromBits(uint32_t bits) { return std::bit_cast<float>(bits); }

TEST(Bf16FromFloatTest, ExactValuesStay) {
  for (uint32_t bits = 0; bits <= 0xFFFF; ++bits) {
    const float value = FloatFromBf16(static_cast<uint16_t>(bits));
    if (std::isnan(value)) continue;
    EXPECT_EQ(Bf16FromFloat(value), bits);
  }
}

TEST(Bf16FromFloatTest, TiesGoToEven) {
  EXPECT_EQ(Bf16FromFloat(FromBits(0x3F808000)), 0x3F80);  // half way, even below
  EXPECT_EQ(Bf16FromFloat(FromBits(0x3F818000)), 0x3F82);  // half way, odd below
  EXPECT_EQ(Bf16FromFloat(FromBits(0x3F808001)), 0x3F81);
  EXPECT_EQ(Bf16FromFloat(FromBits(0x3F807FFF)), 0x3F80);
  EXPECT_EQ(Bf16FromFloat(FromBits(0xBF818000)), 0xBF82);
  EXPECT_EQ(Bf16FromFloat(FromBits(0x3FFF8000)), 0x4000);  // carries into the exponent
}

TEST(Bf16FromFloatTest, SpecialValues) {
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(Bf16FromFloat(infinity), 0x7F80);
  EXPECT_EQ(Bf16FromFloat(-infinity), 0xFF80);
  EXPECT_EQ(Bf16FromFloat(0.0F), 0x0000);
  EXPECT_EQ(Bf16FromFloat(-0.0F), 0x8000);
  EXPECT_EQ(Bf16FromFloat(std::numeric_limits<float>::max()), 0x7F80);  // beyond the largest bf16
  EXPECT_EQ(Bf16FromFloat(FromBits(0x7F7F7FFF)), 0x7F7F);               // still rounds down to it
  // A NaN whose payload lies in the dropped bits must not turn into an infinity.
  EXPECT_TRUE(std::isnan(FloatFromBf16(Bf16FromFloat(FromBits(0x7F800001)))));
  EXPECT_TRUE(std::isnan(FloatFromBf16(Bf16FromFloat(FromBits(0xFFFFFFFF)))));
}

TEST(Bf16FromFloatTest, Subnormals) {
  EXPECT_EQ(Bf16FromFloat(FromBits(0x00000001)), 0x0000);
  EXPECT_EQ(Bf16FromFloat(FromBits(0x00010000)), 0x0001);
  EXPECT_EQ(Bf16FromFloat(FromBits(0x00018000)), 0x0002);
  EXPECT_EQ(Bf16FromFloat(FromBits(0x007FFFFF)), 0x0080);  // rounds up to the smallest normal
}

TEST(Bf16FromFloatTest, NearestOfBothNeighbours) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  for (int i = 0; i < 100000; ++i) {
    const float value = FromBits(random());
    if (!std::isfinite(value) || std::abs(value) > 3e38F) continue;
    const auto below = static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16);
    const double down = std::abs(double{value} - double{FloatFromBf16(below)});
    const double up =
        std::abs(double{value} - double{FloatFromBf16(static_cast<uint16_t>(below + 1))});
    const double got = std::abs(double{value} - double{FloatFromBf16(Bf16FromFloat(value))});
    ASSERT_EQ(got, std::min(down, up)) << value;
  }
}

TEST(FloatFromF16Test, KnownValues) {
  EXPECT_EQ(FloatFromF16(0x3C00), 1.0F);
  EXPECT_EQ(FloatFromF16(0xC000), -2.0F);
  EXPECT_EQ(FloatFromF16(0x7BFF), 65504.0F);
  EXPECT_EQ(FloatFromF16(0x0001), std::ldexp(1.0F, -24));
  EXPECT_EQ(FloatFromF16(0x03FF), std::ldexp(1023.0F, -24));
  EXPECT_EQ(FloatFromF16(0x0400), std::ldexp(1.0F, -14));
  EXPECT_EQ(FloatFromF16(0x7C00), std::numeric_limits<float>::infinity());
  EXPECT_EQ(FloatFromF16(0xFC00), -std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(FloatFromF16(0x7C01)));
  EXPECT_TRUE(std::signbit(FloatFromF16(0x8000)));
}

// Every finite half is 2^(e-25) * m with integers e and m; the formula is another one than the
// code's.
TEST(FloatFromF16Test, AllFiniteValues) {
  for (uint32_t bits = 0; bits < 0x7C00; ++bits) {
    const int exponent = static_cast<int>(bits >> 10);
    const auto mantissa = static_cast<double>(bits & 0x3FF) + (exponent == 0 ? 0 : 1024);
    const double expected = mantissa * std::pow(2.0, std::max(exponent, 1) - 25);
    ASSERT_EQ(double{FloatFromF16(static_cast<uint16_t>(bits))}, expected) << bits;
    ASSERT_EQ(double{FloatFromF16(static_cast<uint16_t>(bits | 0x8000))}, -expected) << bits;
  }
}

std::vector<std::byte> Bytes(const std::vector<float>& values) {
  std::vector<std::byte> bytes(values.size() * sizeof(float));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

TEST(ConvertElementsTest, ReportsTheFirstElementThatIsNotFinite) {
  std::vector<std::byte> out;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<std::byte> bad = Bytes({1, 2, nan, nan});
  EXPECT_EQ(ConvertElements(bad, SourceDType::kF32, kernels::DType::kF32, &out), 2U);
  EXPECT_EQ(ConvertElements(bad, SourceDType::kF32, kernels::DType::kBF16, &out), 2U);
  // Finite as float32, not as bf16.
  const std::vector<std::byte> large = Bytes({1, std::numeric_limits<float>::max()});
  EXPECT_EQ(ConvertElements(large, SourceDType::kF32, kernels::DType::kF32, &out), std::nullopt);
  EXPECT_EQ(ConvertElements(large, SourceDType::kF32, kernels::DType::kBF16, &out), 1U);
}

TEST(ConvertElementsTest, UnalignedSourceAndSizes) {
  std::vector<std::byte> shifted = {std::byte{0}};
  const std::vector<std::byte> values = Bytes({1.0F, -2.5F, 3.0F});
  shifted.insert(shifted.end(), values.begin(), values.end());
  std::vector<std::byte> out;
  const auto source = absl::MakeConstSpan(shifted).subspan(1);
  EXPECT_EQ(ConvertElements(source, SourceDType::kF32, kernels::DType::kBF16, &out), std::nullopt);
  ASSERT_EQ(out.size(), 6U);
  uint16_t second = 0;
  std::memcpy(&second, out.data() + 2, sizeof(second));
  EXPECT_EQ(FloatFromBf16(second), -2.5F);
}

}  // namespace
}  // namespace osdn::tools
