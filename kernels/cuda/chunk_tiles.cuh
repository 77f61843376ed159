// Tiles of 64 rows in shared memory and the matrix fragments taken from them.
//
// A tile has kChunk rows of bfloat16 with 8 elements of padding each: rows then start 4 banks
// apart, so that the eight rows of an ldmatrix meet 32 different banks. Fragment layouts:
// primitives.cuh.
#ifndef OSDN_KERNELS_CUDA_CHUNK_TILES_CUH_
#define OSDN_KERNELS_CUDA_CHUNK_TILES_CUH_

#include "kernels/cuda/mixer_args.h"
#include "kernels/cuda/primitives.cuh"

namespace osdn::kernels::cuda {

constexpr int kTileRows = static_cast<int>(kChunk);
constexpr int kTilePadding = 8;
constexpr int TileStride(int columns) { return columns + kTilePadding; }

// Enqueues rows [0, rows) of a matrix with `row_stride` elements a row; the tile's others are zero.
// By `kThreads` threads of which this is `thread`: each keeps its column and steps through rows, so
// that a whole tile costs an addition a copy.
template <int kColumns, int kThreads>
OSDN_DEVICE void LoadTileAsync(const Bf16* global, int64_t row_stride, int rows, int thread,
                               Bf16* tile) {
  constexpr int kUnits = kColumns / 8;
  static_assert(kThreads % kUnits == 0);
  constexpr int kStep = kThreads / kUnits;  // rows
  const int first = thread / kUnits;
  const int column = thread % kUnits * 8;
  const Bf16* from = global + first * row_stride + column;
  Bf16* to = tile + first * TileStride(kColumns) + column;
  if (kStep <= kTileRows ? rows == kTileRows : false) {
    OSDN_UNROLL
    for (int row = 0; row < kTileRows; row += kStep) {
      CopyAsync16(to + row * TileStride(kColumns), from, true);
      from += kStep * row_stride;
    }
    return;
  }
  for (int row = first; row < kTileRows; row += kStep) {
    const bool valid = row < rows;
    CopyAsync16(to, valid ? from : global, valid);
    from += kStep * row_stride;
    to += kStep * TileStride(kColumns);
  }
}

struct alignas(16) Unit {
  uint32_t words[4];
};

// Rows [first, last) of a tile to device memory, by `kThreads` threads of which this is `thread`.
template <int kColumns, int kThreads>
OSDN_DEVICE void StoreTileRows(const Bf16* tile, int first, int last, int thread, Bf16* global,
                               int64_t row_stride) {
  constexpr int kUnits = kColumns / 8;
  static_assert(kThreads % kUnits == 0);
  constexpr int kStep = kThreads / kUnits;
  const int column = thread % kUnits * 8;
  for (int row = first + thread / kUnits; row < last; row += kStep) {
    *reinterpret_cast<Unit*>(global + row * row_stride + column) =
        *reinterpret_cast<const Unit*>(tile + row * TileStride(kColumns) + column);
  }
}

// A [16, 16] at (row, column) of a tile.
OSDN_DEVICE void LoadA(const Bf16* tile, int stride, int row, int column, uint32_t (&a)[4]) {
  const int matrix = Lane() / 8;
  LoadMatrices(a, tile + (row + matrix % 2 * 8 + Lane() % 8) * stride + column + matrix / 2 * 8);
}

// B [16 k, 16 n], two column tiles {b[0], b[1]}, {b[2], b[3]}, of a tile stored [n][k].
OSDN_DEVICE void LoadB(const Bf16* tile, int stride, int n, int k, uint32_t (&b)[4]) {
  const int matrix = Lane() / 8;
  LoadMatrices(b, tile + (n + matrix / 2 * 8 + Lane() % 8) * stride + k + matrix % 2 * 8);
}

// The same of a tile stored [k][n].
OSDN_DEVICE void LoadBTransposed(const Bf16* tile, int stride, int k, int n, uint32_t (&b)[4]) {
  const int matrix = Lane() / 8;
  LoadMatricesTransposed(b, tile + (k + matrix % 2 * 8 + Lane() % 8) * stride + n + matrix / 2 * 8);
}

// Where element i of an accumulator of the [16, 8] tile at (0, 0) lies.
OSDN_DEVICE int AccumulatorRow(int i) { return Lane() / 4 + i / 2 * 8; }
OSDN_DEVICE int AccumulatorColumn(int i) { return Lane() % 4 * 2 + i % 2; }

OSDN_DEVICE uint32_t* Words(Bf16* p) { return reinterpret_cast<uint32_t*>(p); }
OSDN_DEVICE const uint32_t* Words(const Bf16* p) { return reinterpret_cast<const uint32_t*>(p); }

// --- Products in nearly float32: x = high + low in bfloat16, low * low left out ---

struct SplitPair {
  uint32_t high;
  uint32_t low;
};

OSDN_DEVICE SplitPair Split(float first, float second) {
  SplitPair pair;
  pair.high = PackBf16(first, second);
  pair.low = PackBf16(first - LowBf16(pair.high), second - HighBf16(pair.high));
  return pair;
}

struct SplitA {
  uint32_t high[4];
  uint32_t low[4];

  OSDN_DEVICE void Set(int i, float first, float second) {
    const SplitPair pair = Split(first, second);
    high[i] = pair.high;
    low[i] = pair.low;
  }
};

// A at (row, column) of a float matrix with `stride` a row.
OSDN_DEVICE void LoadSplitA(const float* m, int stride, int row, int column, SplitA* a) {
  OSDN_UNROLL
  for (int i = 0; i < 4; ++i) {
    const float* at =
        m + (row + Lane() / 4 + i % 2 * 8) * stride + column + Lane() % 4 * 2 + i / 2 * 8;
    a->Set(i, at[0], at[1]);
  }
}

// d += A B, B [16, 8] at (k, n) of a float matrix [k][n].
OSDN_DEVICE void MmaSplit(const SplitA& a, const float* m, int stride, int k, int n,
                          float (&d)[4]) {
  const float* at = m + (k + Lane() % 4 * 2) * stride + n + Lane() / 4;
  const SplitPair b0 = Split(at[0], at[stride]);
  const SplitPair b1 = Split(at[8 * stride], at[9 * stride]);
  Mma(d, a.low, b0.high, b1.high);
  Mma(d, a.high, b0.low, b1.low);
  Mma(d, a.high, b0.high, b1.high);
}

// --- The inverse of a unit lower triangular matrix ---

constexpr int kInverseStride = kTileRows + 4;

// Row w of blocks: the 16x16 block on the diagonal by forward substitution, a column a lane.
OSDN_DEVICE void InvertDiagonalBlock(float* x, int w) {
  constexpr int kBlock = 16;
  float* block = x + (w * kBlock) * kInverseStride + w * kBlock;
  const int column = Lane() % kBlock;
  float solved[kBlock];
  OSDN_UNROLL
  for (int t = 0; t < kBlock; ++t) {
    float value = t == column ? 1.0F : 0.0F;
    OSDN_UNROLL
    for (int i = 0; i < t; ++i) value -= block[t * kInverseStride + i] * solved[i];
    solved[t] = value;
  }
  SyncWarp();
  if (Lane() < kBlock) {
    OSDN_UNROLL
    for (int t = 0; t < kBlock; ++t) block[t * kInverseStride + column] = solved[t];
  }
}

// Z = -(X22 M21) X11 for 16 rows: X22 and M21 begin at (row, row0) and (row0, column), X11 at
// (column, column); all square with kSize rows. z: columns [16 half, 16 half + 16) of the result.
template <int kSize>
OSDN_DEVICE void SolveOffDiagonal(const float* x, int row, int row0, int column, int half,
                                  float (&z)[2][4]) {
  float product[kSize / 8][4] = {};
  OSDN_UNROLL
  for (int k = 0; k < kSize; k += 16) {
    SplitA a;
    LoadSplitA(x, kInverseStride, row, row0 + k, &a);
    OSDN_UNROLL
    for (int n = 0; n < kSize; n += 8) {
      MmaSplit(a, x, kInverseStride, row0 + k, column + n, product[n / 8]);
    }
  }
  OSDN_UNROLL
  for (int n = 0; n < 2; ++n) {
    OSDN_UNROLL
    for (int i = 0; i < 4; ++i) z[n][i] = 0.0F;
  }
  OSDN_UNROLL
  for (int k = 0; k < kSize; k += 16) {
    SplitA a;
    OSDN_UNROLL
    for (int i = 0; i < 4; ++i) {
      const float* from = product[k / 8 + i / 2];
      a.Set(i, -from[i % 2 * 2], -from[i % 2 * 2 + 1]);
    }
    OSDN_UNROLL
    for (int n = 0; n < 2; ++n) {
      MmaSplit(a, x, kInverseStride, column + k, column + 16 * half + 8 * n, z[n]);
    }
  }
}

OSDN_DEVICE void StoreOffDiagonal(const float (&z)[2][4], int row, int column, float* x) {
  OSDN_UNROLL
  for (int n = 0; n < 2; ++n) {
    OSDN_UNROLL
    for (int i = 0; i < 4; ++i) {
      x[(row + AccumulatorRow(i)) * kInverseStride + column + 8 * n + AccumulatorColumn(i)] =
          z[n][i];
    }
  }
}

// x [64, kInverseStride]: below the diagonal M, becomes (I + M)^-1 on and below the diagonal. Of
// what is above only the halves of the 16x16 blocks on the diagonal become zero; the rest is
// rubbish. By the block's first 4 warps; all call it, and the caller synchronises before and after.
OSDN_DEVICE void InvertUnitLower(float* x) {
  const int w = Warp();
  if (w < 4) InvertDiagonalBlock(x, w);
  SyncThreads();
  float z[2][4];
  if (w < 2) {
    SolveOffDiagonal<16>(x, 32 * w + 16, 32 * w + 16, 32 * w, 0, z);
    SyncWarp();
    StoreOffDiagonal(z, 32 * w + 16, 32 * w, x);
  } else if (w == 2) {
    // The blocks above the diagonal inside X11 and X22 of the next step are read as zero.
    for (int i = Lane(); i < 2 * 16 * 16; i += kWarp) {
      const int row = i / 256 * 32 + i % 256 / 16;
      x[row * kInverseStride + i / 256 * 32 + 16 + i % 16] = 0.0F;
    }
  }
  SyncThreads();
  const int row = 32 + w % 2 * 16;
  if (w < 4) SolveOffDiagonal<32>(x, row, 32, 0, w / 2, z);
  SyncThreads();
  if (w < 4) StoreOffDiagonal(z, row, w / 2 * 16, x);
}

// Columns of a row that blocks on and below the diagonal have.
OSDN_DEVICE int LowerColumns(int row) { return row / 16 * 16 + 16; }

// --- Decays of a chunk ---

// sums[t] = sum of log_alpha over the chunk's rows before t, t = 0 to 64, in shared memory; by one
// warp. Rows behind the chunk's end do not decay.
OSDN_DEVICE void PrefixLogAlpha(const float* log_alpha, int64_t stride, int rows, float* sums) {
  const int t = 2 * Lane();
  const float first = t < rows ? log_alpha[t * stride] : 0.0F;
  const float second = t + 1 < rows ? log_alpha[(t + 1) * stride] : 0.0F;
  float inclusive = first + second;
  OSDN_UNROLL
  for (int delta = 1; delta < kWarp; delta *= 2) {
    const float below = ShuffleUp(inclusive, delta);
    if (Lane() >= delta) inclusive += below;
  }
  float before = ShuffleUp(inclusive, 1);
  if (Lane() == 0) before = 0.0F;
  sums[t] = before;
  sums[t + 1] = before + first;
  if (Lane() == kWarp - 1) sums[kTileRows] = inclusive;
}

// The product of alpha over the tokens strictly between j and t.
OSDN_DEVICE float DecayRatio(const float* sums, int t, int j) { return Exp(sums[t] - sums[j + 1]); }

}  // namespace osdn::kernels::cuda

#endif  // OSDN_KERNELS_CUDA_CHUNK_TILES_CUH_
