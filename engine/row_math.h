// Passes over one row of logits, vectorised for the CPU at hand. Results depend on the row alone;
// between CPU generations their last bits may differ, like those of the logits themselves.
#ifndef OSDN_ENGINE_ROW_MATH_H_
#define OSDN_ENGINE_ROW_MATH_H_

#include <cstdint>

#include "absl/types/span.h"

namespace osdn::row_math {

// Sums are kept for pieces of so many elements, so that a draw need not walk the row.
inline constexpr int64_t kBlock = 256;
inline constexpr int64_t NumBlocks(int64_t n) { return (n + kBlock - 1) / kBlock; }

struct Peak {
  float value;    // the largest, unless `invalid`; -inf for an empty row
  int64_t index;  // its first place; -1 when nothing is above -inf
  bool invalid;   // some element is NaN or +inf
};
Peak FindPeak(absl::Span<const float> x);

// No element is NaN or infinite.
bool AllFinite(absl::Span<const float> x);

// weights[i] = exp((x[i] - peak) / temperature); block_sums[b] is the sum of the b-th kBlock
// weights. Returns the sum of all. x is at most `peak`; temperature is above 0.
double ExpWeights(absl::Span<const float> x, float peak, float temperature,
                  absl::Span<float> weights, absl::Span<double> block_sums);

// log(sum of exp(x[i])), `peak` being the largest.
double LogSumExp(absl::Span<const float> x, float peak);

// x[i] = -inf where bit i of `allowed` (32 a word, lowest first) is not set.
void ApplyBitmask(absl::Span<const uint32_t> allowed, absl::Span<float> x);

}  // namespace osdn::row_math

#endif  // OSDN_ENGINE_ROW_MATH_H_
