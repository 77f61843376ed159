// Panels by AVX512-BF16 and AVX512-VNNI dot instructions. Functions carry their target themselves:
// nothing inline from a header may be compiled for it, or the linker could choose that copy for
// CPUs without it.
#if defined(__x86_64__)

// g++ 12 takes its own _mm512_undefined_* for uninitialised variables (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>

#include "kernels/cpu/panels/kernels.h"

#define OSDN_AVX512 \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni")))
#define OSDN_AVX512_INLINE OSDN_AVX512 __attribute__((always_inline)) inline

namespace osdn::kernels::cpu {
namespace {

// 6 x 4 accumulators and 4 words leave registers for the broadcast.
constexpr int kMaxTileRows = 6;
constexpr int kPanelVectors = kPanelOuts / kOutBlock;
constexpr int kWordsPerPiece = kPieceBytes / kWordBytes;
// How far ahead of few rows' stream memory is asked: the hardware prefetcher alone falls behind.
constexpr int kFewRows = 2;
constexpr int64_t kPrefetchBytes = 1024;

// A tile's rows of x, inside their block.
struct Rows {
  const char* x;         // first piece of the first row
  int64_t piece_stride;  // bytes to a row's next piece
};

OSDN_AVX512_INLINE __m512i LoadWord(const uint32_t* words) { return _mm512_loadu_si512(words); }

OSDN_AVX512_INLINE __m512i BroadcastWord(const char* x) {
  return _mm512_set1_epi32(*reinterpret_cast<const int*>(x));
}

OSDN_AVX512_INLINE __m512 AddDot(__m512 sum, __m512i x, __m512i w) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(w));
}
OSDN_AVX512_INLINE __m512i AddDot(__m512i sum, __m512i x, __m512i w) {
  return _mm512_dpbusd_epi32(sum, x, w);
}
OSDN_AVX512_INLINE void Clear(__m512* v) { *v = _mm512_setzero_ps(); }
OSDN_AVX512_INLINE void Clear(__m512i* v) { *v = _mm512_setzero_si512(); }

template <int kRows, int kVectors, class Sum>
OSDN_AVX512_INLINE void ClearAll(Sum (&sum)[kRows][kVectors]) {
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) Clear(&sum[r][v]);
  }
}

// sum[r][v] += <x_r, w_v> over one run, which is one piece of the inputs.
template <int kRows, int kVectors, class Sum>
OSDN_AVX512_INLINE void DotRun(const char* x, const uint32_t* words, Sum (&sum)[kRows][kVectors]) {
  static_assert(RunWords(DType::kBF16) == kWordsPerPiece);
#pragma GCC unroll 4
  for (int i = 0; i < kWordsPerPiece; ++i) {
    __m512i w[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      w[v] = LoadWord(words + (v * kWordsPerPiece + i) * kOutBlock);
    }
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const __m512i xv = BroadcastWord(x + r * kPieceBytes + i * kWordBytes);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[r][v] = AddDot(sum[r][v], xv, w[v]);
    }
  }
}

// The same for few rows, where memory sets the pace: strictly in order of address, with what comes
// next asked for.
template <int kRows, int kVectors, class Sum>
OSDN_AVX512_INLINE void StreamRun(const char* x, const uint32_t* words,
                                  Sum (&sum)[kRows][kVectors]) {
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 16
    for (int i = 0; i < kWordsPerPiece; ++i) {
      const uint32_t* word = words + (v * kWordsPerPiece + i) * kOutBlock;
      _mm_prefetch(reinterpret_cast<const char*>(word) + kPrefetchBytes, _MM_HINT_T1);
      const __m512i w = LoadWord(word);
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
        const __m512i xv = BroadcastWord(x + r * kPieceBytes + i * kWordBytes);
        sum[r][v] = AddDot(sum[r][v], xv, w);
      }
    }
  }
}

template <int kRows, int kVectors, class Sum>
OSDN_AVX512_INLINE void DotPanel(const Panel& panel, int64_t words, const Rows& rows,
                                 Sum (&sum)[kRows][kVectors]) {
  ClearAll(sum);
  const char* x = rows.x;
  const uint32_t* w = panel.words;
  for (int64_t i = 0; i < words; i += kWordsPerPiece) {
    if constexpr (kRows <= kFewRows) {
      StreamRun<kRows, kVectors>(x, w, sum);
    } else {
      DotRun<kRows, kVectors>(x, w, sum);
    }
    x += rows.piece_stride;
    w += kWordsPerPiece * panel.width;
  }
}

// y <- sum or y + sum for one vector of outputs, of which `outs` exist.
OSDN_AVX512_INLINE void StoreOuts(float* y, int64_t outs, bool accumulate, __m512 sum) {
  if (outs <= 0) return;
  const __mmask16 mask = outs >= 16 ? 0xFFFF : static_cast<__mmask16>((1U << outs) - 1);
  if (accumulate) sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y), sum);
  _mm512_mask_storeu_ps(y, mask, sum);
}

template <int kRows, int kVectors>
OSDN_AVX512_INLINE void StoreTile(const PanelProduct& p, int64_t row, int64_t column,
                                  const __m512 (&sum)[kRows][kVectors]) {
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const int64_t out = column + v * kOutBlock;
      StoreOuts(p.y + (row + r) * p.y_stride + out, p.panel.outs - out, p.accumulate, sum[r][v]);
    }
  }
}

struct Bf16Tile {
  template <int kRows, int kVectors>
  OSDN_AVX512 static void Run(const PanelProduct& p, const Rows& rows, int64_t row) {
    __m512 sum[kRows][kVectors];
    DotPanel<kRows, kVectors>(p.panel, p.panel.inputs / 2, rows, sum);
    StoreTile(p, row, 0, sum);
  }
};

// x is unsigned, 128 more than meant: 128 times the weights' sum comes off.
struct Int8Tile {
  template <int kRows, int kVectors>
  OSDN_AVX512 static void Run(const PanelProduct& p, const Rows& rows, int64_t row) {
    __m512i sum[kRows][kVectors];
    DotPanel<kRows, kVectors>(p.panel, p.panel.inputs / 4, rows, sum);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const __m512i excess = _mm512_slli_epi32(_mm512_loadu_si512(p.panel.sums + v * kOutBlock), 7);
      const __m512 scale = _mm512_loadu_ps(p.panel.scales + v * kOutBlock);
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
        const __m512 dot = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum[r][v], excess));
        const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(p.x_scales[row + r]));
        StoreOuts(p.y + (row + r) * p.y_stride + v * kOutBlock, p.panel.outs - v * kOutBlock,
                  p.accumulate, _mm512_mul_ps(dot, both));
      }
    }
  }
};

template <class Kernel, int kVectors>
OSDN_AVX512 void RunTile(const PanelProduct& p, const Rows& rows, int64_t row, int64_t count) {
  switch (count) {
    case 1:
      return Kernel::template Run<1, kVectors>(p, rows, row);
    case 2:
      return Kernel::template Run<2, kVectors>(p, rows, row);
    case 3:
      return Kernel::template Run<3, kVectors>(p, rows, row);
    case 4:
      return Kernel::template Run<4, kVectors>(p, rows, row);
    case 5:
      return Kernel::template Run<5, kVectors>(p, rows, row);
    default:
      return Kernel::template Run<6, kVectors>(p, rows, row);
  }
}

// Cuts every block of rows into tiles of nearly equal height.
template <class Kernel, int kVectors>
OSDN_AVX512 void AllRows(const PanelProduct& p, int64_t row_bytes) {
  for (int64_t block = 0; block < p.rows; block += kRowBlock) {
    const int64_t height = p.rows - block < kRowBlock ? p.rows - block : kRowBlock;
    const char* x = static_cast<const char*>(p.x) + block * row_bytes;
    int64_t done = 0;
    while (done < height) {
      const int64_t left = height - done;
      const int64_t tiles = (left + kMaxTileRows - 1) / kMaxTileRows;
      const int64_t count = (left + tiles - 1) / tiles;
      RunTile<Kernel, kVectors>(p, {x + done * kPieceBytes, height * kPieceBytes}, block + done,
                                count);
      done += count;
    }
  }
}

template <class Kernel>
OSDN_AVX512 void MultiplyPanel(const PanelProduct& p, int64_t row_bytes) {
  switch (p.panel.width / kOutBlock) {
    case 1:
      return AllRows<Kernel, 1>(p, row_bytes);
    case 2:
      return AllRows<Kernel, 2>(p, row_bytes);
    case 3:
      return AllRows<Kernel, 3>(p, row_bytes);
    default:
      return AllRows<Kernel, 4>(p, row_bytes);
  }
}

// --- int4 ---

constexpr int kGroupPairs = kInt4Group / 2;

// Entry n is the bf16 of n mod 16 - 8: vpermw looks at five bits, so a nibble needs no mask.
alignas(64) constexpr uint16_t kNibbles[32] = {
    0xC100, 0xC0E0, 0xC0C0, 0xC0A0, 0xC080, 0xC040, 0xC000, 0xBF80, 0x0000, 0x3F80, 0x4000,
    0x4040, 0x4080, 0x40A0, 0x40C0, 0x40E0, 0xC100, 0xC0E0, 0xC0C0, 0xC0A0, 0xC080, 0xC040,
    0xC000, 0xBF80, 0x0000, 0x3F80, 0x4000, 0x4040, 0x4080, 0x40A0, 0x40C0, 0x40E0};

// Pair `kPair` (of four) of a vector of words, as bf16.
template <int kPair>
OSDN_AVX512_INLINE __m512i NibblePair(__m512i word, __m512i table) {
  return _mm512_permutexvar_epi16(kPair == 0 ? word : _mm512_srli_epi16(word, 4 * kPair), table);
}

OSDN_AVX512_INLINE __m512 LoadGroupScales(const uint16_t* scales) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// sum[r][v] = sum over groups of scale * <x_r, w_v> for the vectors from `column` on. Nibbles are
// expanded in registers, for each tile of rows anew.
template <int kRows, int kVectors>
OSDN_AVX512_INLINE void DotInt4(const Panel& panel, const Rows& rows, int64_t column,
                                __m512 (&sum)[kRows][kVectors]) {
  const __m512i table = _mm512_load_si512(kNibbles);
  const uint32_t* words = panel.words + column;
  const uint16_t* scales = panel.group_scales + column;
  const char* x = rows.x;
  ClearAll(sum);
  for (int64_t group = 0; group < panel.inputs / kInt4Group; ++group) {
    __m512 part[kRows][kVectors];
    ClearAll(part);
#pragma GCC unroll 4
    for (int i = 0; i < kGroupPairs / 4; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const uint32_t* at = words + i * panel.width + v * kOutBlock;
        if constexpr (kVectors == kPanelVectors) {
          _mm_prefetch(reinterpret_cast<const char*>(at) + kPrefetchBytes, _MM_HINT_T1);
        }
        const __m512i word = LoadWord(at);
        const __m512i pairs[4] = {NibblePair<0>(word, table), NibblePair<1>(word, table),
                                  NibblePair<2>(word, table), NibblePair<3>(word, table)};
#pragma GCC unroll 4
        for (int n = 0; n < 4; ++n) {
#pragma GCC unroll 6
          for (int r = 0; r < kRows; ++r) {
            const char* xs = x + r * kPieceBytes + (i * 4 + n) * kWordBytes;
            part[r][v] = AddDot(part[r][v], BroadcastWord(xs), pairs[n]);
          }
        }
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const __m512 scale = LoadGroupScales(scales + v * kOutBlock);
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) sum[r][v] = _mm512_fmadd_ps(scale, part[r][v], sum[r][v]);
    }
    words += kGroupPairs / 4 * panel.width;
    scales += panel.width;
    x += rows.piece_stride;
  }
}

struct Int4Tile {
  template <int kRows, int kVectors>
  OSDN_AVX512 static void Run(const PanelProduct& p, const Rows& rows, int64_t row) {
    // As many chains of sums as registers allow.
    constexpr int kAtOnce = kRows <= kFewRows ? kVectors : (kVectors % 2 == 0 ? 2 : 1);
    for (int first = 0; first < kVectors; first += kAtOnce) {
      __m512 sum[kRows][kAtOnce];
      DotInt4<kRows, kAtOnce>(p.panel, rows, first * kOutBlock, sum);
      StoreTile(p, row, first * kOutBlock, sum);
    }
  }
};

}  // namespace

void MultiplyBf16Avx512(absl::Span<const PanelProduct> products) {
  for (const PanelProduct& p : products) MultiplyPanel<Bf16Tile>(p, p.panel.inputs * 2);
}
void MultiplyInt8Avx512(absl::Span<const PanelProduct> products) {
  for (const PanelProduct& p : products) MultiplyPanel<Int8Tile>(p, p.panel.inputs);
}
void MultiplyInt4Avx512(absl::Span<const PanelProduct> products) {
  for (const PanelProduct& p : products) MultiplyPanel<Int4Tile>(p, p.panel.inputs * 2);
}

}  // namespace osdn::kernels::cpu

#endif  // __x86_64__
