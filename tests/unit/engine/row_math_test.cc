#include "engine/row_math.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

namespace osdn {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLargest = std::numeric_limits<float>::max();

TEST(AllFiniteTest, AnyNumberIs) {
  for (const size_t size : {0, 1, 3, 16, 17, 100, 1000}) {
    std::vector<float> row(size, -kLargest);
    EXPECT_TRUE(row_math::AllFinite(row)) << size;
    if (size > 0) row.back() = kLargest;
    if (size > 1) row.front() = std::numeric_limits<float>::denorm_min();
    EXPECT_TRUE(row_math::AllFinite(row)) << size;
  }
}

TEST(AllFiniteTest, OneBadElementIsFoundAtEveryPlace) {
  for (const size_t size : {1, 3, 16, 17, 67}) {
    for (size_t place = 0; place < size; ++place) {
      for (const float bad : {kInfinity, -kInfinity, std::numeric_limits<float>::quiet_NaN(),
                              -std::numeric_limits<float>::quiet_NaN()}) {
        std::vector<float> row(size, 1.0F);
        row[place] = bad;
        EXPECT_FALSE(row_math::AllFinite(row)) << size << " " << place << " " << bad;
      }
    }
  }
}

}  // namespace
}  // namespace osdn
