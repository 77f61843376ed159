// Phase 1, the part that goes from chunk to chunk: e = d - a at each chunk's start and s within it.
//   s = s0 + W_d e;  y_j = L[end, j] c_j (1 - beta_j s_j);  e <- A_end e + kappa^T y
//
// The clip. No d of the chunk leaves [d_min, d_max] if a bound of each entry over the chunk stays
// inside: e plus all growth, e plus all decline, decay taken at its most and at its least. Where
// the bound does not hold the chunk is redone with the clip, and its write keys are written here.
// The bound is safe and nearly always tight (a chunk moves d by about 64 eta / K), so the answer is
// exact either way.
//
// The redo. Given all s_j, each entry of d goes through the chunk by itself, clip and all; given
// all d_t, each s_j is a dot. Sweeps of the two repeat until no s changes. Each makes at least one
// more token exact, and since a token's weight in the next ones is about eta / K, three or four are
// enough in practice where token by token would take 64 dependent steps.
#ifndef OSDN_KERNELS_CUDA_CHUNK_PRECOND_CUH_
#define OSDN_KERNELS_CUDA_CHUNK_PRECOND_CUH_

#include "kernels/cuda/chunk_tiles.cuh"

namespace osdn::kernels::cuda {

constexpr int kPrecondThreads = 256;

template <int kK>
struct alignas(16) PrecondShared {
  static constexpr int kPairs = kK / 2;
  static constexpr int kGroups = kPrecondThreads / kPairs;  // of rows
  static constexpr int kRedoStride = kK + 4;

  Bf16 k[kTileRows * TileStride(kK)];  // of a chunk that is redone
  float d[kTileRows * kRedoStride];    // d_t of its tokens
  float e[kK];
  float y[kTileRows];        // what each token adds to e, decayed to the chunk's end
  float growth[kTileRows];   // undecayed, where positive
  float decline[kTileRows];  // where negative
  float c[kTileRows];
  float beta[kTileRows];
  float alpha[kTileRows];         // of a chunk that is redone
  float sums[kTileRows + 4];      // of log alpha
  float partial[kGroups][3][kK];  // e's change, by growth, by decline
};

// A thread's share of a chunk, read ahead.
template <int kK>
struct PrecondInputs {
  static constexpr int kUnits = kK / 32;  // of 8 elements, of a row of W_d for each of 4 threads
  static constexpr int kRows = kTileRows / PrecondShared<kK>::kGroups;

  Unit w[kUnits];
  uint32_t k[kRows];  // a pair of columns of these rows of k
  float s0;
  float c;
  float beta;
};

template <int kK>
OSDN_DEVICE void ReadAhead(const ChunkArgs& args, ChunkPlan chunk, int head,
                           PrecondInputs<kK>* inputs) {
  const int row = ThreadIndex() / 4;
  const int64_t gate = (static_cast<int64_t>(chunk.row) + row) * args.heads + head;
  const bool valid = row < chunk.rows;
  const auto* w = reinterpret_cast<const Unit*>(args.w_d + gate * kK) + ThreadIndex() % 4;
  OSDN_UNROLL
  for (int u = 0; u < PrecondInputs<kK>::kUnits; ++u) inputs->w[u] = valid ? w[4 * u] : Unit{};
  inputs->s0 = valid ? args.s0[gate] : 0.0F;
  inputs->c = valid ? args.c[gate] : 0.0F;
  inputs->beta = valid ? args.beta[gate] : 0.0F;

  const int pair = ThreadIndex() % PrecondShared<kK>::kPairs;
  const int first = ThreadIndex() / PrecondShared<kK>::kPairs * PrecondInputs<kK>::kRows;
  const int64_t stride = static_cast<int64_t>(args.heads) * (kK / 2);
  const uint32_t* k =
      Words(args.k) + (static_cast<int64_t>(chunk.row) + first) * stride + head * (kK / 2) + pair;
  OSDN_UNROLL
  for (int i = 0; i < PrecondInputs<kK>::kRows; ++i) {
    inputs->k[i] = first + i < chunk.rows ? *k : 0U;
    k += stride;
  }
}

// s of the thread's row, told to `args`, and y. Whether y is negative.
template <int kK>
OSDN_DEVICE bool SolveRow(const ChunkArgs& args, ChunkPlan chunk, int head, bool decays,
                          const PrecondInputs<kK>& inputs, PrecondShared<kK>* shared) {
  const int row = ThreadIndex() / 4;
  float parts[4] = {};
  OSDN_UNROLL
  for (int u = 0; u < PrecondInputs<kK>::kUnits; ++u) {
    const float* e = shared->e + (u * 4 + ThreadIndex() % 4) * 8;
    OSDN_UNROLL
    for (int i = 0; i < 4; ++i) {
      parts[i] +=
          LowBf16(inputs.w[u].words[i]) * e[2 * i] + HighBf16(inputs.w[u].words[i]) * e[2 * i + 1];
    }
  }
  float s = (parts[0] + parts[1]) + (parts[2] + parts[3]);
  s += ShuffleXor(s, 1);
  s += ShuffleXor(s, 2);
  s += inputs.s0;
  const float y = inputs.c * (1.0F - inputs.beta * s);
  if (ThreadIndex() % 4 == 0) {
    if (row < chunk.rows) {
      args.solution[(static_cast<int64_t>(chunk.row) + row) * args.heads + head] = s;
    }
    // Undecayed for the bounds: they hold whatever comes between.
    shared->growth[row] = Max(y, 0.0F);
    shared->decline[row] = Min(y, 0.0F);
    shared->y[row] = decays ? y * DecayRatio(shared->sums, kTileRows, row) : y;
  }
  return y < 0.0F;
}

// kappa^T x of the thread's pair of columns over its group of rows.
template <int kK>
OSDN_DEVICE void SumPair(const PrecondInputs<kK>& inputs, const float* x, float (&sums)[2]) {
  OSDN_UNROLL
  for (int i = 0; i < PrecondInputs<kK>::kRows; i += 4) {
    const auto part = *reinterpret_cast<const Pack<float, 4>*>(x + i);
    OSDN_UNROLL
    for (int j = 0; j < 4; ++j) {
      const float low = LowBf16(inputs.k[i + j]);
      const float high = HighBf16(inputs.k[i + j]);
      sums[0] += part.values[j] * (low * low);
      sums[1] += part.values[j] * (high * high);
    }
  }
}

// e's change, its growth and its decline. `decays` and `declines` say whether growth differs from
// the change and whether there is decline.
template <int kK>
OSDN_DEVICE void SumColumns(const PrecondInputs<kK>& inputs, bool decays, bool declines,
                            PrecondShared<kK>* shared) {
  const int pair = ThreadIndex() % PrecondShared<kK>::kPairs;
  const int group = ThreadIndex() / PrecondShared<kK>::kPairs;
  const int first = group * PrecondInputs<kK>::kRows;
  float sums[3][2] = {};
  SumPair<kK>(inputs, shared->y + first, sums[0]);
  if (decays || declines) {
    SumPair<kK>(inputs, shared->growth + first, sums[1]);
    SumPair<kK>(inputs, shared->decline + first, sums[2]);
  } else {
    sums[1][0] = sums[0][0];
    sums[1][1] = sums[0][1];
  }
  OSDN_UNROLL
  for (int i = 0; i < 3; ++i) {
    *reinterpret_cast<Pack<float, 2>*>(&shared->partial[group][i][2 * pair]) = {
        {sums[i][0], sums[i][1]}};
  }
}

// d of the column through the chunk, given every token's s; the d after it.
template <int kK>
OSDN_DEVICE float SweepColumn(const PreconditionerParams& p, int rows, int column,
                              PrecondShared<kK>* shared) {
  float d = p.anchor + shared->e[column];
  for (int t = 0; t < rows; ++t) {
    shared->d[t * PrecondShared<kK>::kRedoStride + column] = d;
    const float key = Load(shared->k + t * TileStride(kK) + column);
    const float next = p.anchor + shared->alpha[t] * (d - p.anchor) + shared->y[t] * (key * key);
    d = Min(Max(next, p.d_min), p.d_max);
  }
  return d;
}

// s of the thread's row, given every d; y follows. Whether it changed.
template <int kK>
OSDN_DEVICE bool SweepRow(PrecondShared<kK>* shared) {
  const int row = ThreadIndex() / 4;
  float parts[2] = {};
  for (int u = ThreadIndex() % 4; u < kK / 4; u += 4) {
    const float* d = shared->d + row * PrecondShared<kK>::kRedoStride + 4 * u;
    const uint32_t* k = Words(shared->k + row * TileStride(kK) + 4 * u);
    OSDN_UNROLL
    for (int i = 0; i < 2; ++i) {
      parts[i] += d[2 * i] * (LowBf16(k[i]) * LowBf16(k[i])) +
                  d[2 * i + 1] * (HighBf16(k[i]) * HighBf16(k[i]));
    }
  }
  float s = parts[0] + parts[1];
  s += ShuffleXor(s, 1);
  s += ShuffleXor(s, 2);
  const float y = shared->c[row] * (1.0F - shared->beta[row] * s);
  const bool changed = y != shared->y[row];
  SyncWarp();
  if (ThreadIndex() % 4 == 0) shared->y[row] = y;
  return changed;
}

// The chunk with the clip: e goes from its start to its end, and the write keys are written.
template <int kK>
OSDN_DEVICE void RedoChunk(const ChunkArgs& args, ChunkPlan chunk, int head,
                           const PrecondInputs<kK>& inputs, PrecondShared<kK>* shared) {
  const int64_t first = static_cast<int64_t>(chunk.row) * args.heads + head;
  const int64_t stride = static_cast<int64_t>(args.heads) * kK;
  LoadTileAsync<kK, kPrecondThreads>(args.k + first * kK, stride, chunk.rows, ThreadIndex(),
                                     shared->k);
  CopyAsyncCommit();
  const int row = ThreadIndex() / 4;
  if (ThreadIndex() % 4 == 0) {
    shared->c[row] = inputs.c;
    shared->beta[row] = inputs.beta;
    shared->y[row] = shared->growth[row] + shared->decline[row];  // a start as good as any
    shared->alpha[row] = args.log_alpha == nullptr || row >= chunk.rows
                             ? 1.0F
                             : Exp(args.log_alpha[first + static_cast<int64_t>(row) * args.heads]);
  }
  CopyAsyncWait<0>();
  SyncThreads();
  const int column = ThreadIndex();
  float end = 0.0F;
  // Rows behind the chunk's end have k = 0: whatever d is there, their s and y are zero.
  for (int i = ThreadIndex(); i < (kTileRows - chunk.rows) * kK; i += kPrecondThreads) {
    shared->d[(chunk.rows + i / kK) * PrecondShared<kK>::kRedoStride + i % kK] = 0.0F;
  }
  for (int sweep = 0; sweep <= kTileRows; ++sweep) {
    if (column < kK) end = SweepColumn(args.precond, chunk.rows, column, shared);
    SyncThreads();
    if (!SyncThreadsOr(SweepRow(shared))) break;
  }
  if (column < kK) shared->e[column] = end - args.precond.anchor;
  for (int i = ThreadIndex(); i < chunk.rows * (kK / 2); i += kPrecondThreads) {
    const int t = i / (kK / 2);
    const int pair = i % (kK / 2);
    const float* d = shared->d + t * PrecondShared<kK>::kRedoStride + 2 * pair;
    const uint32_t k = Words(shared->k + t * TileStride(kK))[pair];
    Words(args.kt + first * kK + t * stride)[pair] =
        PackBf16(d[0] * LowBf16(k), d[1] * HighBf16(k));
  }
}

// e at the chunk's end into `next`; whether an entry may have left the box on the way.
template <int kK>
OSDN_DEVICE bool AdvanceEntry(const ChunkArgs& args, bool decays, const PrecondShared<kK>& shared,
                              int column, float* next) {
  float sums[3] = {};
  OSDN_UNROLL
  for (int g = 0; g < PrecondShared<kK>::kGroups; ++g) {
    OSDN_UNROLL
    for (int i = 0; i < 3; ++i) sums[i] += shared.partial[g][i][column];
  }
  const PreconditionerParams& p = args.precond;
  const float e = shared.e[column];
  const float end = decays ? Exp(shared.sums[kTileRows]) : 1.0F;
  // d rounded as the slot keeps it: the same whether the prompt was cut here or not.
  const float d = p.anchor + (end * e + sums[0]);
  *next = d - p.anchor;
  const float highest = p.anchor + ((decays ? Max(e, 0.0F) : e) + sums[1]);
  const float lowest = p.anchor + ((decays ? Min(e, 0.0F) : e) + sums[2]);
  const bool inside = highest <= p.d_max && lowest >= p.d_min && d <= p.d_max && d >= p.d_min;
  return !inside;
}

// Grid (spans, heads), kPrecondThreads.
template <int kK>
OSDN_DEVICE void PrecondBody(const ChunkArgs& args, unsigned char* memory) {
  auto* shared = reinterpret_cast<PrecondShared<kK>*>(memory);
  const SpanPlan span = args.spans[BlockIndexX()];
  const int head = BlockIndexY();
  const bool decays = args.log_alpha != nullptr;
  float* slot = args.d.at(span.slot) + head * kK;
  const int column = ThreadIndex();
  if (column < kK) shared->e[column] = slot[column] - args.precond.anchor;

  // A chunk's inputs are read one chunk ahead, its place two.
  const ChunkPlan* chunks = args.chunks + span.first_chunk;
  ChunkPlan chunk = chunks[0];
  ChunkPlan next_chunk = chunks[span.chunks > 1 ? 1 : 0];
  PrecondInputs<kK> inputs;
  ReadAhead(args, chunk, head, &inputs);
  for (int i = 0; i < span.chunks; ++i) {
    const int index = span.first_chunk + i;
    const PrecondInputs<kK> now = inputs;
    const ChunkPlan later = chunks[i + 2 < span.chunks ? i + 2 : i];
    if (i + 1 < span.chunks) ReadAhead(args, next_chunk, head, &inputs);
    if (decays && Warp() == 0) {
      PrefixLogAlpha(args.log_alpha + static_cast<int64_t>(chunk.row) * args.heads + head,
                     args.heads, chunk.rows, shared->sums);
    }
    SyncThreads();
    const int64_t place = static_cast<int64_t>(index) * args.heads + head;
    if (column < kK) args.e_start[place * kK + column] = shared->e[column];
    const bool declines = SyncThreadsOr(SolveRow(args, chunk, head, decays, now, shared));
    SumColumns(now, decays, declines, shared);
    SyncThreads();
    float next = 0.0F;
    bool left = false;
    if (column < kK) left = AdvanceEntry(args, decays, *shared, column, &next);
    const bool redo = SyncThreadsOr(left);
    if (redo) {
      RedoChunk(args, chunk, head, now, shared);
    } else if (column < kK) {
      shared->e[column] = next;
    }
    if (column == 0) args.redone[place] = redo ? 1 : 0;
    chunk = next_chunk;
    next_chunk = later;
  }
  SyncThreads();
  if (column < kK) slot[column] = args.precond.anchor + shared->e[column];
}

}  // namespace osdn::kernels::cuda

#endif  // OSDN_KERNELS_CUDA_CHUNK_PRECOND_CUH_
