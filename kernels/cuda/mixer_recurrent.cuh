// The recurrence token by token: decode, where convolution, norms and gates go along in the same
// launch, and float32 prefill. One block a row (or span) and head.
//
// Sixteen lanes share a row of S and read it by 16 bytes each: 256 bytes in a piece. S goes through
// registers once a token: read, S k and S q, rank-1 update, written. Sums over K are computed by
// each warp for itself, so that a token needs two barriers.
#ifndef OSDN_KERNELS_CUDA_MIXER_RECURRENT_CUH_
#define OSDN_KERNELS_CUDA_MIXER_RECURRENT_CUH_

#include "kernels/cuda/mixer_inputs.cuh"

namespace osdn::kernels::cuda {

constexpr int kRecurrentThreads = 256;
constexpr int kRowLanes = 16;  // that share a row of S

template <int kK, int kV>
struct RecurrentShared {
  float q[kK];  // activated, not normalised
  float k[kK];
  float v[kV];
  float d[kK];
  float o[kV];
};

// Sums over a head that everything else is made of; q and k before their norm.
struct HeadSums {
  float q_factor;  // q, k = factor * raw
  float k_factor;
  float key_norm;  // |k|^2
  float s;         // <d, k^2>
  float q_kt;      // <q, d k>
};

template <int kK>
OSDN_DEVICE HeadSums SumHead(const InputArgs& input, bool fused, bool enabled, const float* q,
                             const float* k, const float* d) {
  float q_norm = 0.0F;
  float k_norm = 0.0F;
  float squares = 0.0F;
  float s = 0.0F;
  float q_kt = 0.0F;
  OSDN_UNROLL
  for (int i = Lane(); i < kK; i += kWarp) {
    const float weight = enabled ? d[i] : 1.0F;
    q_norm += input.norm == QkNorm::kL2 ? q[i] * q[i] : q[i];
    k_norm += k[i];
    squares += k[i] * k[i];
    s += weight * k[i] * k[i];
    q_kt += weight * k[i] * q[i];
  }
  HeadSums sums = {1.0F, 1.0F, WarpSum(squares), WarpSum(s), WarpSum(q_kt)};
  if (!fused) return sums;
  sums.q_factor = QkFactor(input.norm, WarpSum(q_norm)) * input.q_scale;
  sums.k_factor = QkFactor(input.norm, input.norm == QkNorm::kL2 ? sums.key_norm : WarpSum(k_norm));
  sums.key_norm *= sums.k_factor * sums.k_factor;
  sums.s *= sums.k_factor * sums.k_factor;
  sums.q_kt *= sums.k_factor * sums.q_factor;
  return sums;
}

// One channel of a convolution at one token; the tail moves on.
OSDN_DEVICE float ConvStep(const ConvArgs& conv, int taps, int64_t channels, int64_t channel,
                           int slot, float x) {
  if (taps == 0) return x;
  const float* weight = conv.weight + channel * taps;
  float* tail = conv.tail.at(slot) + channel;
  float y = conv.bias == nullptr ? 0.0F : conv.bias[channel];
  float inputs[kMaxTaps];
  OSDN_UNROLL
  for (int j = 0; j + 1 < kMaxTaps; ++j) {
    if (j + 1 < taps) inputs[j] = tail[j * channels];
  }
  OSDN_UNROLL
  for (int j = 0; j + 1 < kMaxTaps; ++j) {
    if (j + 1 >= taps) continue;
    y += weight[j] * inputs[j];
    if (j > 0) tail[(j - 1) * channels] = inputs[j];
  }
  if (taps > 1) tail[(taps - 2) * channels] = x;
  return y + weight[taps - 1] * x;
}

// q, k and v of `row` into shared memory.
template <typename T, int kK, int kV>
OSDN_DEVICE void LoadToken(const RecurrentArgs<T>& args, int64_t row, int head, int slot,
                           RecurrentShared<kK, kV>* shared) {
  const InputArgs& input = args.input;
  const int64_t keys = static_cast<int64_t>(args.heads) * kK;
  const int64_t values = static_cast<int64_t>(args.heads) * kV;
  for (int i = ThreadIndex(); i < 2 * kK + kV; i += kRecurrentThreads) {
    const bool is_q = i < kK;
    const bool is_v = i >= 2 * kK;
    const int own = is_q ? i : is_v ? i - 2 * kK : i - kK;
    const int64_t channel = static_cast<int64_t>(head) * (is_v ? kV : kK) + own;
    float* to = (is_q ? shared->q : is_v ? shared->v : shared->k) + own;
    float x = Load((is_q   ? args.q
                    : is_v ? args.v
                           : args.k) +
                   row * (is_v ? values : keys) + channel);
    if (args.fused) {
      const ConvArgs& conv = is_q ? input.conv_q : is_v ? input.conv_v : input.conv_k;
      x = ConvStep(conv, input.taps, is_v ? values : keys, channel, slot, x);
      x = Activate(is_v ? Activation::kSilu : input.activation, x);
    }
    *to = x;
  }
}

template <int kK>
using StateRow = float[kK / kRowLanes];

// The lane's columns of a row of K.
template <int kK>
OSDN_DEVICE void ReadStateRow(const float* s, StateRow<kK>& row) {
  OSDN_UNROLL
  for (int i = 0; i < kK / (4 * kRowLanes); ++i) {
    float part[4];
    LoadPack<float, 4>(s + (kRowLanes * i + ThreadIndex() % kRowLanes) * 4, part);
    OSDN_UNROLL
    for (int j = 0; j < 4; ++j) row[4 * i + j] = part[j];
  }
}

// What all rows of a head meet, at the lane's columns.
template <int kK>
struct HeadVectors {
  StateRow<kK> q;  // raw, as in shared memory
  StateRow<kK> k;
  StateRow<kK> kt;  // the write key
};

struct TokenGates {
  float beta;
  float alpha;
};

// A row of S: o's element, and S in registers moves on.
template <int kK, int kV>
OSDN_DEVICE void AdvanceRow(const RecurrentShared<kK, kV>& shared, const HeadSums& sums, float beta,
                            const HeadVectors<kK>& head, int value, StateRow<kK>& row, float* o) {
  float read = 0.0F;
  float out = 0.0F;
  OSDN_UNROLL
  for (int i = 0; i < kK / kRowLanes; ++i) {
    read += row[i] * head.k[i];
    out += row[i] * head.q[i];
  }
  OSDN_UNROLL
  for (int mask = kRowLanes / 2; mask > 0; mask /= 2) {
    read += ShuffleXor(read, mask);
    out += ShuffleXor(out, mask);
  }
  const float u = beta * (shared.v[value] - sums.k_factor * read);
  *o = sums.q_factor * out + u * sums.q_kt;
  OSDN_UNROLL
  for (int i = 0; i < kK / kRowLanes; ++i) row[i] += u * head.kt[i];
}

template <int kK>
OSDN_DEVICE void WriteStateRow(const StateRow<kK>& row, float* s) {
  OSDN_UNROLL
  for (int i = 0; i < kK / (4 * kRowLanes); ++i) {
    float part[4];
    OSDN_UNROLL
    for (int j = 0; j < 4; ++j) part[j] = row[4 * i + j];
    StorePack<float, 4>(part, s + (kRowLanes * i + ThreadIndex() % kRowLanes) * 4);
  }
}

// d of the next token, and the token's outputs.
template <typename T, int kK, int kV>
OSDN_DEVICE void FinishToken(const RecurrentArgs<T>& args, int64_t row, int head,
                             const HeadSums& sums, const TokenGates& gates,
                             RecurrentShared<kK, kV>* shared) {
  const PreconditionerParams& p = args.precond;
  const int thread = ThreadIndex();
  if (p.enabled && thread < kK) {
    const float step =
        p.eta * gates.beta * (1.0F - gates.beta * sums.s) / Max(sums.key_norm, p.eps);
    const float key = sums.k_factor * shared->k[thread];
    const float next = p.anchor + gates.alpha * (shared->d[thread] - p.anchor) + step * key * key;
    shared->d[thread] = Min(Max(next, p.d_min), p.d_max);
  }
  float factor = 1.0F;
  if (args.fused) {
    float squares = 0.0F;
    OSDN_UNROLL
    for (int i = Lane(); i < kV; i += kWarp) squares += shared->o[i] * shared->o[i];
    factor = RsqrtExact(WarpSum(squares) / kV + args.input.norm_eps);
  }
  for (int i = thread; i < kV; i += kRecurrentThreads) {
    const int64_t place = (row * args.heads + head) * kV + i;
    float o = shared->o[i];
    if (args.fused) {
      o *= factor * args.input.o_norm[i];
      if (args.gate != nullptr) o *= Silu(Load(args.gate + place));
    }
    Store(args.o + place, o);
  }
}

template <typename T>
OSDN_DEVICE TokenGates LoadGates(const RecurrentArgs<T>& args, int64_t row, int head) {
  const InputArgs& input = args.input;
  const int64_t gate = row * args.heads + head;
  TokenGates gates = {1.0F, 1.0F};
  if (args.fused) {
    gates.beta = Beta(input, gate);
    if (input.log_alpha != nullptr) gates.alpha = Exp(LogAlpha(input, gate, head));
  } else {
    gates.beta = input.beta[gate];
    if (input.log_alpha != nullptr) gates.alpha = Exp(input.log_alpha[gate]);
  }
  return gates;
}

// Grid (rows or spans, heads), kRecurrentThreads.
template <typename T, int kK, int kV>
OSDN_DEVICE void RecurrentBody(const RecurrentArgs<T>& args, unsigned char* memory) {
  constexpr int kPassRows = kRecurrentThreads / kRowLanes;
  constexpr int kPasses = kV / kPassRows;
  // Rows of S a thread works on at a time, and as many on their way: 32 registers of both together,
  // so that three blocks share a multiprocessor.
  constexpr int kGroup = kK <= 128 ? 16 / (kK / kRowLanes) : 1;
  static_assert(kPasses % kGroup == 0);
  auto* shared = reinterpret_cast<RecurrentShared<kK, kV>*>(memory);
  const int head = BlockIndexY();
  SpanPlan span;
  if (args.decode_slots != nullptr) {
    span.row = BlockIndexX();
    span.length = 1;
    span.slot = args.decode_slots[BlockIndexX()];
    if (span.slot < 0) return;
  } else {
    span = args.spans[BlockIndexX()];
  }
  const bool enabled = args.precond.enabled;
  const int first = ThreadIndex() / kRowLanes;
  float* s = args.s.at(span.slot) + static_cast<int64_t>(head) * kV * kK;
  float* slot_d = args.d.at(span.slot) + head * kK;
  // Before anything that waits: S takes the longest to come.
  StateRow<kK> rows[2][kGroup];
  const auto read_group = [&](int group) {
    OSDN_UNROLL
    for (int i = 0; i < kGroup; ++i) {
      ReadStateRow<kK>(s + (first + (group * kGroup + i) * kPassRows) * kK, rows[group % 2][i]);
    }
  };
  read_group(0);
  if (enabled && ThreadIndex() < kK) shared->d[ThreadIndex()] = slot_d[ThreadIndex()];

  for (int t = 0; t < span.length; ++t) {
    const int64_t row = static_cast<int64_t>(span.row) + t;
    LoadToken(args, row, head, span.slot, shared);
    const TokenGates gates = LoadGates(args, row, head);
    SyncThreads();
    const HeadSums sums =
        SumHead<kK>(args.input, args.fused, enabled, shared->q, shared->k, shared->d);
    HeadVectors<kK> vectors;
    ReadStateRow<kK>(shared->q, vectors.q);
    ReadStateRow<kK>(shared->k, vectors.k);
    if (enabled) ReadStateRow<kK>(shared->d, vectors.kt);
    OSDN_UNROLL
    for (int i = 0; i < kK / kRowLanes; ++i) {
      vectors.kt[i] = sums.k_factor * vectors.k[i] * (enabled ? vectors.kt[i] : 1.0F);
    }
    if (t > 0) read_group(0);
    OSDN_UNROLL
    for (int group = 0; group < kPasses / kGroup; ++group) {
      if (group + 1 < kPasses / kGroup) read_group(group + 1);
      OSDN_UNROLL
      for (int i = 0; i < kGroup; ++i) {
        const int value = first + (group * kGroup + i) * kPassRows;
        StateRow<kK>& state = rows[group % 2][i];
        float o = 0.0F;
        AdvanceRow<kK, kV>(*shared, sums, gates.beta, vectors, value, state, &o);
        WriteStateRow<kK>(state, s + value * kK);
        if (ThreadIndex() % kRowLanes == 0) shared->o[value] = o;
      }
    }
    SyncThreads();
    FinishToken<T, kK, kV>(args, row, head, sums, gates, shared);
  }
  if (enabled && ThreadIndex() < kK) slot_d[ThreadIndex()] = shared->d[ThreadIndex()];
}

}  // namespace osdn::kernels::cuda

#endif  // OSDN_KERNELS_CUDA_MIXER_RECURRENT_CUH_
