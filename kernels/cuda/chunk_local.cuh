// Phase 2, what one chunk computes alone: write keys, M = beta K Kt^T below the diagonal,
// T = (I + M)^-1, W = T diag(beta) K, U = T diag(beta) V, P = tril(Q Kt^T).
#ifndef OSDN_KERNELS_CUDA_CHUNK_LOCAL_CUH_
#define OSDN_KERNELS_CUDA_CHUNK_LOCAL_CUH_

#include "kernels/cuda/chunk_tiles.cuh"

namespace osdn::kernels::cuda {

constexpr int kLocalThreads = 256;  // two groups of 4 warps, which share out columns or products

template <int kK, int kV>
struct alignas(16) LocalShared {
  Bf16 k[kTileRows * TileStride(kK)];
  Bf16 kt[kTileRows * TileStride(kK)];
  Bf16 v[kTileRows * TileStride(kV)];
  union {
    Bf16 q[kTileRows * TileStride(kK)];
    Bf16 t[kTileRows * TileStride(kTileRows)];  // T diag(beta), once q is done with
  };
  float x[kTileRows * kInverseStride];
  float beta[kTileRows];
  float e[kK];
  float y[kTileRows];         // c (1 - beta s)
  float sums[kTileRows + 1];  // of log alpha
};

// The warp's 16 rows of a chunk, and which of the two warps that have them it is.
OSDN_DEVICE int RowBlock() { return Warp() % 4; }
OSDN_DEVICE int Group() { return Warp() / 4; }

// Kt = d * K for the warp's 16 rows and its group's half of the columns, d_t = a + A_t e + sum_j
// L[t, j] y_j kappa_j.
template <int kK, int kV>
OSDN_DEVICE void ComputeWriteKeys(const ChunkArgs& args, LocalShared<kK, kV>* shared) {
  const int first = 16 * RowBlock();
  const bool decays = args.log_alpha != nullptr;
  uint32_t a[4][4] = {};  // L[t, j] y_j, 16 columns each
  float own_decay[2];
  OSDN_UNROLL
  for (int i = 0; i < 2; ++i) {
    own_decay[i] = decays ? Exp(shared->sums[first + Lane() / 4 + 8 * i]) : 1.0F;
  }
  OSDN_UNROLL
  for (int block = 0; block < 4; ++block) {
    if (block > RowBlock()) continue;
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
  for (int n = Group() * (kK / 2); n < (Group() + 1) * (kK / 2); n += 16) {
    float change[2][4] = {};
    OSDN_UNROLL
    for (int block = 0; block < 4; ++block) {
      if (block > RowBlock()) continue;
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

// M into x by the first group, P to device memory by the second: the warp's 16 rows, columns up to
// the diagonal.
template <int kK, int kV>
OSDN_DEVICE void ComputeScores(const ChunkArgs& args, const ChunkPlan& chunk, int head,
                               const Bf16* kt, LocalShared<kK, kV>* shared) {
  const int first = 16 * RowBlock();
  const bool is_p = Group() == 1;
  const Bf16* left = is_p ? shared->q : shared->k;
  Bf16* p = args.p + ((static_cast<int64_t>(chunk.row) + first) * args.heads + head) * kTileRows;
  const int64_t p_stride = static_cast<int64_t>(args.heads) * kTileRows;
  for (int n = 0; n <= first; n += 16) {
    float scores[2][4] = {};
    OSDN_UNROLL
    for (int k = 0; k < kK; k += 16) {
      uint32_t a[4];
      uint32_t b[4];
      LoadA(left, TileStride(kK), first, k, a);
      LoadB(kt, TileStride(kK), n, k, b);
      Mma(scores[0], a, b[0], b[1]);
      Mma(scores[1], a, b[2], b[3]);
    }
    OSDN_UNROLL
    for (int tile = 0; tile < 2; ++tile) {
      OSDN_UNROLL
      for (int i = 0; i < 4; i += 2) {
        const int row = AccumulatorRow(i);
        const int t = first + row;
        const int j = n + 8 * tile + AccumulatorColumn(0);
        if (is_p) {
          if (t >= chunk.rows) continue;
          *Words(p + row * p_stride + j) =
              PackBf16(j <= t ? scores[tile][i] : 0.0F, j + 1 <= t ? scores[tile][i + 1] : 0.0F);
        } else {
          const float beta = shared->beta[t];
          float* m = shared->x + t * kInverseStride + j;
          m[0] = j < t ? beta * scores[tile][i] : 0.0F;
          m[1] = j + 1 < t ? beta * scores[tile][i + 1] : 0.0F;
        }
      }
    }
  }
}

// T diag(beta) as a tile; a quarter row a thread.
template <int kK, int kV>
OSDN_DEVICE void ScaleInverse(LocalShared<kK, kV>* shared) {
  const int row = ThreadIndex() / 4;
  const float* x = shared->x + row * kInverseStride;
  for (int j = ThreadIndex() % 4 * 4; j < LowerColumns(row); j += 16) {
    const auto part = *reinterpret_cast<const Pack<float, 4>*>(x + j);
    const auto beta = *reinterpret_cast<const Pack<float, 4>*>(shared->beta + j);
    uint32_t* t = Words(shared->t + row * TileStride(kTileRows) + j);
    t[0] = PackBf16(part.values[0] * beta.values[0], part.values[1] * beta.values[1]);
    t[1] = PackBf16(part.values[2] * beta.values[2], part.values[3] * beta.values[3]);
  }
}

// The warp's 16 rows of T X, X being a tile that the other warps of the group read too.
template <int kColumns, int kTiles>
OSDN_DEVICE void MultiplyByT(const Bf16* t, const Bf16* x, float (&product)[kTiles][4]) {
  const int first = 16 * RowBlock();
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
}

// The product on its way out takes the rows of the tile it was made of.
template <int kColumns, int kTiles>
OSDN_DEVICE void StoreProduct(const float (&product)[kTiles][4], const ChunkPlan& chunk,
                              float scale, Bf16* x, Bf16* out, int64_t out_stride) {
  const int first = 16 * RowBlock();
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
  LoadTileAsync<kK, kLocalThreads>(args.k + first_row * kK, key_stride, chunk.rows, ThreadIndex(),
                                   shared->k);
  LoadTileAsync<kK, kLocalThreads>(args.q + first_row * kK, key_stride, chunk.rows, ThreadIndex(),
                                   shared->q);
  LoadTileAsync<kV, kLocalThreads>(args.v + first_row * kV, value_stride, chunk.rows, ThreadIndex(),
                                   shared->v);
  if (redone) {
    LoadTileAsync<kK, kLocalThreads>(args.kt + first_row * kK, key_stride, chunk.rows,
                                     ThreadIndex(), shared->kt);
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
  ScaleInverse(shared);
  SyncThreads();
  float product[(kK > kV ? kK : kV) / 8][4] = {};
  if (Group() == 0) {
    MultiplyByT<kV>(shared->t, shared->v, product);
  } else {
    MultiplyByT<kK>(shared->t, shared->k, product);
  }
  SyncThreads();  // everyone has read v and k
  if (Group() == 0) {
    StoreProduct<kV>(product, chunk, 1.0F, shared->v, args.u + first_row * kV, value_stride);
  } else {
    StoreProduct<kK>(product, chunk, -1.0F, shared->k, args.w + first_row * kK, key_stride);
  }
}

}  // namespace osdn::kernels::cuda

#endif  // OSDN_KERNELS_CUDA_CHUNK_LOCAL_CUH_
