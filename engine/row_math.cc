#include "engine/row_math.h"

#include <algorithm>
#include <cmath>
#include <limits>

// SSE4 and below have no server that matters; a baseline remains for every CPU.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/row_math.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// After foreach_target.h
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace osdn::row_math {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using DF = hn::ScalableTag<float>;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

HWY_ATTR void FindPeakRow(const float* x, size_t n, float* value, bool* invalid) {
  const DF d;
  const size_t lanes = hn::Lanes(d);
  const auto infinity = hn::Set(d, kInfinity);
  auto peak = hn::Set(d, -kInfinity);
  auto sound = hn::Lt(hn::Zero(d), infinity);  // NaN compares false
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto v = hn::LoadU(d, x + i);
    peak = hn::Max(peak, v);
    sound = hn::And(sound, hn::Lt(v, infinity));
  }
  *invalid = !hn::AllTrue(d, sound);
  *value = hn::GetLane(hn::MaxOfLanes(d, peak));
  for (; i < n; ++i) {
    *invalid = *invalid || !(x[i] < kInfinity);
    *value = std::max(*value, x[i]);
  }
}

HWY_ATTR bool AllFiniteRow(const float* x, size_t n) {
  const DF d;
  const size_t lanes = hn::Lanes(d);
  const auto infinity = hn::Set(d, kInfinity);
  auto sound = hn::Lt(hn::Zero(d), infinity);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    sound = hn::And(sound, hn::Lt(hn::Abs(hn::LoadU(d, x + i)), infinity));
  }
  bool finite = hn::AllTrue(d, sound);
  for (; i < n; ++i) finite = finite && std::abs(x[i]) < kInfinity;
  return finite;
}

HWY_ATTR size_t FirstEqual(const float* x, size_t n, float value) {
  const DF d;
  const size_t lanes = hn::Lanes(d);
  const auto wanted = hn::Set(d, value);
  size_t i = 0;
  while (i + lanes <= n && hn::AllFalse(d, hn::Eq(hn::LoadU(d, x + i), wanted))) i += lanes;
  while (i < n && x[i] != value) ++i;
  return i;
}

// exp((x - peak) / temperature) of one block to `weights` (or nowhere); returns the sum.
template <bool kStore>
HWY_INLINE double ExpBlock(const float* x, size_t n, float peak, float temperature,
                           float* weights) {
  const DF d;
  const size_t lanes = hn::Lanes(d);
  const auto top = hn::Set(d, peak);
  const auto divisor = hn::Set(d, temperature);
  const auto weight = [&](hn::Vec<DF> v)
                          HWY_ATTR { return hn::Exp(d, hn::Div(hn::Sub(v, top), divisor)); };
  auto sum = hn::Zero(d);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto w = weight(hn::LoadU(d, x + i));
    if constexpr (kStore) hn::StoreU(w, d, weights + i);
    sum = hn::Add(sum, w);
  }
  if (i < n) {
    HWY_ALIGN float tail[HWY_MAX_BYTES / sizeof(float)];
    std::fill(tail, tail + lanes, -kInfinity);
    std::copy(x + i, x + n, tail);
    const auto w = weight(hn::Load(d, tail));
    sum = hn::Add(sum, w);
    hn::Store(w, d, tail);
    if constexpr (kStore) std::copy(tail, tail + (n - i), weights + i);
  }
  return static_cast<double>(hn::GetLane(hn::SumOfLanes(d, sum)));
}

HWY_ATTR double ExpRow(const float* x, size_t n, float peak, float temperature, float* weights,
                       double* block_sums) {
  double total = 0.0;
  for (size_t i = 0; i < n; i += kBlock) {
    const size_t count = std::min<size_t>(kBlock, n - i);
    const double sum = ExpBlock<true>(x + i, count, peak, temperature, weights + i);
    block_sums[i / kBlock] = sum;
    total += sum;
  }
  return total;
}

HWY_ATTR double SumExpRow(const float* x, size_t n, float peak) {
  double total = 0.0;
  for (size_t i = 0; i < n; i += kBlock) {
    total += ExpBlock<false>(x + i, std::min<size_t>(kBlock, n - i), peak, 1.0F, nullptr);
  }
  return total;
}

}  // namespace HWY_NAMESPACE
}  // namespace osdn::row_math
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace osdn::row_math {

HWY_EXPORT(FindPeakRow);
HWY_EXPORT(AllFiniteRow);
HWY_EXPORT(FirstEqual);
HWY_EXPORT(ExpRow);
HWY_EXPORT(SumExpRow);

Peak FindPeak(absl::Span<const float> x) {
  Peak peak{-std::numeric_limits<float>::infinity(), -1, false};
  HWY_DYNAMIC_DISPATCH(FindPeakRow)(x.data(), x.size(), &peak.value, &peak.invalid);
  if (peak.invalid || !(peak.value > -std::numeric_limits<float>::infinity())) return peak;
  peak.index =
      static_cast<int64_t>(HWY_DYNAMIC_DISPATCH(FirstEqual)(x.data(), x.size(), peak.value));
  return peak;
}

bool AllFinite(absl::Span<const float> x) {
  return HWY_DYNAMIC_DISPATCH(AllFiniteRow)(x.data(), x.size());
}

double ExpWeights(absl::Span<const float> x, float peak, float temperature,
                  absl::Span<float> weights, absl::Span<double> block_sums) {
  return HWY_DYNAMIC_DISPATCH(ExpRow)(x.data(), x.size(), peak, temperature, weights.data(),
                                      block_sums.data());
}

double LogSumExp(absl::Span<const float> x, float peak) {
  return std::log(HWY_DYNAMIC_DISPATCH(SumExpRow)(x.data(), x.size(), peak)) +
         static_cast<double>(peak);
}

void ApplyBitmask(absl::Span<const uint32_t> allowed, absl::Span<float> x) {
  constexpr size_t kBits = 32;
  for (size_t begin = 0; begin < x.size(); begin += kBits) {
    const uint32_t word = allowed[begin / kBits];
    if (word == ~uint32_t{0}) continue;
    const size_t end = std::min(begin + kBits, x.size());
    if (word == 0) {
      std::fill(x.begin() + static_cast<ptrdiff_t>(begin), x.begin() + static_cast<ptrdiff_t>(end),
                -std::numeric_limits<float>::infinity());
      continue;
    }
    for (size_t i = begin; i < end; ++i) {
      if ((word >> (i - begin) & 1U) == 0) x[i] = -std::numeric_limits<float>::infinity();
    }
  }
}

}  // namespace osdn::row_math
#endif  // HWY_ONCE
