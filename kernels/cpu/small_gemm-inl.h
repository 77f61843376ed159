// Register-tiled products of small matrices that live in the L1 and L2 caches, and transposition.
// Compiled once for every Highway target (hence no ordinary include guard).
#if defined(OSDN_KERNELS_CPU_SMALL_GEMM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OSDN_KERNELS_CPU_SMALL_GEMM_INL_H_
#undef OSDN_KERNELS_CPU_SMALL_GEMM_INL_H_
#else
#define OSDN_KERNELS_CPU_SMALL_GEMM_INL_H_
#endif

#include <cstdint>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace osdn::kernels::cpu {
namespace HWY_NAMESPACE {

// C[m, n] = A B or += A B. Element (i, p) of A is a[i * a_row + p * a_col]; rows of B and C are
// contiguous and aligned to vectors; n is a multiple of kLanes. C overlaps neither A nor B.
struct SmallGemm {
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  const float* a = nullptr;
  int64_t a_row = 0;
  int64_t a_col = 1;
  const float* b = nullptr;
  int64_t b_row = 0;
  float* c = nullptr;
  int64_t c_row = 0;
};

// 4 x 4 accumulators cover the FMA latency with 32 registers; AVX2 has 16.
inline constexpr int64_t kGemmRows = 4;
inline constexpr int64_t kGemmVectors = HWY_TARGET == HWY_AVX2 ? 2 : 4;

template <bool kAccumulate, int kRows, int kVectors>
HWY_INLINE void GemmTile(const SmallGemm& g, int64_t row, int64_t column) {
  const DF d;
  const float* a = g.a + row * g.a_row;
  const float* b = g.b + column;
  float* c = g.c + row * g.c_row + column;
  VF sum[kRows][kVectors];
  OSDN_UNROLL for (int r = 0; r < kRows; ++r) {
    OSDN_UNROLL for (int j = 0; j < kVectors; ++j) {
      sum[r][j] = kAccumulate ? hn::Load(d, c + r * g.c_row + j * kLanes) : hn::Zero(d);
    }
  }
  for (int64_t p = 0; p < g.k; ++p) {
    VF bv[kVectors];
    OSDN_UNROLL for (int j = 0; j < kVectors; ++j) bv[j] = hn::Load(d, b + j * kLanes);
    OSDN_UNROLL for (int r = 0; r < kRows; ++r) {
      const VF av = hn::Set(d, a[r * g.a_row]);
      OSDN_UNROLL for (int j = 0; j < kVectors; ++j) {
        sum[r][j] = hn::MulAdd(av, bv[j], sum[r][j]);
      }
    }
    a += g.a_col;
    b += g.b_row;
  }
  OSDN_UNROLL for (int r = 0; r < kRows; ++r) {
    OSDN_UNROLL for (int j = 0; j < kVectors; ++j) {
      hn::Store(sum[r][j], d, c + r * g.c_row + j * kLanes);
    }
  }
}

template <bool kAccumulate, int kRows>
HWY_INLINE void GemmRowBlock(const SmallGemm& g, int64_t row) {
  int64_t column = 0;
  for (; column + kGemmVectors * kLanes <= g.n; column += kGemmVectors * kLanes) {
    GemmTile<kAccumulate, kRows, kGemmVectors>(g, row, column);
  }
  for (; column < g.n; column += kLanes) GemmTile<kAccumulate, kRows, 1>(g, row, column);
}

template <bool kAccumulate>
void Multiply(const SmallGemm& g) {
  int64_t row = 0;
  for (; row + kGemmRows <= g.m; row += kGemmRows) GemmRowBlock<kAccumulate, kGemmRows>(g, row);
  for (; row < g.m; ++row) GemmRowBlock<kAccumulate, 1>(g, row);
}

// to[c, r] = from[r, c]
HWY_INLINE void Transpose(const float* from, int64_t rows, int64_t columns, int64_t from_row,
                          float* to, int64_t to_row) {
  int64_t full_rows = 0;
  int64_t full_columns = 0;
#if HWY_TARGET != HWY_SCALAR
  const hn::CappedTag<float, 4> d;
  const hn::Repartition<uint64_t, decltype(d)> d64;
  full_rows = rows / 4 * 4;
  full_columns = columns / 4 * 4;
  for (int64_t r = 0; r < full_rows; r += 4) {
    for (int64_t c = 0; c < full_columns; c += 4) {
      const float* block = from + r * from_row + c;
      const auto v0 = hn::LoadU(d, block);
      const auto v1 = hn::LoadU(d, block + from_row);
      const auto v2 = hn::LoadU(d, block + 2 * from_row);
      const auto v3 = hn::LoadU(d, block + 3 * from_row);
      const auto low01 = hn::BitCast(d64, hn::InterleaveLower(d, v0, v1));
      const auto low23 = hn::BitCast(d64, hn::InterleaveLower(d, v2, v3));
      const auto high01 = hn::BitCast(d64, hn::InterleaveUpper(d, v0, v1));
      const auto high23 = hn::BitCast(d64, hn::InterleaveUpper(d, v2, v3));
      float* out = to + c * to_row + r;
      hn::StoreU(hn::BitCast(d, hn::InterleaveLower(d64, low01, low23)), d, out);
      hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(d64, low01, low23)), d, out + to_row);
      hn::StoreU(hn::BitCast(d, hn::InterleaveLower(d64, high01, high23)), d, out + 2 * to_row);
      hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(d64, high01, high23)), d, out + 3 * to_row);
    }
  }
#endif
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = r < full_rows ? full_columns : 0; c < columns; ++c) {
      to[c * to_row + r] = from[r * from_row + c];
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace osdn::kernels::cpu
HWY_AFTER_NAMESPACE();

#endif  // OSDN_KERNELS_CPU_SMALL_GEMM_INL_H_
