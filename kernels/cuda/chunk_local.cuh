// Phase 2, what one chunk computes alone: write keys, M = beta K Kt^T below the diagonal,
// T = (I + M)^-1, W = T diag(beta) K, U = T diag(beta) V, P = tril(Q Kt^T).
#ifndef OSDN_KERNELS_CUDA_CHUNK_LOCAL_CUH_
#define OSDN_KERNELS_CUDA_CHUNK_LOCAL_CUH_

#include "kernels/cuda/chunk_tiles.cuh"

namespace osdn::kernels::cuda {

constexpr int kLocalThreads = 128;

template <int kK, int kV>
struct LocalShared {
  Bf16 k[kTileRows * TileStride(kK)];
  Bf16 kt[kTileRows * TileStride(kK)];
  Bf16 v[kTileRows * TileStride(kV)];
  union {
    Bf16 q[kTileRows * TileStride(kK)];
    Bf16 t[kTileRows * TileStride(kTileRows)];  // T diag(beta), once q is done with
  };
  float x[kTileRows * kInverseStride];
  float e[kK];
  float sums[kTileRows + 1];  // of log alpha
  float beta[kTileRows];
  float y[kTileRows];  // c (1 - beta s)
};

// Kt = d * K for the warp's 16 rows, d_t = a + A_t e + sum_j L[t, j] y_j kappa_j.
template <int kK, int kV>
OSDN_DEVICE void ComputeWriteKeys(const ChunkArgs& args, LocalShared<kK, kV>* shared) {
  const int first = 16 * Warp();
  const bool decays = args.log_alpha != nullptr;
  uint32_t a[4][4] = {};  // L[t, j] y_j, 16 columns each
  float own_decay[2];
  OSDN_UNROLL
  for (int i = 0; i < 2; ++i) {
    own_decay[i] = decays ? Exp(shared->sums[first + Lane() / 4 + 8 * i]) : 1.0F;
  }
  OSDN_UNROLL
  for (int block = 0; block < 4; ++block) {
    if (block > Warp()) continue;
    OSDN_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int t = first + Lane() / 4 + i % 2 * 8;
      float pair[2];
      OSDN_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int j = 16 * block + i / 2 * 8 + Lane() % 4 * 2 + half;
        pair[half] = 0.0F;
        if (j < t) {
          pair[half] = decays ? shared->y[j] * DecayRatio(shared->sums, t, j) : shared->y[j];
        }
      }
      a[block][i] = PackBf16(pair[0], pair[1]);
    }
  }
  for (int n = 0; n < kK; n += 16) {
    float change[2][4] = {};
    OSDN_UNROLL
    for (int block = 0; block < 4; ++block) {
      if (block > Warp()) continue;
      uint32_t b[4];
      LoadBTransposed(shared->k, TileStride(kK), 16 * block, n, b);
      OSDN_UNROLL
      for (int i = 0; i < 4; ++i) {
        b[i] = PackBf16(LowBf16(b[i]) * LowBf16(b[i]), HighBf16(b[i]) * HighBf16(b[i]));
      }
      Mma(change[0], a[block], b[0], b[1]);
      Mma(change[1], a[block], b[2], b[3]);
    }
    OSDN_UNROLL
    for (int tile = 0; tile < 2; ++tile) {
      OSDN_UNROLL
      for (int i = 0; i < 4; i += 2) {
        const int t = first + AccumulatorRow(i);
        const int column = n + 8 * tile + AccumulatorColumn(0);
        const uint32_t k = *Words(shared->k + t * TileStride(kK) + column);
        const float anchor = args.precond.anchor;
        const float d0 = anchor + (own_decay[i / 2] * shared->e[column] + change[tile][i]);
        const float d1 = anchor + (own_decay[i / 2] * shared->e[column + 1] + change[tile][i + 1]);
        *Words(shared->kt + t * TileStride(kK) + column) =
            PackBf16(d0 * LowBf16(k), d1 * HighBf16(k));
      }
    }
  }
}

// M into x, P to device memory: the warp's 16 rows, columns up to the diagonal.
template <int kK, int kV>
OSDN_DEVICE void ComputeScores(const ChunkArgs& args, const ChunkPlan& chunk, int head,
                               const Bf16* kt, LocalShared<kK, kV>* shared) {
  const int first = 16 * Warp();
  for (int n = 0; n <= first; n += 16) {
    float m[2][4] = {};
    float p[2][4] = {};
    OSDN_UNROLL
    for (int k = 0; k < kK; k += 16) {
      uint32_t keys[4];
      uint32_t queries[4];
      uint32_t b[4];
      LoadA(shared->k, TileStride(kK), first, k, keys);
      LoadA(shared->q, TileStride(kK), first, k, queries);
      LoadB(kt, TileStride(kK), n, k, b);
      Mma(m[0], keys, b[0], b[1]);
      Mma(m[1], keys, b[2], b[3]);
      Mma(p[0], queries, b[0], b[1]);
      Mma(p[1], queries, b[2], b[3]);
    }
    OSDN_UNROLL
    for (int tile = 0; tile < 2; ++tile) {
      OSDN_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int t = first + AccumulatorRow(i);
        const int j = n + 8 * tile + AccumulatorColumn(i);
        shared->x[t * kInverseStride + j] = j < t ? shared->beta[t] * m[tile][i] : 0.0F;
        if (j > t) p[tile][i] = 0.0F;
      }
      OSDN_UNROLL
      for (int i = 0; i < 4; i += 2) {
        const int t = first + AccumulatorRow(i);
        if (t >= chunk.rows) continue;
        Bf16* row =
            args.p + ((static_cast<int64_t>(chunk.row) + t) * args.heads + head) * kTileRows;
        *Words(row + n + 8 * tile + AccumulatorColumn(0)) = PackBf16(p[tile][i], p[tile][i + 1]);
      }
    }
  }
}

// The warp's 16 rows of scale * T X into `out`, X being a tile that other warps read too.
template <int kColumns>
OSDN_DEVICE void MultiplyByT(const Bf16* t, const ChunkPlan& chunk, float scale, Bf16* x, Bf16* out,
                             int64_t out_stride) {
  const int first = 16 * Warp();
  float product[kColumns / 8][4] = {};
  for (int k = 0; k <= first; k += 16) {
    uint32_t a[4];
    LoadA(t, TileStride(kTileRows), first, k, a);
    OSDN_UNROLL
    for (int n = 0; n < kColumns; n += 16) {
      uint32_t b[4];
      LoadBTransposed(x, TileStride(kColumns), k, n, b);
      Mma(product[n / 8], a, b[0], b[1]);
      Mma(product[n / 8 + 1], a, b[2], b[3]);
    }
  }
  SyncThreads();  // everyone has read x: its rows hold the result on its way out
  OSDN_UNROLL
  for (int n = 0; n < kColumns / 8; ++n) {
    OSDN_UNROLL
    for (int i = 0; i < 4; i += 2) {
      const int row = first + AccumulatorRow(i);
      *Words(x + row * TileStride(kColumns) + 8 * n + AccumulatorColumn(0)) =
          PackBf16(scale * product[n][i], scale * product[n][i + 1]);
    }
  }
  SyncWarp();
  const int last = first + 16 < chunk.rows ? first + 16 : chunk.rows;
  StoreTileRows<kColumns, kWarp>(x, first, last, Lane(), out, out_stride);
}

// Grid (chunks, heads), kLocalThreads.
template <int kK, int kV>
OSDN_DEVICE void LocalBody(const ChunkArgs& args, unsigned char* memory) {
  auto* shared = reinterpret_cast<LocalShared<kK, kV>*>(memory);
  const ChunkPlan chunk = args.chunks[BlockIndexX()];
  const int head = BlockIndexY();
  const bool enabled = args.precond.enabled;
  const int64_t place = static_cast<int64_t>(BlockIndexX()) * args.heads + head;
  const bool redone = enabled && args.redone[place] != 0;
  const int64_t first_row = (static_cast<int64_t>(chunk.row) * args.heads + head);
  const int64_t key_stride = static_cast<int64_t>(args.heads) * kK;
  const int64_t value_stride = static_cast<int64_t>(args.heads) * kV;
  LoadTileAsync<kK, kLocalThreads>(args.k + first_row * kK, key_stride, chunk.rows, shared->k);
  LoadTileAsync<kK, kLocalThreads>(args.q + first_row * kK, key_stride, chunk.rows, shared->q);
  LoadTileAsync<kV, kLocalThreads>(args.v + first_row * kV, value_stride, chunk.rows, shared->v);
  if (redone) {
    LoadTileAsync<kK, kLocalThreads>(args.kt + first_row * kK, key_stride, chunk.rows, shared->kt);
  }
  CopyAsyncCommit();
  if (ThreadIndex() < kTileRows) {
    const int t = ThreadIndex();
    const int64_t gate = first_row + static_cast<int64_t>(t) * args.heads;
    const bool valid = t < chunk.rows;
    const float beta = valid ? args.beta[gate] : 0.0F;
    shared->beta[t] = beta;
    if (enabled) shared->y[t] = valid ? args.c[gate] * (1.0F - beta * args.solution[gate]) : 0.0F;
  }
  if (enabled) {
    for (int i = ThreadIndex(); i < kK; i += kLocalThreads) {
      shared->e[i] = args.e_start[place * kK + i];
    }
    if (args.log_alpha != nullptr && Warp() == 3) {
      PrefixLogAlpha(args.log_alpha + first_row, args.heads, chunk.rows, shared->sums);
    }
  }
  CopyAsyncWait<0>();
  SyncThreads();
  const Bf16* kt = enabled ? shared->kt : shared->k;
  if (enabled && !redone) {
    ComputeWriteKeys(args, shared);
    SyncThreads();
    StoreTileRows<kK, kLocalThreads>(kt, 0, chunk.rows, ThreadIndex(), args.kt + first_row * kK,
                                     key_stride);
  }
  ComputeScores(args, chunk, head, kt, shared);
  SyncThreads();
  InvertUnitLower(shared->x);
  SyncThreads();
  for (int i = ThreadIndex(); i < kTileRows * kTileRows / 2; i += kLocalThreads) {
    const int row = i / (kTileRows / 2);
    const int j = i % (kTileRows / 2) * 2;
    const float* x = shared->x + row * kInverseStride;
    *Words(shared->t + row * TileStride(kTileRows) + j) =
        PackBf16(j <= row ? x[j] * shared->beta[j] : 0.0F,
                 j + 1 <= row ? x[j + 1] * shared->beta[j + 1] : 0.0F);
  }
  SyncThreads();
  MultiplyByT<kV>(shared->t, chunk, 1.0F, shared->v, args.u + first_row * kV, value_stride);
  MultiplyByT<kK>(shared->t, chunk, -1.0F, shared->k, args.w + first_row * kK, key_stride);
}

}  // namespace osdn::kernels::cuda

#endif  // OSDN_KERNELS_CUDA_CHUNK_LOCAL_CUH_
