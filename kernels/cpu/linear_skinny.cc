#include "kernels/cpu/linear_skinny.h"

#include "kernels/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/linear_skinny.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// After foreach_target.h
#include "hwy/cache_control.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace osdn::kernels::cpu {
namespace HWY_NAMESPACE {

// Accumulators of one dot product: two hide enough of the FMA latency, since neighbouring outputs
// overlap, and leave registers for tiles.
inline constexpr int kAccumulators = 2;
inline constexpr int kMaxRowTile = 4;
// Outputs a tile computes at once when rows abound, to load x less often. One weight row at a time
// otherwise: a single sequential stream is what memory is fast at.
inline constexpr int kOutTile = HWY_TARGET == HWY_AVX2 ? 1 : 3;
// How far ahead a single stream is prefetched when several rows of x slow it down: the hardware's
// prefetcher keeps memory busy for one row of x only.
inline constexpr int64_t kPrefetchRows = 4;
inline constexpr int64_t kLineBytes = 64;
inline constexpr int64_t kManyRows = 5;

// acc[o * kRows + r] += x[r][i ...] * w[o][i ...], one vector.
template <int kRows, int kOuts, typename T, int kPadded>
HWY_INLINE void DotStep(const float* const* x, const T* w, int64_t in, int64_t i,
                        VF (&acc)[kPadded]) {
  VF wide[kOuts];
  OSDN_UNROLL for (int o = 0; o < kOuts; ++o) wide[o] = LoadWide(w + o * in + i);
  OSDN_UNROLL for (int r = 0; r < kRows; ++r) {
    const VF xv = hn::LoadU(DF(), x[r] + i);
    OSDN_UNROLL for (int o = 0; o < kOuts; ++o) {
      acc[o * kRows + r] = hn::MulAdd(wide[o], xv, acc[o * kRows + r]);
    }
  }
}

// Prefetches what the next tile will read of its weights at step i: memory works while this tile
// computes.
template <int kOuts, typename T>
HWY_INLINE void PrefetchStep(const T* w, int64_t in, int64_t i) {
  constexpr int64_t kStepBytes = kAccumulators * kLanes * sizeof(T);
  OSDN_UNROLL for (int o = 0; o < kOuts; ++o) {
    const char* next = reinterpret_cast<const char*>(w + (kOuts + o) * in + i);
    OSDN_UNROLL for (int64_t b = 0; b < kStepBytes; b += kLineBytes) hwy::Prefetch(next + b);
  }
}

// Prefetches one whole weight row in the order of addresses.
template <typename T>
HWY_INLINE void PrefetchRow(const T* row, int64_t in) {
  const char* bytes = reinterpret_cast<const char*>(row);
  const int64_t count = in * static_cast<int64_t>(sizeof(T));
  for (int64_t i = 0; i < count; i += kLineBytes) hwy::Prefetch(bytes + i);
}

// sums[o * kRows + r] = dot(x[r], w + o * in)
template <int kRows, int kOuts, typename T>
HWY_INLINE void DotTile(const float* const* x, const T* w, int64_t in, float* HWY_RESTRICT sums) {
  constexpr int kDots = kRows * kOuts;
  constexpr int kPadded = (kDots + 3) / 4 * 4;
  const DF d;
  VF acc[kAccumulators][kPadded];
  OSDN_UNROLL for (int a = 0; a < kAccumulators; ++a) {
    OSDN_UNROLL for (int i = 0; i < kPadded; ++i) acc[a][i] = hn::Zero(d);
  }
  int64_t i = 0;
  for (; i + kAccumulators * kLanes <= in; i += kAccumulators * kLanes) {
    if constexpr (kOuts > 1) PrefetchStep<kOuts>(w, in, i);
    OSDN_UNROLL for (int a = 0; a < kAccumulators; ++a) {
      DotStep<kRows, kOuts>(x, w, in, i + a * kLanes, acc[a]);
    }
  }
  if (i + kLanes <= in) {
    DotStep<kRows, kOuts>(x, w, in, i, acc[0]);
    i += kLanes;
  }
  OSDN_UNROLL for (int k = 0; k < kPadded; k += 4) {
    SumFour(hn::Add(acc[0][k], acc[1][k]), hn::Add(acc[0][k + 1], acc[1][k + 1]),
            hn::Add(acc[0][k + 2], acc[1][k + 2]), hn::Add(acc[0][k + 3], acc[1][k + 3]), sums + k);
  }
  for (; i < in; ++i) {
    for (int k = 0; k < kDots; ++k) sums[k] += x[k % kRows][i] * WidenScalar(w[k / kRows * in + i]);
  }
}

template <int kRows, int kOuts, typename T>
HWY_INLINE void StoreTile(const SkinnyProduct& p, int64_t first_row, int64_t out) {
  const float* x[kRows];
  for (int r = 0; r < kRows; ++r) x[r] = p.x + p.rows[first_row + r] * p.in_features;
  float sums[(kRows * kOuts + 3) / 4 * 4];
  DotTile<kRows, kOuts>(x, static_cast<const T*>(p.weight) + out * p.in_features, p.in_features,
                        sums);
  for (int r = 0; r < kRows; ++r) {
    float* y = p.y + p.rows[first_row + r] * p.out_features + out;
    for (int o = 0; o < kOuts; ++o) {
      const float sum = sums[o * kRows + r];
      y[o] = p.accumulate ? y[o] + sum : sum;
    }
  }
}

// All rows for outputs [out, out + kOuts).
template <int kOuts, typename T>
HWY_INLINE void AllRows(const SkinnyProduct& p, int64_t out) {
  const auto rows = static_cast<int64_t>(p.rows.size());
  int64_t r = 0;
  for (; r + kMaxRowTile <= rows; r += kMaxRowTile) StoreTile<kMaxRowTile, kOuts, T>(p, r, out);
  switch (rows - r) {
    case 3:
      return StoreTile<3, kOuts, T>(p, r, out);
    case 2:
      return StoreTile<2, kOuts, T>(p, r, out);
    case 1:
      return StoreTile<1, kOuts, T>(p, r, out);
    default:
      return;
  }
}

template <typename T>
void MultiplyAs(const SkinnyProduct& p, int64_t begin, int64_t end) {
  int64_t out = begin;
  if (static_cast<int64_t>(p.rows.size()) >= kManyRows) {
    for (; out + kOutTile <= end; out += kOutTile) AllRows<kOutTile, T>(p, out);
  }
  const T* weight = static_cast<const T*>(p.weight);
  for (; out < end; ++out) {
    if (p.rows.size() > 1)
      PrefetchRow(weight + (out + kPrefetchRows) * p.in_features, p.in_features);
    AllRows<1, T>(p, out);
  }
}

void MultiplySkinnyImpl(const SkinnyProduct& product, int64_t begin, int64_t end) {
  if (product.dtype == DType::kBF16) {
    MultiplyAs<hwy::bfloat16_t>(product, begin, end);
  } else {
    MultiplyAs<float>(product, begin, end);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace osdn::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace osdn::kernels::cpu {

HWY_EXPORT(MultiplySkinnyImpl);

void MultiplySkinny(const SkinnyProduct& product, int64_t begin, int64_t end) {
  HWY_DYNAMIC_DISPATCH(MultiplySkinnyImpl)(product, begin, end);
}

}  // namespace osdn::kernels::cpu
#endif  // HWY_ONCE
