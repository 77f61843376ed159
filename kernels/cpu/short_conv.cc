#include "kernels/cpu/short_conv.h"

#include <cstring>

#include "kernels/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/short_conv.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// After foreach_target.h
#include "kernels/cpu/simd-inl.h"
#include "kernels/cpu/small_gemm-inl.h"

#ifndef OSDN_KERNELS_CPU_SHORT_CONV_CC_ONCE
#define OSDN_KERNELS_CPU_SHORT_CONV_CC_ONCE
namespace osdn::kernels::cpu {

// Channels a task computes: a few vectors, and taps and rows of a block stay in the L1 cache.
inline constexpr int64_t kChannelBlock = 256;
// Decoding spans a task computes with taps transposed once.
inline constexpr int64_t kSpanGroup = 8;

// Channels [begin, begin + count) of spans [first_span, last_span).
struct ConvBlock {
  int64_t channel = 0;
  int64_t count = 0;
  int64_t first_span = 0;
  int64_t last_span = 0;
};

// A thread's working memory, carved from a block of Floats(size) floats.
struct ConvScratch {
  ConvScratch(float* base, int64_t size)
      : taps(base), rows(reinterpret_cast<const float**>(base + (size + 1) * kChannelBlock)) {}
  static int64_t Floats(int64_t size) {
    return (size + 1) * kChannelBlock + size * int64_t{sizeof(float*) / sizeof(float)};
  }

  float* taps;         // [size, kChannelBlock], then the bias [kChannelBlock]
  const float** rows;  // [size]: the inputs that meet them at one token
};

}  // namespace osdn::kernels::cpu
#endif  // OSDN_KERNELS_CPU_SHORT_CONV_CC_ONCE

HWY_BEFORE_NAMESPACE();
namespace osdn::kernels::cpu {
namespace HWY_NAMESPACE {

// taps[j][c] = weight[channel + c][j], then the bias row. Channels past `count` are zero.
HWY_INLINE void TransposeTaps(const ShortConvArgs& args, const ConvBlock& block, float* taps) {
  if (block.count < kChannelBlock || args.bias == nullptr) {
    std::memset(taps, 0, (args.size + 1) * kChannelBlock * sizeof(float));
  }
  Transpose(args.weight + block.channel * args.size, block.count, args.size, args.size, taps,
            kChannelBlock);
  if (args.bias == nullptr) return;
  std::memcpy(taps + args.size * kChannelBlock, args.bias + block.channel,
              block.count * sizeof(float));
}

// Input row `index` of a span, counted from its first token; negative rows are in the tail.
HWY_INLINE const float* InputRow(const ShortConvArgs& args, const SequenceSpan& span,
                                 const float* tail, int64_t index) {
  return index >= 0 ? args.x + (span.row + index) * args.dim
                    : tail + (args.size - 1 + index) * args.dim;
}

// The vector of channels from `c` (in the block) of the token whose taps read rows[0 .. size).
template <Activation kActivation, class Load>
HWY_INLINE VF ConvolveVector(int64_t size, const float* taps, const float* const* rows, int64_t c,
                             const Load& load) {
  const DF d;
  VF sum = hn::Load(d, taps + size * kChannelBlock + c);
  for (int64_t j = 0; j < size; ++j) {
    sum = hn::MulAdd(hn::Load(d, taps + j * kChannelBlock + c), load(rows[j]), sum);
  }
  return Activate<kActivation>(sum);
}

template <Activation kActivation>
HWY_INLINE void ConvolveToken(int64_t size, int64_t count, const float* taps,
                              const float* const* rows, float* y) {
  const DF d;
  int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes) {
    const auto load = [d, c](const float* row) HWY_ATTR { return hn::LoadU(d, row + c); };
    hn::StoreU(ConvolveVector<kActivation>(size, taps, rows, c, load), d, y + c);
  }
  if (c == count) return;
  const size_t rest = (count - c) * sizeof(float);
  const auto load = [d, c, rest](const float* row) HWY_ATTR {
    HWY_ALIGN float padded[kLanes] = {};
    std::memcpy(padded, row + c, rest);
    return hn::Load(d, padded);
  };
  HWY_ALIGN float out[kLanes];
  hn::Store(ConvolveVector<kActivation>(size, taps, rows, c, load), d, out);
  std::memcpy(y + c, out, rest);
}

template <Activation kActivation>
HWY_INLINE void ConvolveSpan(const ShortConvArgs& args, const ConvBlock& block,
                             const ConvScratch& scratch, const SequenceSpan& span) {
  const float* tail = args.size > 1 ? args.tail.at(span.slot) : nullptr;
  for (int64_t t = 0; t < span.length; ++t) {
    for (int64_t j = 0; j < args.size; ++j) {
      scratch.rows[j] = InputRow(args, span, tail, t - (args.size - 1) + j) + block.channel;
    }
    ConvolveToken<kActivation>(args.size, block.count, scratch.taps, scratch.rows,
                               args.y + (span.row + t) * args.dim + block.channel);
  }
}

// Shifts the last size - 1 inputs of tail ++ x into the tail.
void UpdateTail(const ShortConvArgs& args, const ConvBlock& block, const SequenceSpan& span) {
  if (args.size == 1) return;
  float* tail = args.tail.at(span.slot);
  for (int64_t i = 0; i < args.size - 1; ++i) {
    const float* row = InputRow(args, span, tail, span.length - (args.size - 1) + i);
    std::memcpy(tail + i * args.dim + block.channel, row + block.channel,
                block.count * sizeof(float));
  }
}

template <Activation kActivation>
void ConvolveBlockAs(const ShortConvArgs& args, const ConvBlock& block,
                     const ConvScratch& scratch) {
  for (int64_t i = block.first_span; i < block.last_span; ++i) {
    ConvolveSpan<kActivation>(args, block, scratch, args.batch.spans[i]);
    UpdateTail(args, block, args.batch.spans[i]);
  }
}

void ConvolveBlockImpl(const ShortConvArgs& args, const ConvBlock& block,
                       const ConvScratch& scratch) {
  TransposeTaps(args, block, scratch.taps);
  switch (args.activation) {
    case Activation::kIdentity:
      return ConvolveBlockAs<Activation::kIdentity>(args, block, scratch);
    case Activation::kSilu:
      return ConvolveBlockAs<Activation::kSilu>(args, block, scratch);
    case Activation::kRelu:
      return ConvolveBlockAs<Activation::kRelu>(args, block, scratch);
    case Activation::kEluPlusOne:
      return ConvolveBlockAs<Activation::kEluPlusOne>(args, block, scratch);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace osdn::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace osdn::kernels::cpu {

HWY_EXPORT(ConvolveBlockImpl);

absl::Status ShortConv(const ShortConvArgs& args, const Threads& threads, ThreadScratch& scratch) {
  if (absl::Status status = scratch.Reserve(ConvScratch::Floats(args.size)); !status.ok()) {
    return status;
  }
  const auto convolve = HWY_DYNAMIC_DISPATCH(ConvolveBlockImpl);
  const auto spans = static_cast<int64_t>(args.batch.spans.size());
  const int64_t blocks = CeilDiv(args.dim, kChannelBlock);
  const int64_t groups = CeilDiv(spans, kSpanGroup);
  // A tap is a multiply-add; the activation is worth about 16.
  const int64_t work = args.batch.rows * args.dim * (args.size + 16);
  threads.For(blocks * groups, work, [&](int64_t task, int thread) {
    ConvBlock block;
    block.channel = task % blocks * kChannelBlock;
    block.count = Min(kChannelBlock, args.dim - block.channel);
    block.first_span = task / blocks * kSpanGroup;
    block.last_span = Min(spans, block.first_span + kSpanGroup);
    convolve(args, block, ConvScratch(scratch.at(thread), args.size));
  });
  return absl::OkStatus();
}

}  // namespace osdn::kernels::cpu
#endif  // HWY_ONCE
