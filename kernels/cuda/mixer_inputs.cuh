// From projections to the mixer's inputs (short convolution, activation, norm, gates) and from its
// outputs to o_proj's input (output norm, gate), for prefill rows. Contracts: kernels/include.
#ifndef OSDN_KERNELS_CUDA_MIXER_INPUTS_CUH_
#define OSDN_KERNELS_CUDA_MIXER_INPUTS_CUH_

#include "kernels/cuda/mixer_args.h"
#include "kernels/cuda/primitives.cuh"

namespace osdn::kernels::cuda {

constexpr int kInputThreads = 128;
constexpr int kMaxTaps = 4;

OSDN_DEVICE float Activate(Activation activation, float x) {
  switch (activation) {
    case Activation::kIdentity:
      return x;
    case Activation::kSilu:
      return Silu(x);
    case Activation::kRelu:
      return Max(x, 0.0F);
    case Activation::kEluPlusOne:
      return x > 0.0F ? x + 1.0F : Exp(x);
  }
  return x;
}

// What a head's q or k is multiplied with, of the sum of its squares (l2) or elements (sum).
OSDN_DEVICE float QkFactor(QkNorm norm, float sum) {
  return norm == QkNorm::kL2 ? RsqrtExact(sum + 1e-6F) : 1.0F / sum;
}

OSDN_DEVICE float Beta(const InputArgs& input, int64_t gate) {
  return input.beta == nullptr ? input.beta_scale : Sigmoid(input.beta[gate]) * input.beta_scale;
}

OSDN_DEVICE float LogAlpha(const InputArgs& input, int64_t gate, int head) {
  const float bias = input.alpha_bias == nullptr ? 0.0F : input.alpha_bias[head];
  return LogSigmoid(input.log_alpha[gate] + bias);
}

// One head's channels of q, k or v along a run of rows: a lane has kDim / 32 neighbouring channels
// and keeps their last inputs in registers.
template <typename T, int kDim>
class ConvWindow {
 public:
  static constexpr int kOwn = kDim / kWarp;
  using Row = Pack<T, kOwn>;

  // `x` is the matrix [rows, channels], `head` of channels / kDim.
  OSDN_DEVICE ConvWindow(const ConvArgs& conv, int taps, const T* x, int64_t channels, int head,
                         const SpanPlan& span)
      : conv_(conv), taps_(taps), x_(x), channels_(channels), span_(span) {
    channel_ = head * kDim + Lane() * kOwn;
    OSDN_UNROLL
    for (int i = 0; i < kOwn; ++i) {
      bias_[i] = conv.bias == nullptr ? 0.0F : conv.bias[channel_ + i];
      OSDN_UNROLL
      for (int j = 0; j < kMaxTaps; ++j) {
        // The last tap multiplies the current input; those that are not there are zero, and without
        // a convolution the last is one.
        const int tap = j - (kMaxTaps - taps);
        weight_[j][i] = taps == 0  ? (j == kMaxTaps - 1 ? 1.0F : 0.0F)
                        : tap >= 0 ? conv.weight[(channel_ + i) * taps + tap]
                                   : 0.0F;
      }
    }
  }

  // Makes `row` of the packed batch the next one.
  OSDN_DEVICE void Seek(int row) {
    OSDN_UNROLL
    for (int j = 1; j < kMaxTaps; ++j) Read(row - kMaxTaps + j, &inputs_[j]);
  }

  // A row of the span as it lies, to be read well before it is needed.
  OSDN_DEVICE Row Fetch(int row) const {
    return *reinterpret_cast<const Row*>(x_ + row * channels_ + channel_);
  }

  // The convolution at the next row, without activation.
  OSDN_DEVICE void Next(const Row& row, float (&y)[kOwn]) {
    OSDN_UNROLL
    for (int i = 0; i < kOwn; ++i) {
      OSDN_UNROLL
      for (int j = 0; j + 1 < kMaxTaps; ++j) inputs_[j][i] = inputs_[j + 1][i];
      inputs_[kMaxTaps - 1][i] = Load(&row.values[i]);
      y[i] = bias_[i];
      OSDN_UNROLL
      for (int j = 0; j < kMaxTaps; ++j) y[i] += weight_[j][i] * inputs_[j][i];
    }
  }

  // The tail becomes the span's last inputs.
  OSDN_DEVICE void WriteTail() {
    float last[kMaxTaps][kOwn];
    const int end = span_.row + span_.length;
    OSDN_UNROLL
    for (int j = 1; j < kMaxTaps; ++j) Read(end - kMaxTaps + j, &last[j]);
    OSDN_UNROLL
    for (int j = 1; j < kMaxTaps; ++j) {
      const int place = j - (kMaxTaps - taps_);
      if (place < 1) continue;
      float* tail = conv_.tail.at(span_.slot) + (place - 1) * channels_ + channel_;
      OSDN_UNROLL
      for (int i = 0; i < kOwn; ++i) tail[i] = last[j][i];
    }
  }

 private:
  // Rows before the span are the tail's.
  OSDN_DEVICE void Read(int row, float (*to)[kOwn]) const {
    if (row >= span_.row) {
      LoadPack<T, kOwn>(x_ + row * channels_ + channel_, *to);
      return;
    }
    const int place = row - span_.row + taps_ - 1;
    OSDN_UNROLL
    for (int i = 0; i < kOwn; ++i) {
      (*to)[i] = place < 0 ? 0.0F : conv_.tail.at(span_.slot)[place * channels_ + channel_ + i];
    }
  }

  const ConvArgs& conv_;
  int taps_;
  const T* x_;
  int64_t channels_;
  SpanPlan span_;
  int64_t channel_;
  float bias_[kOwn];
  float weight_[kMaxTaps][kOwn];
  float inputs_[kMaxTaps][kOwn];
};

enum class InputKind { kQuery, kKey, kValue };

template <typename T, int kDim, InputKind kKind>
OSDN_DEVICE void PrepareRows(const InputArgs& input, const ConvArgs& conv, const T* x, T* y,
                             const SpanPlan& span, int head, int first, int last) {
  constexpr int kOwn = kDim / kWarp;
  const int64_t channels = static_cast<int64_t>(input.heads) * kDim;
  ConvWindow<T, kDim> window(conv, input.taps, x, channels, head, span);
  window.Seek(first);
  const Activation activation = kKind == InputKind::kValue ? Activation::kSilu : input.activation;
  constexpr int kAhead = 8;  // rows in flight
  for (int start = first; start < last; start += kAhead) {
    typename ConvWindow<T, kDim>::Row rows[kAhead];
    OSDN_UNROLL
    for (int i = 0; i < kAhead; ++i) {
      rows[i] = window.Fetch(start + i < last ? start + i : last - 1);
    }
    OSDN_UNROLL
    for (int i = 0; i < kAhead; ++i) {
      if (start + i >= last) break;
      float values[kOwn];
      window.Next(rows[i], values);
      float sum = 0.0F;
      OSDN_UNROLL
      for (int c = 0; c < kOwn; ++c) {
        values[c] = Activate(activation, values[c]);
        sum += input.norm == QkNorm::kL2 ? values[c] * values[c] : values[c];
      }
      if (kKind != InputKind::kValue) {
        float factor = QkFactor(input.norm, WarpSum(sum));
        if (kKind == InputKind::kQuery) factor *= input.q_scale;
        OSDN_UNROLL
        for (int c = 0; c < kOwn; ++c) values[c] *= factor;
      }
      StorePack<T, kOwn>(values, y + (start + i) * channels + head * kDim + Lane() * kOwn);
    }
  }
}

// Grid (chunks, heads), kInputThreads: a warp has 16 rows.
template <typename T, int kK, int kV>
OSDN_DEVICE void PrepareBody(const PrepareArgs<T>& args) {
  const ChunkPlan chunk = args.chunks[BlockIndexX()];
  const SpanPlan span = args.spans[chunk.span];
  const int head = BlockIndexY();
  const InputArgs& input = args.input;
  if (ThreadIndex() < chunk.rows) {
    const int64_t gate = (static_cast<int64_t>(chunk.row) + ThreadIndex()) * input.heads + head;
    args.beta_out[gate] = Beta(input, gate);
    if (input.log_alpha != nullptr) args.log_alpha_out[gate] = LogAlpha(input, gate, head);
  }
  constexpr int kRows = static_cast<int>(kChunk) / (kInputThreads / kWarp);
  const int first = chunk.row + kRows * Warp();
  const int end = chunk.row + chunk.rows;
  const int last = first + kRows < end ? first + kRows : end;
  if (first >= last) return;
  PrepareRows<T, kK, InputKind::kQuery>(input, input.conv_q, args.q, args.q_out, span, head, first,
                                        last);
  PrepareRows<T, kK, InputKind::kKey>(input, input.conv_k, args.k, args.k_out, span, head, first,
                                      last);
  PrepareRows<T, kV, InputKind::kValue>(input, input.conv_v, args.v, args.v_out, span, head, first,
                                        last);
}

// o = rmsnorm(o) * weight (* silu(gate)) of the warp's rows.
template <typename T, int kV>
OSDN_DEVICE void NormaliseOutputs(const PrepareArgs<T>& args, int head, int first, int last) {
  constexpr int kOwn = kV / kWarp;
  const InputArgs& input = args.input;
  float weight[kOwn];
  LoadPack<float, kOwn>(input.o_norm + Lane() * kOwn, weight);
  for (int row = first; row < last; ++row) {
    const int64_t place = (static_cast<int64_t>(row) * input.heads + head) * kV + Lane() * kOwn;
    float o[kOwn];
    LoadPack<T, kOwn>(args.o + place, o);
    float sum = 0.0F;
    OSDN_UNROLL
    for (int i = 0; i < kOwn; ++i) sum += o[i] * o[i];
    const float factor = RsqrtExact(WarpSum(sum) / kV + input.norm_eps);
    OSDN_UNROLL
    for (int i = 0; i < kOwn; ++i) o[i] *= factor * weight[i];
    if (args.gate != nullptr) {
      float gate[kOwn];
      LoadPack<T, kOwn>(args.gate + place, gate);
      OSDN_UNROLL
      for (int i = 0; i < kOwn; ++i) o[i] *= Silu(gate[i]);
    }
    StorePack<T, kOwn>(o, args.o + place);
  }
}

// Output norm of a chunk's rows, and after a span's last chunk its convolution tails (PrepareBody
// reads the old ones). Grid (chunks, heads), kInputThreads.
template <typename T, int kK, int kV>
OSDN_DEVICE void FinishBody(const PrepareArgs<T>& args) {
  const ChunkPlan chunk = args.chunks[BlockIndexX()];
  const SpanPlan span = args.spans[chunk.span];
  const int head = BlockIndexY();
  const InputArgs& input = args.input;
  constexpr int kRows = static_cast<int>(kChunk) / (kInputThreads / kWarp);
  const int first = chunk.row + kRows * Warp();
  const int end = chunk.row + chunk.rows;
  const int last = first + kRows < end ? first + kRows : end;
  NormaliseOutputs<T, kV>(args, head, first, last);
  if (input.taps < 2 || BlockIndexX() != span.first_chunk + span.chunks - 1) return;
  const int64_t keys = static_cast<int64_t>(input.heads) * kK;
  if (Warp() == 0) {
    ConvWindow<T, kK>(input.conv_q, input.taps, args.q, keys, head, span).WriteTail();
  } else if (Warp() == 1) {
    ConvWindow<T, kK>(input.conv_k, input.taps, args.k, keys, head, span).WriteTail();
  } else if (Warp() == 2) {
    const int64_t values = static_cast<int64_t>(input.heads) * kV;
    ConvWindow<T, kV>(input.conv_v, input.taps, args.v, values, head, span).WriteTail();
  }
}

}  // namespace osdn::kernels::cuda

#endif  // OSDN_KERNELS_CUDA_MIXER_INPUTS_CUH_
