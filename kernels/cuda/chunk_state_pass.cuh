// Phase 2, the part that goes from chunk to chunk: the state and the outputs.
//   U = U0 - W' S^T (W is stored negated);  S <- S + U^T Kt;  O = Q S_before^T + P U
//
// The rows of S (one a value channel) never meet: a state warp keeps 16 of them, [16, K] float32,
// in registers for the whole span and computes everything transposed (U^T [16, 64]), since the
// accumulators of one product are then the left operand of the next as they lie, with no way
// through shared memory and nothing to wait for from other state warps. Only U and S are on the
// path from chunk to chunk. Each state warp has an output warp beside it that computes O^T of the
// chunk before from copies of S and U in bfloat16, stores it, and brings in the operands of the
// chunks to come by cp.async, with one barrier a chunk.
#ifndef OSDN_KERNELS_CUDA_CHUNK_STATE_PASS_CUH_
#define OSDN_KERNELS_CUDA_CHUNK_STATE_PASS_CUH_

#include "kernels/cuda/chunk_tiles.cuh"

namespace osdn::kernels::cuda {

constexpr int kStateRows = 16;  // of S, a state warp

// Operands of the state warps and of the output warps, for one chunk.
template <int kK, int kWarps>
struct StateOperands {
  Bf16 w[kTileRows * TileStride(kK)];
  Bf16 kt[kTileRows * TileStride(kK)];
  Bf16 u[kTileRows * TileStride(kStateRows * kWarps)];
};
template <int kK>
struct OutputOperands {
  Bf16 q[kTileRows * TileStride(kK)];
  Bf16 p[kTileRows * TileStride(kTileRows)];
};
// What a state warp hands to its output warp: S before the chunk and U, as left operands.
template <int kK>
struct HandedOver {
  Unit s[kK / 16][kWarp];
  Unit u[kTileRows / 16][kWarp];
};

// kHanded: buffers of what is handed over; 1 where warps hand over to themselves.
template <int kK, int kWarps, int kStages, int kHanded = kStages>
struct alignas(16) StateShared {
  StateOperands<kK, kWarps> state[kStages];
  OutputOperands<kK> output[kStages];
  HandedOver<kK> handed[kHanded][kWarps];
};

// Of a block: where its columns lie.
struct StatePlace {
  int head;
  int64_t heads;
  int64_t value_stride;
  int64_t column;  // first of the block, in a row of values
};

template <int kK, int kWarps>
OSDN_DEVICE void LoadState(const ChunkArgs& args, ChunkPlan chunk, const StatePlace& at, int thread,
                           StateOperands<kK, kWarps>* to) {
  constexpr int kThreads = kWarps * kWarp;
  const int64_t row = chunk.row * at.heads + at.head;
  const int64_t key_stride = at.heads * kK;
  LoadTileAsync<kK, kThreads>(args.w + row * kK, key_stride, chunk.rows, thread, to->w);
  LoadTileAsync<kStateRows * kWarps, kThreads>(args.u + chunk.row * at.value_stride + at.column,
                                               at.value_stride, chunk.rows, thread, to->u);
  LoadTileAsync<kK, kThreads>(args.kt + row * kK, key_stride, chunk.rows, thread, to->kt);
}

template <int kK, int kWarps>
OSDN_DEVICE void LoadOutput(const ChunkArgs& args, ChunkPlan chunk, const StatePlace& at,
                            int thread, OutputOperands<kK>* to) {
  constexpr int kThreads = kWarps * kWarp;
  const int64_t row = chunk.row * at.heads + at.head;
  LoadTileAsync<kK, kThreads>(args.q + row * kK, at.heads * kK, chunk.rows, thread, to->q);
  LoadTileAsync<kTileRows, kThreads>(args.p + row * kTileRows, at.heads * kTileRows, chunk.rows,
                                     thread, to->p);
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
      auto* at = reinterpret_cast<Pack<float, 2>*>(slot + AccumulatorRow(i) * kK + 8 * n +
                                                   AccumulatorColumn(0));
      if (load) {
        const auto pair = *at;
        s[n][i] = pair.values[0];
        s[n][i + 1] = pair.values[1];
      } else {
        *at = Pack<float, 2>{{s[n][i], s[n][i + 1]}};
      }
    }
  }
}

// Accumulators of two neighbouring tiles as the left operand of the next product.
OSDN_DEVICE Unit AsOperand(const float (&left)[4], const float (&right)[4]) {
  return {{PackBf16(left[0], left[1]), PackBf16(left[2], left[3]), PackBf16(right[0], right[1]),
           PackBf16(right[2], right[3])}};
}

// U0^T: its tile is stored [t][v], and transposed it lies as the accumulators of U^T do.
template <int kColumns>
OSDN_DEVICE void StartU(const Bf16* tile, int first_column, float (&u)[8][4]) {
  const int matrix = Lane() / 8;
  OSDN_UNROLL
  for (int t = 0; t < kTileRows; t += 16) {
    uint32_t pairs[4];  // tiles (t, v), (t, v + 8), (t + 8, v), (t + 8, v + 8)
    LoadMatricesTransposed(pairs, tile + (t + matrix / 2 * 8 + Lane() % 8) * TileStride(kColumns) +
                                      first_column + matrix % 2 * 8);
    OSDN_UNROLL
    for (int i = 0; i < 4; ++i) {
      u[t / 8 + i / 2][i % 2 * 2] = LowBf16(pairs[i]);
      u[t / 8 + i / 2][i % 2 * 2 + 1] = HighBf16(pairs[i]);
    }
  }
}

// One chunk of a state warp.
template <int kK, int kWarps>
OSDN_DEVICE void AdvanceState(const StateOperands<kK, kWarps>& in, int warp, StateTiles<kK>& s,
                              HandedOver<kK>* out) {
  float u[8][4];
  StartU<kStateRows * kWarps>(in.u, kStateRows * warp, u);
  OSDN_UNROLL
  for (int k = 0; k < kK; k += 16) {
    const Unit a = AsOperand(s[k / 8], s[k / 8 + 1]);
    out->s[k / 16][Lane()] = a;
    OSDN_UNROLL
    for (int t = 0; t < kTileRows; t += 16) {
      uint32_t b[4];
      LoadB(in.w, TileStride(kK), t, k, b);
      Mma(u[t / 8], a.words, b[0], b[1]);
      Mma(u[t / 8 + 1], a.words, b[2], b[3]);
    }
  }
  OSDN_UNROLL
  for (int j = 0; j < kTileRows; j += 16) {
    const Unit a = AsOperand(u[j / 8], u[j / 8 + 1]);
    out->u[j / 16][Lane()] = a;
    OSDN_UNROLL
    for (int n = 0; n < kK; n += 16) {
      uint32_t b[4];
      LoadBTransposed(in.kt, TileStride(kK), j, n, b);
      Mma(s[n / 8], a.words, b[0], b[1]);
      Mma(s[n / 8 + 1], a.words, b[2], b[3]);
    }
  }
}

// O^T of a chunk, [16, 64].
template <int kK>
OSDN_DEVICE void ComputeOutputs(const OutputOperands<kK>& in, const HandedOver<kK>& handed,
                                float (&o)[8][4]) {
  OSDN_UNROLL
  for (int k = 0; k < kK; k += 16) {
    const Unit a = handed.s[k / 16][Lane()];
    OSDN_UNROLL
    for (int t = 0; t < kTileRows; t += 16) {
      uint32_t b[4];
      LoadB(in.q, TileStride(kK), t, k, b);
      Mma(o[t / 8], a.words, b[0], b[1]);
      Mma(o[t / 8 + 1], a.words, b[2], b[3]);
    }
  }
  OSDN_UNROLL
  for (int j = 0; j < kTileRows; j += 16) {
    const Unit a = handed.u[j / 16][Lane()];
    OSDN_UNROLL
    for (int t = j; t < kTileRows; t += 16) {  // P is zero before
      uint32_t b[4];
      LoadB(in.p, TileStride(kTileRows), t, j, b);
      Mma(o[t / 8], a.words, b[0], b[1]);
      Mma(o[t / 8 + 1], a.words, b[2], b[3]);
    }
  }
}

// O^T to rows [0, rows) of `out`, which is at the warp's 16 columns.
OSDN_DEVICE void StoreOutputs(const float (&o)[8][4], int rows, int64_t value_stride, Bf16* out) {
  const int first = Lane() / 4;
  Bf16* to = out + first * value_stride + Lane() % 4 * 2;
  OSDN_UNROLL
  for (int t = 0; t < kTileRows; t += 8) {
    const uint32_t left = TransposeMatrix(PackBf16(o[t / 8][0], o[t / 8][1]));
    const uint32_t right = TransposeMatrix(PackBf16(o[t / 8][2], o[t / 8][3]));
    if (t + first < rows) {
      *Words(to) = left;
      *Words(to + 8) = right;
    }
    to += 8 * value_stride;
  }
}

template <int kK, int kWarps, int kStages>
OSDN_DEVICE void RunStateWarp(const ChunkArgs& args, const SpanPlan& span, const StatePlace& at,
                              StateShared<kK, kWarps, kStages>* shared) {
  float* slot = args.s.at(span.slot) + (at.column + kStateRows * Warp()) * kK;
  StateTiles<kK> s;
  MoveState<kK>(slot, /*load=*/true, s);
  for (int i = 0; i < span.chunks; ++i) {
    SyncThreads();
    AdvanceState<kK, kWarps>(shared->state[i % kStages], Warp(), s,
                             &shared->handed[i % kStages][Warp()]);
    if (kStages == 1) {
      SyncThreads();
      SyncThreads();
    }
  }
  if (kStages > 1) SyncThreads();
  MoveState<kK>(slot, /*load=*/false, s);
}

template <int kK>
OSDN_DEVICE void WriteOutputs(const ChunkArgs& args, ChunkPlan chunk, const StatePlace& at,
                              int warp, const OutputOperands<kK>& in,
                              const HandedOver<kK>& handed) {
  float o[8][4] = {};
  ComputeOutputs<kK>(in, handed, o);
  StoreOutputs(o, chunk.rows, at.value_stride,
               args.o + chunk.row * at.value_stride + at.column + kStateRows * warp);
}

// With two stages. Chunk i's barrier finds its state operands in shared memory; behind it the state
// operands of the next chunk and the output operands of this one set out, and the outputs of the
// one before are computed.
template <int kK, int kWarps>
OSDN_DEVICE void RunOutputWarp(const ChunkArgs& args, const SpanPlan& span, const StatePlace& at,
                               StateShared<kK, kWarps, 2>* shared) {
  const int warp = Warp() - kWarps;
  const int thread = ThreadIndex() - kWarps * kWarp;
  const ChunkPlan* chunks = args.chunks + span.first_chunk;
  ChunkPlan before = {};
  ChunkPlan now = chunks[0];
  LoadState<kK, kWarps>(args, now, at, thread, &shared->state[0]);
  CopyAsyncCommit();
  for (int i = 0; i <= span.chunks; ++i) {
    const bool more = i + 1 < span.chunks;
    const ChunkPlan next = more ? chunks[i + 1] : ChunkPlan{};
    CopyAsyncWait<0>();
    SyncThreads();
    if (more) LoadState<kK, kWarps>(args, next, at, thread, &shared->state[(i + 1) % 2]);
    if (i < span.chunks) LoadOutput<kK, kWarps>(args, now, at, thread, &shared->output[i % 2]);
    CopyAsyncCommit();
    if (i > 0) {
      WriteOutputs<kK>(args, before, at, warp, shared->output[(i - 1) % 2],
                       shared->handed[(i - 1) % 2][warp]);
    }
    before = now;
    now = next;
  }
}

// With one stage: three barriers a chunk. All operands are there; the state warps are done; the
// output warps are.
template <int kK, int kWarps>
OSDN_DEVICE void RunOutputWarp(const ChunkArgs& args, const SpanPlan& span, const StatePlace& at,
                               StateShared<kK, kWarps, 1>* shared) {
  const int warp = Warp() - kWarps;
  const int thread = ThreadIndex() - kWarps * kWarp;
  const ChunkPlan* chunks = args.chunks + span.first_chunk;
  ChunkPlan now = chunks[0];
  LoadState<kK, kWarps>(args, now, at, thread, &shared->state[0]);
  LoadOutput<kK, kWarps>(args, now, at, thread, &shared->output[0]);
  CopyAsyncCommit();
  for (int i = 0; i < span.chunks; ++i) {
    const bool more = i + 1 < span.chunks;
    const ChunkPlan next = more ? chunks[i + 1] : ChunkPlan{};
    CopyAsyncWait<0>();
    SyncThreads();
    SyncThreads();
    if (more) LoadState<kK, kWarps>(args, next, at, thread, &shared->state[0]);
    WriteOutputs<kK>(args, now, at, warp, shared->output[0], shared->handed[0][warp]);
    SyncThreads();
    if (more) LoadOutput<kK, kWarps>(args, next, at, thread, &shared->output[0]);
    CopyAsyncCommit();
    now = next;
  }
}

// A warp that is its own output warp; two stages.
template <int kK, int kWarps>
OSDN_DEVICE void RunWholeWarp(const ChunkArgs& args, const SpanPlan& span, const StatePlace& at,
                              StateShared<kK, kWarps, 2, 1>* shared) {
  const ChunkPlan* chunks = args.chunks + span.first_chunk;
  float* slot = args.s.at(span.slot) + (at.column + kStateRows * Warp()) * kK;
  ChunkPlan now = chunks[0];
  LoadState<kK, kWarps>(args, now, at, ThreadIndex(), &shared->state[0]);
  LoadOutput<kK, kWarps>(args, now, at, ThreadIndex(), &shared->output[0]);
  CopyAsyncCommit();
  StateTiles<kK> s;
  MoveState<kK>(slot, /*load=*/true, s);
  for (int i = 0; i < span.chunks; ++i) {
    const bool more = i + 1 < span.chunks;
    const ChunkPlan next = more ? chunks[i + 1] : ChunkPlan{};
    CopyAsyncWait<0>();
    SyncThreads();  // this chunk's operands are there, and those of the one before have been read
    if (more) {
      LoadState<kK, kWarps>(args, next, at, ThreadIndex(), &shared->state[(i + 1) % 2]);
      LoadOutput<kK, kWarps>(args, next, at, ThreadIndex(), &shared->output[(i + 1) % 2]);
    }
    CopyAsyncCommit();
    HandedOver<kK>* handed = &shared->handed[0][Warp()];
    AdvanceState<kK, kWarps>(shared->state[i % 2], Warp(), s, handed);
    SyncWarp();
    WriteOutputs<kK>(args, now, at, Warp(), shared->output[i % 2], *handed);
    SyncWarp();
    now = next;
  }
  MoveState<kK>(slot, /*load=*/false, s);
}

template <int kWarps>
OSDN_DEVICE StatePlace PlaceOfBlock(int heads, int value_dim) {
  StatePlace at;
  at.head = BlockIndexY();
  at.heads = heads;
  at.value_stride = static_cast<int64_t>(heads) * value_dim;
  at.column = static_cast<int64_t>(at.head) * value_dim + BlockIndexZ() * kStateRows * kWarps;
  return at;
}

// Grid (spans, heads, value_dim / (16 kWarps)), 2 kWarps * 32 threads.
template <int kK, int kWarps, int kStages>
OSDN_DEVICE void SplitStatePassBody(const ChunkArgs& args, int value_dim, unsigned char* memory) {
  auto* shared = reinterpret_cast<StateShared<kK, kWarps, kStages>*>(memory);
  const SpanPlan span = args.spans[BlockIndexX()];
  const StatePlace at = PlaceOfBlock<kWarps>(args.heads, value_dim);
  if (Warp() < kWarps) {
    RunStateWarp<kK, kWarps, kStages>(args, span, at, shared);
  } else {
    RunOutputWarp<kK, kWarps>(args, span, at, shared);
  }
}

// The same with kWarps * 32 threads.
template <int kK, int kWarps>
OSDN_DEVICE void WholeStatePassBody(const ChunkArgs& args, int value_dim, unsigned char* memory) {
  auto* shared = reinterpret_cast<StateShared<kK, kWarps, 2, 1>*>(memory);
  const SpanPlan span = args.spans[BlockIndexX()];
  RunWholeWarp<kK, kWarps>(args, span, PlaceOfBlock<kWarps>(args.heads, value_dim), shared);
}

}  // namespace osdn::kernels::cuda

#endif  // OSDN_KERNELS_CUDA_CHUNK_STATE_PASS_CUH_
