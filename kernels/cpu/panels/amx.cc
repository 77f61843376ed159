// Panels by AMX tiles. As in avx512.cc, functions carry their target themselves.
#if defined(__x86_64__)

// g++ 12 takes its own _mm512_undefined_* for uninitialised variables (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>

#include <cstring>

#include "kernels/cpu/panels/kernels.h"

#define OSDN_AMX \
  __attribute__((target("amx-tile,amx-bf16,amx-int8,avx512f,avx512bw,avx512dq,avx512vl")))
#define OSDN_AMX_INLINE OSDN_AMX __attribute__((always_inline)) inline

namespace osdn::kernels::cpu {
namespace {

// A tile holds 16 rows of 64 bytes: of x one piece of up to 16 rows, of a panel 16 words of 16
// outputs, of the result 16 rows of 16 outputs.
constexpr int64_t kTileRows = 16;
constexpr int64_t kTileBytes = kTileRows * kPieceBytes;

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t bytes_per_row[16] = {};
  uint8_t rows[16] = {};
};

// Tiles 0 to 3 are results, 4 and 5 rows of x, 6 and 7 words. With two blocks of rows, 0 and 1 are
// of the first, which is 4, and 2 and 3 of the second, which is 5.
OSDN_AMX_INLINE void Configure(int64_t rows) {
  TileConfig config;
  for (int i = 0; i < 8; ++i) {
    config.bytes_per_row[i] = kPieceBytes;
    config.rows[i] = static_cast<uint8_t>(i < 6 ? rows : kTileRows);
  }
  // g++ 12 tells its optimiser that the instruction reads 8 bytes of the 64.
  asm volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
}

// What differs between types: inputs of a piece, the dot instruction (tiles are named by
// constants), and what becomes of sums.
struct Bf16 {
  static constexpr int64_t kInputsPerPiece = 32;
  template <int kSum, int kX, int kW>
  OSDN_AMX_INLINE static void Dot();
};
struct Int8 {
  static constexpr int64_t kInputsPerPiece = 64;
  template <int kSum, int kX, int kW>
  OSDN_AMX_INLINE static void Dot();
};

#define OSDN_AMX_DOT(sum, x, w)                 \
  template <>                                   \
  OSDN_AMX_INLINE void Bf16::Dot<sum, x, w>() { \
    _tile_dpbf16ps(sum, x, w);                  \
  }                                             \
  template <>                                   \
  OSDN_AMX_INLINE void Int8::Dot<sum, x, w>() { \
    _tile_dpbssd(sum, x, w);                    \
  }
OSDN_AMX_DOT(0, 4, 6)
OSDN_AMX_DOT(1, 4, 7)
OSDN_AMX_DOT(2, 4, 6)
OSDN_AMX_DOT(3, 4, 7)
OSDN_AMX_DOT(2, 5, 6)
OSDN_AMX_DOT(3, 5, 7)
#undef OSDN_AMX_DOT

template <int kTile>
OSDN_AMX_INLINE void Zero();
template <int kTile>
OSDN_AMX_INLINE void Load(const void* from, int64_t stride);
template <int kTile>
OSDN_AMX_INLINE void Store(void* to, int64_t stride);

#define OSDN_AMX_SUM_TILE(tile)                                       \
  template <>                                                         \
  OSDN_AMX_INLINE void Zero<tile>() {                                 \
    _tile_zero(tile);                                                 \
  }                                                                   \
  template <>                                                         \
  OSDN_AMX_INLINE void Load<tile>(const void* from, int64_t stride) { \
    _tile_loadd(tile, from, stride);                                  \
  }                                                                   \
  template <>                                                         \
  OSDN_AMX_INLINE void Store<tile>(void* to, int64_t stride) {        \
    _tile_stored(tile, to, stride);                                   \
  }
OSDN_AMX_SUM_TILE(0)
OSDN_AMX_SUM_TILE(1)
OSDN_AMX_SUM_TILE(2)
OSDN_AMX_SUM_TILE(3)
#undef OSDN_AMX_SUM_TILE

// One tile of results: `rows` rows of y from `row` on, 16 outputs of the panel from `column` on, of
// which `outs` exist.
struct Result {
  const PanelProduct& p;
  int64_t row;
  int64_t rows;
  int64_t column;

  OSDN_AMX_INLINE float* y() const { return p.y + row * p.y_stride + column; }
  OSDN_AMX_INLINE int64_t stride() const {
    return p.y_stride * static_cast<int64_t>(sizeof(float));
  }
  OSDN_AMX_INLINE int64_t outs() const { return p.panel.outs - column; }
};

OSDN_AMX_INLINE __mmask16 Mask(int64_t outs) {
  if (outs >= kOutBlock) return 0xFFFF;
  return outs <= 0 ? 0 : static_cast<__mmask16>((1U << outs) - 1);
}

// bf16: sums start from y where it accumulates, and go to y as they are.
template <int kTile>
OSDN_AMX_INLINE void Begin(Bf16 /*type*/, const Result& result) {
  if (!result.p.accumulate) return Zero<kTile>();
  if (result.outs() >= kOutBlock) return Load<kTile>(result.y(), result.stride());
  alignas(64) float sums[kTileRows][kOutBlock];
  for (int64_t r = 0; r < result.rows; ++r) {
    _mm512_store_ps(sums[r],
                    _mm512_maskz_loadu_ps(Mask(result.outs()), result.y() + r * result.p.y_stride));
  }
  asm volatile("" : : "r"(sums) : "memory");  // the tile load does not tell that it reads
  Load<kTile>(sums, kPieceBytes);
}
template <int kTile>
OSDN_AMX_INLINE void End(Bf16 /*type*/, const Result& result) {
  if (result.outs() >= kOutBlock) return Store<kTile>(result.y(), result.stride());
  alignas(64) float sums[kTileRows][kOutBlock];
  Store<kTile>(sums, kPieceBytes);
  for (int64_t r = 0; r < result.rows; ++r) {
    _mm512_mask_storeu_ps(result.y() + r * result.p.y_stride, Mask(result.outs()),
                          _mm512_load_ps(sums[r]));
  }
}

// int8: integers first, scaled and added to y when they are whole.
template <int kTile>
OSDN_AMX_INLINE void Begin(Int8 /*type*/, const Result& /*result*/) {
  Zero<kTile>();
}
template <int kTile>
OSDN_AMX_INLINE void End(Int8 /*type*/, const Result& result) {
  alignas(64) int32_t sums[kTileRows][kOutBlock];
  Store<kTile>(sums, kPieceBytes);
  const __mmask16 mask = Mask(result.outs());
  const __m512 scale = _mm512_loadu_ps(result.p.panel.scales + result.column);
  for (int64_t r = 0; r < result.rows; ++r) {
    const __m512 dot = _mm512_cvtepi32_ps(_mm512_load_si512(sums[r]));
    const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(result.p.x_scales[result.row + r]));
    float* y = result.y() + r * result.p.y_stride;
    __m512 value = _mm512_mul_ps(dot, both);
    if (result.p.accumulate) value = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y), value);
    _mm512_mask_storeu_ps(y, mask, value);
  }
}

constexpr int64_t kTileWords = kTileRows * kOutBlock;
static_assert(RunWords(DType::kBF16) == kTileRows && RunWords(DType::kI8) == kTileRows);

// How far ahead of a single block's stream memory is asked.
constexpr int64_t kPrefetchBytes = 1024;

// Loads a tile of words after asking for what lies kPrefetchBytes behind it.
template <int kTile>
OSDN_AMX_INLINE void StreamWords(const uint32_t* words) {
  const char* ahead = reinterpret_cast<const char*>(words) + kPrefetchBytes;
#pragma GCC unroll 16
  for (int64_t i = 0; i < kTileBytes; i += kPieceBytes) _mm_prefetch(ahead + i, _MM_HINT_T1);
  if constexpr (kTile == 6) _tile_loadd(6, words, kPieceBytes);
  if constexpr (kTile == 7) _tile_loadd(7, words, kPieceBytes);
}

// One block of rows, `kTiles` blocks of outputs: what streams from memory.
template <class Type, int kTiles>
OSDN_AMX void OneBlock(const PanelProduct& p, const char* x, int64_t row, int64_t rows) {
  const uint32_t* words = p.panel.words;
  Begin<0>(Type(), {p, row, rows, 0});
  if constexpr (kTiles > 1) Begin<1>(Type(), {p, row, rows, kOutBlock});
  if constexpr (kTiles > 2) Begin<2>(Type(), {p, row, rows, 2 * kOutBlock});
  if constexpr (kTiles > 3) Begin<3>(Type(), {p, row, rows, 3 * kOutBlock});
  for (int64_t i = 0; i < p.panel.inputs; i += Type::kInputsPerPiece) {
    _tile_loadd(4, x, kPieceBytes);
    StreamWords<6>(words);
    Type::template Dot<0, 4, 6>();
    if constexpr (kTiles > 1) {
      StreamWords<7>(words + kTileWords);
      Type::template Dot<1, 4, 7>();
    }
    if constexpr (kTiles > 2) {
      StreamWords<6>(words + 2 * kTileWords);
      Type::template Dot<2, 4, 6>();
    }
    if constexpr (kTiles > 3) {
      StreamWords<7>(words + 3 * kTileWords);
      Type::template Dot<3, 4, 7>();
    }
    words += kTileRows * p.panel.width;
    x += rows * kPieceBytes;
  }
  End<0>(Type(), {p, row, rows, 0});
  if constexpr (kTiles > 1) End<1>(Type(), {p, row, rows, kOutBlock});
  if constexpr (kTiles > 2) End<2>(Type(), {p, row, rows, 2 * kOutBlock});
  if constexpr (kTiles > 3) End<3>(Type(), {p, row, rows, 3 * kOutBlock});
}

// Two full blocks of rows, one or two blocks of outputs from `column` on: four results for four
// loads. `next` is how far the words of the next panel are, which come from memory while this
// panel's, in the L2 cache, are multiplied; 0 when they need not be asked for.
template <class Type, int kTiles>
OSDN_AMX void TwoBlocks(const PanelProduct& p, const char* x, int64_t row, int64_t column,
                        int64_t next) {
  const uint32_t* words = p.panel.words + column * kTileRows;
  const char* second = x + p.panel.inputs / Type::kInputsPerPiece * kTileBytes;
  const int64_t row2 = row + kRowBlock;
  const int64_t column2 = column + kOutBlock;
  Begin<0>(Type(), {p, row, kRowBlock, column});
  Begin<2>(Type(), {p, row2, kRowBlock, column});
  if constexpr (kTiles > 1) {
    Begin<1>(Type(), {p, row, kRowBlock, column2});
    Begin<3>(Type(), {p, row2, kRowBlock, column2});
  }
  for (int64_t i = 0; i < p.panel.inputs; i += Type::kInputsPerPiece) {
    if (next != 0) {
      const char* ahead = reinterpret_cast<const char*>(words) + next;
#pragma GCC unroll 32
      for (int64_t at = 0; at < kTiles * kTileBytes; at += kPieceBytes) {
        _mm_prefetch(ahead + at, _MM_HINT_T1);
      }
    }
    _tile_loadd(6, words, kPieceBytes);
    _tile_loadd(4, x, kPieceBytes);
    Type::template Dot<0, 4, 6>();
    _tile_loadd(5, second, kPieceBytes);
    Type::template Dot<2, 5, 6>();
    if constexpr (kTiles > 1) {
      _tile_loadd(7, words + kTileWords, kPieceBytes);
      Type::template Dot<1, 4, 7>();
      Type::template Dot<3, 5, 7>();
    }
    words += kTileRows * p.panel.width;
    x += kTileBytes;
    second += kTileBytes;
  }
  End<0>(Type(), {p, row, kRowBlock, column});
  End<2>(Type(), {p, row2, kRowBlock, column});
  if constexpr (kTiles > 1) {
    End<1>(Type(), {p, row, kRowBlock, column2});
    End<3>(Type(), {p, row2, kRowBlock, column2});
  }
}

template <class Type>
OSDN_AMX void LastBlock(const PanelProduct& p, const char* x, int64_t row, int64_t rows) {
  switch (p.panel.width / kOutBlock) {
    case 1:
      return OneBlock<Type, 1>(p, x, row, rows);
    case 2:
      return OneBlock<Type, 2>(p, x, row, rows);
    case 3:
      return OneBlock<Type, 3>(p, x, row, rows);
    default:
      return OneBlock<Type, 4>(p, x, row, rows);
  }
}

// `configured` is the height tiles are set up for.
template <class Type>
OSDN_AMX void MultiplyPanel(const PanelProduct& p, int64_t* configured) {
  const auto configure = [configured](int64_t rows) OSDN_AMX {
    if (*configured != rows) Configure(rows);
    *configured = rows;
  };
  const auto* x = static_cast<const char*>(p.x);
  const int64_t block_bytes = p.panel.inputs / Type::kInputsPerPiece * kTileBytes;
  const int64_t panel_bytes =
      p.panel.inputs / Type::kInputsPerPiece * kTileRows * p.panel.width * kWordBytes;
  const int64_t paired = p.rows / (2 * kRowBlock) * 2 * kRowBlock;
  if (paired > 0) configure(kRowBlock);
  // Half a panel's words stay near while all pairs of blocks pass.
  for (int64_t column = 0; column < p.panel.width; column += 2 * kOutBlock) {
    for (int64_t row = 0; row < paired; row += 2 * kRowBlock) {
      const char* rows = x + row / kRowBlock * block_bytes;
      const int64_t next = row == 0 ? panel_bytes : 0;
      if (p.panel.width - column > kOutBlock) {
        TwoBlocks<Type, 2>(p, rows, row, column, next);
      } else {
        TwoBlocks<Type, 1>(p, rows, row, column, 0);
      }
    }
  }
  for (int64_t row = paired; row < p.rows; row += kRowBlock) {
    const int64_t rows = p.rows - row < kRowBlock ? p.rows - row : kRowBlock;
    configure(rows);
    LastBlock<Type>(p, x + row / kRowBlock * block_bytes, row, rows);
  }
}

template <class Type>
OSDN_AMX void MultiplyAll(absl::Span<const PanelProduct> products) {
  int64_t configured = 0;
  for (size_t i = 0; i < products.size(); ++i) MultiplyPanel<Type>(products.data()[i], &configured);
  _tile_release();
}

}  // namespace

OSDN_AMX void MultiplyBf16Amx(absl::Span<const PanelProduct> products) {
  MultiplyAll<Bf16>(products);
}
OSDN_AMX void MultiplyInt8Amx(absl::Span<const PanelProduct> products) {
  MultiplyAll<Int8>(products);
}

}  // namespace osdn::kernels::cpu

#endif  // __x86_64__
