// Phase 1, what does not depend on d: for each chunk and head, s = s0 + W_d e.
//   G = L * (kappa kappa^T) below the diagonal, X = (I + G diag(c beta))^-1,
//   s0 = X (a |k|^2 + G c), W_d = X diag(A) kappa      (docs/model.md section 2)
#ifndef OSDN_KERNELS_CUDA_CHUNK_GRAM_CUH_
#define OSDN_KERNELS_CUDA_CHUNK_GRAM_CUH_

#include "kernels/cuda/chunk_tiles.cuh"

namespace osdn::kernels::cuda {

constexpr int kGramThreads = 128;

template <int kK>
struct alignas(16) GramShared {
  Bf16 kappa[kTileRows * TileStride(kK)];
  Bf16 inverse[kTileRows * TileStride(kTileRows)];
  float x[kTileRows * kInverseStride];
  float rhs[kTileRows];
  float c[kTileRows];
  float c_beta[kTileRows];
  float norm[kTileRows];       // |k|^2
  float decay[kTileRows + 1];  // sums of log alpha
};

// kappa, its row sums and what is computed of them; kK / 8 lanes a row.
template <int kK>
OSDN_DEVICE void LoadKappa(const ChunkArgs& args, const ChunkPlan& chunk, int head,
                           GramShared<kK>* shared) {
  constexpr int kLanes = kK / 8;
  const int lane = ThreadIndex() % kLanes;
  OSDN_UNROLL
  for (int i = 0; i < kTileRows; i += kGramThreads / kLanes) {
    const int row = i + ThreadIndex() / kLanes;
    const int64_t gate = (static_cast<int64_t>(chunk.row) + row) * args.heads + head;
    const bool valid = row < chunk.rows;
    Unit keys = {};
    if (valid) keys = reinterpret_cast<const Unit*>(args.k + gate * kK)[lane];
    float norm = 0.0F;
    OSDN_UNROLL
    for (uint32_t& pair : keys.words) {
      const float first = LowBf16(pair) * LowBf16(pair);
      const float second = HighBf16(pair) * HighBf16(pair);
      norm += first + second;
      pair = PackBf16(first, second);
    }
    reinterpret_cast<Unit*>(shared->kappa + row * TileStride(kK))[lane] = keys;
    OSDN_UNROLL
    for (int mask = kLanes / 2; mask > 0; mask /= 2) norm += ShuffleXor(norm, mask);
    if (lane != 0) continue;
    const float beta = valid ? args.beta[gate] : 0.0F;
    const float c = args.precond.eta * beta / Max(norm, args.precond.eps);
    shared->norm[row] = norm;
    shared->c[row] = c;
    shared->c_beta[row] = c * beta;
    if (valid) args.c[gate] = c;
  }
}

// G diag(c beta) into x, and the right-hand side of s0.
template <int kK>
OSDN_DEVICE void ComputeGram(bool decays, float anchor, GramShared<kK>* shared) {
  const int first = 16 * Warp();
  float row_sums[2] = {0.0F, 0.0F};
  for (int n = 0; n <= first; n += 16) {
    float gram[2][4] = {};
    OSDN_UNROLL
    for (int k = 0; k < kK; k += 16) {
      uint32_t a[4];
      uint32_t b[4];
      LoadA(shared->kappa, TileStride(kK), first, k, a);
      LoadB(shared->kappa, TileStride(kK), n, k, b);
      Mma(gram[0], a, b[0], b[1]);
      Mma(gram[1], a, b[2], b[3]);
    }
    OSDN_UNROLL
    for (int tile = 0; tile < 2; ++tile) {
      OSDN_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int t = first + AccumulatorRow(i);
        const int j = n + 8 * tile + AccumulatorColumn(i);
        float value = 0.0F;
        if (j < t) value = decays ? gram[tile][i] * DecayRatio(shared->decay, t, j) : gram[tile][i];
        row_sums[i / 2] += value * shared->c[j];
        shared->x[t * kInverseStride + j] = value * shared->c_beta[j];
      }
    }
  }
  OSDN_UNROLL
  for (int i = 0; i < 2; ++i) {
    row_sums[i] += ShuffleXor(row_sums[i], 1);
    row_sums[i] += ShuffleXor(row_sums[i], 2);
    const int t = first + Lane() / 4 + 8 * i;
    if (Lane() % 4 == 0) shared->rhs[t] = anchor * shared->norm[t] + row_sums[i];
  }
}

// kappa becomes diag(A) kappa, the inverse gets its bfloat16 form, and s0 is written.
template <int kK>
OSDN_DEVICE void FinishInverse(const ChunkArgs& args, const ChunkPlan& chunk, int head,
                               GramShared<kK>* shared) {
  const int row = ThreadIndex() / 2;
  const int half = ThreadIndex() % 2;
  uint32_t* inverse = Words(shared->inverse + row * TileStride(kTileRows));
  const float* x = shared->x + row * kInverseStride;
  float s0 = 0.0F;
  for (int j = 4 * half; j < LowerColumns(row); j += 8) {
    const auto part = *reinterpret_cast<const Pack<float, 4>*>(x + j);
    const auto rhs = *reinterpret_cast<const Pack<float, 4>*>(shared->rhs + j);
    OSDN_UNROLL
    for (int i = 0; i < 4; ++i) s0 += part.values[i] * rhs.values[i];
    inverse[j / 2] = PackBf16(part.values[0], part.values[1]);
    inverse[j / 2 + 1] = PackBf16(part.values[2], part.values[3]);
  }
  s0 += ShuffleXor(s0, 1);
  if (half == 0 && row < chunk.rows) {
    args.s0[(chunk.row + row) * static_cast<int64_t>(args.heads) + head] = s0;
  }
  if (args.log_alpha == nullptr) return;
  const float decay = Exp(shared->decay[row]);
  uint32_t* kappa = Words(shared->kappa + row * TileStride(kK));
  for (int i = half; i < kK / 2; i += 2) {
    kappa[i] = PackBf16(decay * LowBf16(kappa[i]), decay * HighBf16(kappa[i]));
  }
}

// Grid (chunks, heads), kGramThreads.
template <int kK>
OSDN_DEVICE void GramBody(const ChunkArgs& args, unsigned char* memory) {
  auto* shared = reinterpret_cast<GramShared<kK>*>(memory);
  const ChunkPlan chunk = args.chunks[BlockIndexX()];
  const int head = BlockIndexY();
  const bool decays = args.log_alpha != nullptr;
  LoadKappa(args, chunk, head, shared);
  if (decays && Warp() == 0) {
    PrefixLogAlpha(args.log_alpha + static_cast<int64_t>(chunk.row) * args.heads + head, args.heads,
                   chunk.rows, shared->decay);
  }
  SyncThreads();
  ComputeGram(decays, args.precond.anchor, shared);
  SyncThreads();
  InvertUnitLower(shared->x);
  SyncThreads();
  FinishInverse(args, chunk, head, shared);
  SyncThreads();

  const int first = 16 * Warp();
  for (int n = 0; n < kK; n += 16) {
    float product[2][4] = {};
    for (int k = 0; k <= first; k += 16) {
      uint32_t a[4];
      uint32_t b[4];
      LoadA(shared->inverse, TileStride(kTileRows), first, k, a);
      LoadBTransposed(shared->kappa, TileStride(kK), k, n, b);
      Mma(product[0], a, b[0], b[1]);
      Mma(product[1], a, b[2], b[3]);
    }
    OSDN_UNROLL
    for (int tile = 0; tile < 2; ++tile) {
      OSDN_UNROLL
      for (int i = 0; i < 4; i += 2) {
        const int t = first + AccumulatorRow(i);
        if (t >= chunk.rows) continue;
        Bf16* row = args.w_d + (static_cast<int64_t>(chunk.row + t) * args.heads + head) * kK;
        *Words(row + n + 8 * tile + AccumulatorColumn(0)) =
            PackBf16(product[tile][i], product[tile][i + 1]);
      }
    }
  }
}

}  // namespace osdn::kernels::cuda

#endif  // OSDN_KERNELS_CUDA_CHUNK_GRAM_CUH_
