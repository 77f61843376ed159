// Phase 1, the part that goes from chunk to chunk: e = d - a at each chunk's start and s within it.
//   s = s0 + W_d e;  y_j = L[end, j] c_j (1 - beta_j s_j);  e <- A_end e + kappa^T y
//
// The clip. No d of the chunk leaves [d_min, d_max] if a bound of each entry over the chunk stays
// inside: e plus all growth, e plus all decline, decay taken at its most and at its least. Where
// the bound does not hold the chunk is redone token by token with the clip, and its write keys are
// written here. The bound is safe and nearly always tight (a chunk moves d by about 64 eta / K), so
// the answer is exact either way.
#ifndef OSDN_KERNELS_CUDA_CHUNK_PRECOND_CUH_
#define OSDN_KERNELS_CUDA_CHUNK_PRECOND_CUH_

#include "kernels/cuda/chunk_tiles.cuh"

namespace osdn::kernels::cuda {

constexpr int kPrecondThreads = 256;

template <int kK>
struct PrecondShared {
  static constexpr int kPairs = kK / 2;
  static constexpr int kGroups = kPrecondThreads / kPairs;  // of rows

  float e[kK];
  float sums[kTileRows + 1];      // of log alpha
  float y[kTileRows];             // what each token adds, decayed to the chunk's end
  float growth[kTileRows];        // undecayed, where positive
  float decline[kTileRows];       // where negative
  float partial[kGroups][3][kK];  // e's change, by growth, by decline
};

// A thread's share of a chunk, read ahead.
template <int kK>
struct PrecondInputs {
  static constexpr int kUnits = kK / 32;  // of 8 elements, of a row of W_d for each of 4 threads
  static constexpr int kRows = kTileRows / PrecondShared<kK>::kGroups;

  uint32_t w[kUnits][4];
  uint32_t k[kRows];  // a pair of columns of these rows of k
  float s0;
  float c;
  float beta;
};

template <int kK>
OSDN_DEVICE void ReadAhead(const ChunkArgs& args, const ChunkPlan& chunk, int head,
                           PrecondInputs<kK>* inputs) {
  const int row = ThreadIndex() / 4;
  const int64_t token = static_cast<int64_t>(chunk.row) + row;
  const bool valid = row < chunk.rows;
  const uint32_t* w = Words(args.w_d + (token * args.heads + head) * kK);
  OSDN_UNROLL
  for (int u = 0; u < PrecondInputs<kK>::kUnits; ++u) {
    OSDN_UNROLL
    for (int i = 0; i < 4; ++i) {
      inputs->w[u][i] = valid ? w[(u * 4 + ThreadIndex() % 4) * 4 + i] : 0U;
    }
  }
  const int64_t gate = token * args.heads + head;
  inputs->s0 = valid ? args.s0[gate] : 0.0F;
  inputs->c = valid ? args.c[gate] : 0.0F;
  inputs->beta = valid ? args.beta[gate] : 0.0F;

  const int pair = ThreadIndex() % PrecondShared<kK>::kPairs;
  const int first = ThreadIndex() / PrecondShared<kK>::kPairs * PrecondInputs<kK>::kRows;
  const uint32_t* k = Words(args.k) +
                      ((static_cast<int64_t>(chunk.row) + first) * args.heads + head) * (kK / 2) +
                      pair;
  OSDN_UNROLL
  for (int i = 0; i < PrecondInputs<kK>::kRows; ++i) {
    inputs->k[i] = first + i < chunk.rows ? k[static_cast<int64_t>(i) * args.heads * (kK / 2)] : 0U;
  }
}

// s of the thread's row, told to `args`, and y.
template <int kK>
OSDN_DEVICE void SolveRow(const ChunkArgs& args, const ChunkPlan& chunk, int head, bool decays,
                          const PrecondInputs<kK>& inputs, PrecondShared<kK>* shared) {
  const int row = ThreadIndex() / 4;
  float parts[4] = {};
  OSDN_UNROLL
  for (int u = 0; u < PrecondInputs<kK>::kUnits; ++u) {
    const float* e = shared->e + (u * 4 + ThreadIndex() % 4) * 8;
    OSDN_UNROLL
    for (int i = 0; i < 4; ++i) {
      parts[i] += LowBf16(inputs.w[u][i]) * e[2 * i] + HighBf16(inputs.w[u][i]) * e[2 * i + 1];
    }
  }
  float s = (parts[0] + parts[1]) + (parts[2] + parts[3]);
  s += ShuffleXor(s, 1);
  s += ShuffleXor(s, 2);
  s += inputs.s0;
  if (ThreadIndex() % 4 != 0) return;
  if (row < chunk.rows) {
    args.solution[(static_cast<int64_t>(chunk.row) + row) * args.heads + head] = s;
  }
  float y = inputs.c * (1.0F - inputs.beta * s);
  // Undecayed for the bounds: they hold whatever comes between.
  shared->growth[row] = Max(y, 0.0F);
  shared->decline[row] = Min(y, 0.0F);
  if (decays) y *= DecayRatio(shared->sums, kTileRows, row);
  shared->y[row] = y;
}

template <int kK>
OSDN_DEVICE void SumColumns(const PrecondInputs<kK>& inputs, const PrecondShared<kK>& shared,
                            float (&sums)[3][2]) {
  const int first = ThreadIndex() / PrecondShared<kK>::kPairs * PrecondInputs<kK>::kRows;
  OSDN_UNROLL
  for (int i = 0; i < PrecondInputs<kK>::kRows; ++i) {
    const float low = LowBf16(inputs.k[i]);
    const float high = HighBf16(inputs.k[i]);
    const float kappa[2] = {low * low, high * high};
    const int row = first + i;
    OSDN_UNROLL
    for (int j = 0; j < 2; ++j) {
      sums[0][j] += shared.y[row] * kappa[j];
      sums[1][j] += shared.growth[row] * kappa[j];
      sums[2][j] += shared.decline[row] * kappa[j];
    }
  }
}

// The chunk token by token with the clip, by one warp; e in shared memory goes from the chunk's
// start to its end, and the write keys of its rows are written.
template <int kK>
OSDN_DEVICE void RedoChunk(const ChunkArgs& args, const ChunkPlan& chunk, int head,
                           PrecondShared<kK>* shared) {
  constexpr int kOwn = kK / kWarp;
  const PreconditionerParams& p = args.precond;
  float d[kOwn];
  OSDN_UNROLL
  for (int i = 0; i < kOwn; ++i) d[i] = p.anchor + shared->e[Lane() * kOwn + i];
  for (int row = 0; row < chunk.rows; ++row) {
    const int64_t gate = (static_cast<int64_t>(chunk.row) + row) * args.heads + head;
    const Bf16* k = args.k + gate * kK + Lane() * kOwn;
    Bf16* kt = args.kt + gate * kK + Lane() * kOwn;
    const float beta = args.beta[gate];
    const float alpha = args.log_alpha == nullptr ? 1.0F : Exp(args.log_alpha[gate]);
    float kappa[kOwn];
    float norm = 0.0F;
    float s = 0.0F;
    OSDN_UNROLL
    for (int i = 0; i < kOwn; ++i) {
      const float key = Load(k + i);
      Store(kt + i, d[i] * key);
      kappa[i] = key * key;
      norm += kappa[i];
      s += d[i] * kappa[i];
    }
    norm = WarpSum(norm);
    s = WarpSum(s);
    const float step = p.eta * beta * (1.0F - beta * s) / Max(norm, p.eps);
    OSDN_UNROLL
    for (int i = 0; i < kOwn; ++i) {
      const float next = p.anchor + alpha * (d[i] - p.anchor) + step * kappa[i];
      d[i] = Min(Max(next, p.d_min), p.d_max);
    }
  }
  OSDN_UNROLL
  for (int i = 0; i < kOwn; ++i) shared->e[Lane() * kOwn + i] = d[i] - p.anchor;
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

  PrecondInputs<kK> inputs;
  ReadAhead(args, args.chunks[span.first_chunk], head, &inputs);
  for (int i = 0; i < span.chunks; ++i) {
    const int index = span.first_chunk + i;
    const ChunkPlan chunk = args.chunks[index];
    const PrecondInputs<kK> now = inputs;
    if (i + 1 < span.chunks) ReadAhead(args, args.chunks[index + 1], head, &inputs);
    if (decays) {
      if (Warp() == 0) {
        PrefixLogAlpha(args.log_alpha + static_cast<int64_t>(chunk.row) * args.heads + head,
                       args.heads, chunk.rows, shared->sums);
      }
    }
    SyncThreads();
    const int64_t place = static_cast<int64_t>(index) * args.heads + head;
    if (column < kK) args.e_start[place * kK + column] = shared->e[column];
    SolveRow(args, chunk, head, decays, now, shared);
    SyncThreads();
    float sums[3][2] = {};
    SumColumns(now, *shared, sums);
    const int pair = column % PrecondShared<kK>::kPairs;
    const int group = column / PrecondShared<kK>::kPairs;
    OSDN_UNROLL
    for (int j = 0; j < 3; ++j) {
      shared->partial[group][j][2 * pair] = sums[j][0];
      shared->partial[group][j][2 * pair + 1] = sums[j][1];
    }
    SyncThreads();
    float next = 0.0F;
    bool left = false;
    if (column < kK) left = AdvanceEntry(args, decays, *shared, column, &next);
    const bool redo = SyncThreadsOr(left);
    if (!redo) {
      if (column < kK) shared->e[column] = next;
    } else if (Warp() == 0) {
      RedoChunk(args, chunk, head, shared);
    }
    if (column == 0) args.redone[place] = redo ? 1 : 0;
  }
  SyncThreads();
  if (column < kK) slot[column] = args.precond.anchor + shared->e[column];
}

}  // namespace osdn::kernels::cuda

#endif  // OSDN_KERNELS_CUDA_CHUNK_PRECOND_CUH_
