// Panels times float32 rows on any Highway target, and the packing of rows.
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/panels/generic.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// After foreach_target.h
#include "hwy/cache_control.h"
#include "kernels/cpu/panels/kernels.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace osdn::kernels::cpu {
namespace HWY_NAMESPACE {

using DU = hn::RebindToUnsigned<DF>;
using DI = hn::RebindToSigned<DF>;
using VU = hn::Vec<DU>;

// Vectors of a block of outputs, and of the widest tile: a whole panel for one row of x, where the
// panel streams from memory; else as many as the registers hold beside kTileRows rows.
inline constexpr int kBlockVectors = kOutBlock / kLanes > 0 ? kOutBlock / kLanes : 1;
inline constexpr int kPanelVectors = kPanelOuts / kLanes;
inline constexpr bool kManyRegisters = HWY_TARGET != HWY_AVX2;
inline constexpr int kTileVectors = kLanes == 16 ? 4 : kBlockVectors;
inline constexpr int kTileRows = kManyRegisters ? 6 : 4;

// Input `kInput` of each word, as float32 (int4: without its scale).
template <DType kType, int kInput>
HWY_INLINE VF Unpack(VU word) {
  const DF d;
  const DU du;
  const DI di;
  if constexpr (kType == DType::kF32) {
    return hn::BitCast(d, word);
  } else if constexpr (kType == DType::kBF16) {
    if constexpr (kInput == 0) return hn::BitCast(d, hn::ShiftLeft<16>(word));
    return hn::BitCast(d, hn::And(word, hn::Set(du, 0xFFFF0000U)));
  } else if constexpr (kType == DType::kI8) {
    const auto top = hn::BitCast(di, hn::ShiftLeft<24 - 8 * kInput>(word));
    return hn::ConvertTo(d, hn::ShiftRight<24>(top));
  } else {
    constexpr int kShift = kInput / 2 * 4 + kInput % 2 * 16;
    const auto nibble = hn::And(hn::ShiftRight<kShift>(word), hn::Set(du, 0xFU));
    return hn::ConvertTo(d, hn::Sub(hn::BitCast(di, nibble), hn::Set(di, 8)));
  }
}

// sum[r][v] += x_r w_v over the inputs [0, kCount) of one word; recursion unrolls at compile time.
template <DType kType, int kInput, int kRows, int kVectors>
HWY_INLINE void AddWord(const VU (&word)[kVectors], const float* x, int64_t x_stride,
                        VF (&sum)[kRows][kVectors]) {
  if constexpr (kInput < InputsPerWord(kType)) {
    const DF d;
    VF w[kVectors];
    OSDN_UNROLL for (int v = 0; v < kVectors; ++v) w[v] = Unpack<kType, kInput>(word[v]);
    OSDN_UNROLL for (int r = 0; r < kRows; ++r) {
      const VF xv = hn::Set(d, x[r * x_stride + kInput]);
      OSDN_UNROLL for (int v = 0; v < kVectors; ++v) sum[r][v] = hn::MulAdd(xv, w[v], sum[r][v]);
    }
    AddWord<kType, kInput + 1, kRows, kVectors>(word, x, x_stride, sum);
  }
}

// How far ahead of a lone row's stream memory is asked: the hardware prefetcher alone falls behind.
inline constexpr int64_t kPrefetchBytes = 4096;

HWY_INLINE void PrefetchPanelWord(const uint32_t* words) {
  for (int64_t o = 0; o < kPanelOuts; o += kLineFloats) {
    hwy::Prefetch(words + o + kPrefetchBytes / kWordBytes);
  }
}

// sum[r][v] = <x_r, words of the panel from `column` on> over `count` words from `first` on.
template <DType kType, int kRows, int kVectors>
HWY_INLINE void DotWords(const PanelProduct& p, const float* x, int64_t first, int64_t count,
                         int64_t column, VF (&sum)[kRows][kVectors]) {
  const DU du;
  constexpr int64_t kRun = RunWords(kType);
  const int64_t width = p.panel.width;
  x += first * InputsPerWord(kType);
  for (int64_t i = first; i < first + count; i += kRun) {
    const uint32_t* run = p.panel.words + i * width;
    for (int64_t j = 0; j < kRun; ++j) {
      if constexpr (kRows == 1 && kVectors * kLanes == kPanelOuts) {
        PrefetchPanelWord(run + j * kPanelOuts);
      }
      VU word[kVectors];
      OSDN_UNROLL for (int v = 0; v < kVectors; ++v) {
        const int64_t out = column + v * kLanes;
        word[v] = hn::LoadU(
            du, kRun == 1 ? run + out
                          : run + (out / kOutBlock * kRun + j) * kOutBlock + out % kOutBlock);
      }
      AddWord<kType, 0, kRows, kVectors>(word, x, p.panel.inputs, sum);
      x += InputsPerWord(kType);
    }
  }
}

HWY_INLINE VF LoadGroupScales(const uint16_t* scales) {
  const hn::Rebind<uint16_t, DF> d16;
  return hn::BitCast(DF(), hn::ShiftLeft<16>(hn::PromoteTo(DU(), hn::LoadU(d16, scales))));
}

// int4: each group's sum is scaled by itself.
template <int kRows, int kVectors>
HWY_INLINE void DotGroups(const PanelProduct& p, const float* x, int64_t column,
                          VF (&sum)[kRows][kVectors]) {
  const DF d;
  constexpr int64_t kWords = kInt4Group / InputsPerWord(DType::kI4);
  const int64_t groups = p.panel.inputs / kInt4Group;
  for (int64_t g = 0; g < groups; ++g) {
    VF part[kRows][kVectors];
    OSDN_UNROLL for (int r = 0; r < kRows; ++r) {
      OSDN_UNROLL for (int v = 0; v < kVectors; ++v) part[r][v] = hn::Zero(d);
    }
    DotWords<DType::kI4, kRows, kVectors>(p, x, g * kWords, kWords, column, part);
    OSDN_UNROLL for (int v = 0; v < kVectors; ++v) {
      const VF scale =
          LoadGroupScales(p.panel.group_scales + g * p.panel.width + column + v * kLanes);
      OSDN_UNROLL for (int r = 0; r < kRows; ++r) {
        sum[r][v] = hn::MulAdd(scale, part[r][v], sum[r][v]);
      }
    }
  }
}

// Adds to or overwrites y; outputs past the last that exists are dropped.
template <int kVectors>
HWY_INLINE void StoreRow(const PanelProduct& p, int64_t row, int64_t column,
                         const VF (&sum)[kVectors]) {
  const DF d;
  float* y = p.y + row * p.y_stride + column;
  OSDN_UNROLL for (int v = 0; v < kVectors; ++v) {
    const int64_t count = p.panel.outs - column - v * kLanes;
    float* at = y + v * kLanes;
    if (count >= kLanes) {
      hn::StoreU(p.accumulate ? hn::Add(hn::LoadU(d, at), sum[v]) : sum[v], d, at);
      continue;
    }
    HWY_ALIGN float rest[kLanes];
    hn::Store(sum[v], d, rest);
    for (int64_t i = 0; i < count; ++i) at[i] = p.accumulate ? at[i] + rest[i] : rest[i];
  }
}

template <DType kType, int kRows, int kVectors>
HWY_INLINE void Tile(const PanelProduct& p, int64_t row, int64_t column) {
  const DF d;
  const float* x = static_cast<const float*>(p.x) + row * p.panel.inputs;
  VF sum[kRows][kVectors];
  OSDN_UNROLL for (int r = 0; r < kRows; ++r) {
    OSDN_UNROLL for (int v = 0; v < kVectors; ++v) sum[r][v] = hn::Zero(d);
  }
  if constexpr (kType == DType::kI4) {
    DotGroups<kRows, kVectors>(p, x, column, sum);
  } else {
    DotWords<kType, kRows, kVectors>(p, x, 0, p.panel.inputs / InputsPerWord(kType), column, sum);
  }
  if constexpr (kType == DType::kI8) {
    OSDN_UNROLL for (int v = 0; v < kVectors; ++v) {
      const VF scale = hn::LoadU(d, p.panel.scales + column + v * kLanes);
      OSDN_UNROLL for (int r = 0; r < kRows; ++r) sum[r][v] = hn::Mul(sum[r][v], scale);
    }
  }
  for (int r = 0; r < kRows; ++r) StoreRow<kVectors>(p, row + r, column, sum[r]);
}

template <DType kType, int kVectors>
HWY_INLINE void AllRows(const PanelProduct& p, int64_t column) {
  int64_t row = 0;
  for (; row + kTileRows <= p.rows; row += kTileRows)
    Tile<kType, kTileRows, kVectors>(p, row, column);
  for (; row + 2 <= p.rows; row += 2) Tile<kType, 2, kVectors>(p, row, column);
  if (row < p.rows) Tile<kType, 1, kVectors>(p, row, column);
}

template <DType kType>
void MultiplyAs(const PanelProduct& p) {
  if constexpr (kPanelVectors <= 16) {
    if (p.rows == 1 && p.panel.width == kPanelOuts) return Tile<kType, 1, kPanelVectors>(p, 0, 0);
  }
  constexpr int64_t kTileOuts = kTileVectors * kLanes;
  int64_t column = 0;
  for (; column + kTileOuts <= p.panel.width; column += kTileOuts) {
    AllRows<kType, kTileVectors>(p, column);
  }
  for (; column < p.panel.width; column += kBlockVectors * kLanes) {
    AllRows<kType, kBlockVectors>(p, column);
  }
}

template <DType kType>
void MultiplyAll(absl::Span<const PanelProduct> products) {
  for (const PanelProduct& p : products) MultiplyAs<kType>(p);
}

void MultiplyF32Impl(absl::Span<const PanelProduct> products) {
  MultiplyAll<DType::kF32>(products);
}
void MultiplyBf16Impl(absl::Span<const PanelProduct> products) {
  MultiplyAll<DType::kBF16>(products);
}
void MultiplyInt8Impl(absl::Span<const PanelProduct> products) {
  MultiplyAll<DType::kI8>(products);
}
void MultiplyInt4Impl(absl::Span<const PanelProduct> products) {
  MultiplyAll<DType::kI4>(products);
}

// --- Rows ---

// The largest |x|, or NaN when any x is not finite.
HWY_INLINE float AbsMax(const float* x, int64_t count) {
  const DF d;
  VF most = hn::Zero(d);
  VF poison = hn::Zero(d);  // x - x: 0, or NaN for what is not finite
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const VF v = hn::LoadU(d, x + i);
    most = hn::Max(most, hn::Abs(v));
    poison = hn::Add(poison, hn::Sub(v, v));
  }
  float result = hn::GetLane(hn::MaxOfLanes(d, most));
  float bad = SumLanes(poison);
  for (; i < count; ++i) {
    result = std::abs(x[i]) > result ? std::abs(x[i]) : result;
    bad += x[i] - x[i];
  }
  return bad == 0.0F ? result : std::numeric_limits<float>::quiet_NaN();
}

// One piece (64 bytes) of bytes or halves from up to that many floats; the rest is zero.
template <RowFormat kFormat>
HWY_INLINE void PackPiece(const float* x, int64_t count, float factor, void* out) {
  constexpr int64_t kElements = kPieceBytes / ElementBytes(kFormat);
  const DF d;
  HWY_ALIGN float padded[kElements];
  if (count < kElements) {
    std::memcpy(padded, x, count * sizeof(float));
    std::memset(padded + count, 0, (kElements - count) * sizeof(float));
    x = padded;
  }
  for (int64_t i = 0; i < kElements; i += kLanes) {
    const VF v = hn::LoadU(d, x + i);
    if constexpr (kFormat == RowFormat::kBf16) {
      StoreBf16(v, static_cast<uint16_t*>(out) + i);
    } else {
      const DI di;
      const hn::Rebind<int8_t, DF> d8;
      const hn::Rebind<uint8_t, DF> du8;
      const auto q = hn::NearestInt(hn::Mul(v, hn::Set(d, factor)));
      if constexpr (kFormat == RowFormat::kInt8) {
        hn::StoreU(hn::DemoteTo(d8, q), d8, static_cast<int8_t*>(out) + i);
      } else {
        hn::StoreU(hn::DemoteTo(du8, hn::Add(q, hn::Set(di, 128))), du8,
                   static_cast<uint8_t*>(out) + i);
      }
    }
  }
}

template <RowFormat kFormat>
HWY_INLINE void PackPieces(const float* x, int64_t in_features, int64_t padded, float factor,
                           int64_t piece_stride, char* out) {
  constexpr int64_t kElements = kPieceBytes / ElementBytes(kFormat);
  for (int64_t i = 0; i < padded; i += kElements) {
    const int64_t left = in_features - i;
    PackPiece<kFormat>(x + i, left < kElements ? left : kElements, factor, out);
    out += piece_stride;
  }
}

void PackRowsImpl(const RowsToPack& p, int64_t begin, int64_t end) {
  const int64_t row_bytes = p.padded * ElementBytes(p.format);
  for (int64_t row = begin; row < end; ++row) {
    const float* x = p.x + row * p.in_features;
    const int64_t block = row / kRowBlock * kRowBlock;
    const int64_t block_rows = Min(kRowBlock, p.rows - block);
    char* base = static_cast<char*>(p.packed) + block * row_bytes;
    if (p.format == RowFormat::kF32) {
      char* out = base + (row - block) * row_bytes;
      std::memcpy(out, x, p.in_features * sizeof(float));
      std::memset(out + p.in_features * sizeof(float), 0,
                  (p.padded - p.in_features) * sizeof(float));
      continue;
    }
    char* out = base + (row - block) * kPieceBytes;
    const int64_t stride = block_rows * kPieceBytes;
    if (p.format == RowFormat::kBf16) {
      PackPieces<RowFormat::kBf16>(x, p.in_features, p.padded, 1.0F, stride, out);
      continue;
    }
    const float most = AbsMax(x, p.in_features);
    p.scales[row] = most / 127.0F;
    const float factor = most > 0.0F ? 127.0F / most : 0.0F;
    if (p.format == RowFormat::kInt8) {
      PackPieces<RowFormat::kInt8>(x, p.in_features, p.padded, factor, stride, out);
    } else {
      PackPieces<RowFormat::kUint8>(x, p.in_features, p.padded, factor, stride, out);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace osdn::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace osdn::kernels::cpu {
namespace {

HWY_EXPORT(MultiplyF32Impl);
HWY_EXPORT(MultiplyBf16Impl);
HWY_EXPORT(MultiplyInt8Impl);
HWY_EXPORT(MultiplyInt4Impl);
HWY_EXPORT(PackRowsImpl);

void MultiplyF32(absl::Span<const PanelProduct> products) {
  HWY_DYNAMIC_DISPATCH(MultiplyF32Impl)(products);
}
void MultiplyBf16(absl::Span<const PanelProduct> products) {
  HWY_DYNAMIC_DISPATCH(MultiplyBf16Impl)(products);
}
void MultiplyInt8(absl::Span<const PanelProduct> products) {
  HWY_DYNAMIC_DISPATCH(MultiplyInt8Impl)(products);
}
void MultiplyInt4(absl::Span<const PanelProduct> products) {
  HWY_DYNAMIC_DISPATCH(MultiplyInt4Impl)(products);
}

}  // namespace

PanelKernels GenericPanelKernels() {
  return {.f32 = {RowFormat::kF32, &MultiplyF32},
          .bf16 = {RowFormat::kF32, &MultiplyBf16},
          .int8 = {RowFormat::kF32, &MultiplyInt8},
          .int4 = {RowFormat::kF32, &MultiplyInt4}};
}

void PackRows(const RowsToPack& rows, int64_t begin, int64_t end) {
  HWY_DYNAMIC_DISPATCH(PackRowsImpl)(rows, begin, end);
}

}  // namespace osdn::kernels::cpu
#endif  // HWY_ONCE
