// Phase 2, the part that goes from chunk to chunk: the state and the outputs.
//   U = U0 - W' S^T (W is stored negated);  O = Q S^T + P U;  S <- S + U^T Kt
//
// The rows of S (one a value channel) never meet: a warp keeps 16 of them, [16, K] float32, in
// registers for the whole span and computes everything transposed (U^T, O^T [16, 64]), since the
// accumulators of one product are then the left operand of the next as they lie, with no way
// through shared memory and nothing to wait for from other warps. The operands all warps of a block
// share (W, Q, Kt, P and U0's columns) come in by cp.async, kStages - 1 chunks ahead.
#ifndef OSDN_KERNELS_CUDA_CHUNK_STATE_PASS_CUH_
#define OSDN_KERNELS_CUDA_CHUNK_STATE_PASS_CUH_

#include "kernels/cuda/chunk_tiles.cuh"

namespace osdn::kernels::cuda {

constexpr int kStateRows = 16;  // of S, a warp

template <int kK, int kWarps>
struct StateStage {
  Bf16 w[kTileRows * TileStride(kK)];
  Bf16 q[kTileRows * TileStride(kK)];
  Bf16 kt[kTileRows * TileStride(kK)];
  Bf16 p[kTileRows * TileStride(kTileRows)];
  Bf16 u[kTileRows * TileStride(kStateRows * kWarps)];
};

template <int kK, int kWarps>
OSDN_DEVICE void LoadStage(const ChunkArgs& args, const ChunkPlan& chunk, int head,
                           int value_stride, int first_value, StateStage<kK, kWarps>* stage) {
  constexpr int kThreads = kWarps * kWarp;
  const int64_t row = static_cast<int64_t>(chunk.row) * args.heads + head;
  const int64_t key_stride = static_cast<int64_t>(args.heads) * kK;
  LoadTileAsync<kK, kThreads>(args.w + row * kK, key_stride, chunk.rows, stage->w);
  LoadTileAsync<kStateRows * kWarps, kThreads>(
      args.u + static_cast<int64_t>(chunk.row) * value_stride + first_value, value_stride,
      chunk.rows, stage->u);
  LoadTileAsync<kK, kThreads>(args.kt + row * kK, key_stride, chunk.rows, stage->kt);
  LoadTileAsync<kK, kThreads>(args.q + row * kK, key_stride, chunk.rows, stage->q);
  LoadTileAsync<kTileRows, kThreads>(
      args.p + row * kTileRows, static_cast<int64_t>(args.heads) * kTileRows, chunk.rows, stage->p);
}

// The warp's rows of S, as accumulators of [16, 8] tiles over the keys.
template <int kK>
using StateTiles = float[kK / 8][4];

template <int kK>
OSDN_DEVICE void MoveState(float* slot, bool load, StateTiles<kK>& s) {
  OSDN_UNROLL
  for (int n = 0; n < kK / 8; ++n) {
    OSDN_UNROLL
    for (int i = 0; i < 4; i += 2) {
      struct alignas(8) Pair {
        float first;
        float second;
      };
      auto* at =
          reinterpret_cast<Pair*>(slot + AccumulatorRow(i) * kK + 8 * n + AccumulatorColumn(0));
      if (load) {
        const Pair pair = *at;
        s[n][i] = pair.first;
        s[n][i + 1] = pair.second;
      } else {
        *at = Pair{s[n][i], s[n][i + 1]};
      }
    }
  }
}

// Accumulators of two neighbouring tiles as the left operand of the next product.
OSDN_DEVICE void AsOperand(const float (&left)[4], const float (&right)[4], uint32_t (&a)[4]) {
  a[0] = PackBf16(left[0], left[1]);
  a[1] = PackBf16(left[2], left[3]);
  a[2] = PackBf16(right[0], right[1]);
  a[3] = PackBf16(right[2], right[3]);
}

// U^T and the first part of O^T: products of the state before the chunk.
template <int kK, int kWarps>
OSDN_DEVICE void ReadState(const StateTiles<kK>& s, const StateStage<kK, kWarps>& stage,
                           float (&u)[8][4], float (&o)[8][4]) {
  // U0's tile is stored [t][v]: transposed it lies as the accumulators of U^T do.
  const int matrix = Lane() / 8;
  OSDN_UNROLL
  for (int t = 0; t < kTileRows; t += 16) {
    uint32_t pairs[4];  // tiles (t, v), (t, v + 8), (t + 8, v), (t + 8, v + 8)
    LoadMatricesTransposed(
        pairs, stage.u + (t + matrix / 2 * 8 + Lane() % 8) * TileStride(kStateRows * kWarps) +
                   kStateRows * Warp() + matrix % 2 * 8);
    OSDN_UNROLL
    for (int i = 0; i < 4; ++i) {
      u[t / 8 + i / 2][i % 2 * 2] = LowBf16(pairs[i]);
      u[t / 8 + i / 2][i % 2 * 2 + 1] = HighBf16(pairs[i]);
    }
  }
  OSDN_UNROLL
  for (int k = 0; k < kK; k += 16) {
    uint32_t a[4];
    AsOperand(s[k / 8], s[k / 8 + 1], a);
    OSDN_UNROLL
    for (int t = 0; t < kTileRows; t += 16) {
      uint32_t b[4];
      LoadB(stage.w, TileStride(kK), t, k, b);
      Mma(u[t / 8], a, b[0], b[1]);
      Mma(u[t / 8 + 1], a, b[2], b[3]);
      LoadB(stage.q, TileStride(kK), t, k, b);
      Mma(o[t / 8], a, b[0], b[1]);
      Mma(o[t / 8 + 1], a, b[2], b[3]);
    }
  }
}

// S += U^T Kt and O^T += U^T P^T.
template <int kK, int kWarps>
OSDN_DEVICE void WriteState(const float (&u)[8][4], const StateStage<kK, kWarps>& stage,
                            StateTiles<kK>& s, float (&o)[8][4]) {
  OSDN_UNROLL
  for (int j = 0; j < kTileRows; j += 16) {
    uint32_t a[4];
    AsOperand(u[j / 8], u[j / 8 + 1], a);
    OSDN_UNROLL
    for (int n = 0; n < kK; n += 16) {
      uint32_t b[4];
      LoadBTransposed(stage.kt, TileStride(kK), j, n, b);
      Mma(s[n / 8], a, b[0], b[1]);
      Mma(s[n / 8 + 1], a, b[2], b[3]);
    }
    OSDN_UNROLL
    for (int t = j; t < kTileRows; t += 16) {  // P is zero before
      uint32_t b[4];
      LoadB(stage.p, TileStride(kTileRows), t, j, b);
      Mma(o[t / 8], a, b[0], b[1]);
      Mma(o[t / 8 + 1], a, b[2], b[3]);
    }
  }
}

// O^T to rows [row, row + rows) of `o`, at the warp's 16 columns.
OSDN_DEVICE void StoreOutputs(const float (&o)[8][4], int rows, int64_t value_stride, Bf16* out) {
  OSDN_UNROLL
  for (int t = 0; t < kTileRows; t += 8) {
    OSDN_UNROLL
    for (int half = 0; half < 2; ++half) {  // of the columns
      const uint32_t pair = TransposeMatrix(PackBf16(o[t / 8][2 * half], o[t / 8][2 * half + 1]));
      const int row = t + Lane() / 4;
      if (row < rows) *Words(out + row * value_stride + 8 * half + Lane() % 4 * 2) = pair;
    }
  }
}

// Grid (spans, heads, value_dim / (16 kWarps)), kWarps * 32 threads; kStages stages of shared
// memory.
template <int kK, int kWarps, int kStages>
OSDN_DEVICE void StatePassBody(const ChunkArgs& args, int value_dim, unsigned char* memory) {
  auto* stages = reinterpret_cast<StateStage<kK, kWarps>*>(memory);
  const SpanPlan span = args.spans[BlockIndexX()];
  const int head = BlockIndexY();
  const int first_value = BlockIndexZ() * kStateRows * kWarps;
  const int value_stride = args.heads * value_dim;
  const int column = head * value_dim + first_value;
  const ChunkPlan* chunks = args.chunks + span.first_chunk;
  float* slot = args.s.at(span.slot) + (static_cast<int64_t>(column) + kStateRows * Warp()) * kK;
  StateTiles<kK> s;
  MoveState<kK>(slot, /*load=*/true, s);
  OSDN_UNROLL
  for (int i = 0; i < kStages - 1; ++i) {
    if (i < span.chunks) LoadStage(args, chunks[i], head, value_stride, column, stages + i);
    CopyAsyncCommit();
  }
  for (int i = 0; i < span.chunks; ++i) {
    if constexpr (kStages == 1) {
      SyncThreads();  // the stage has been read
      LoadStage(args, chunks[i], head, value_stride, column, stages);
      CopyAsyncCommit();
      CopyAsyncWait<0>();
      SyncThreads();
    } else {
      CopyAsyncWait<kStages - 2>();
      SyncThreads();  // this stage is there, and the one before has been read
      const int ahead = i + kStages - 1;
      if (ahead < span.chunks) {
        LoadStage(args, chunks[ahead], head, value_stride, column, stages + ahead % kStages);
      }
      CopyAsyncCommit();
    }
    const StateStage<kK, kWarps>& stage = stages[i % kStages];
    float u[8][4];
    float o[8][4] = {};
    ReadState<kK, kWarps>(s, stage, u, o);
    WriteState<kK, kWarps>(u, stage, s, o);
    StoreOutputs(
        o, chunks[i].rows, value_stride,
        args.o + static_cast<int64_t>(chunks[i].row) * value_stride + column + kStateRows * Warp());
  }
  MoveState<kK>(slot, /*load=*/false, s);
}

}  // namespace osdn::kernels::cuda

#endif  // OSDN_KERNELS_CUDA_CHUNK_STATE_PASS_CUH_
