#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/short_conv.h"

namespace osdn::kernels::cuda {
namespace {

constexpr int kThreads = 128;

// ShortConvArgs without the batch.
struct ConvParams {
  DevicePlan plan;
  int64_t dim;
  int64_t size;
  Activation activation;
  const float* weight;
  const float* bias;
  const float* x;
  SlotArray tail;
  float* y;
};

// The rows that a block works on, and where their span begins.
struct Piece {
  int32_t first_row;
  int32_t rows;
  int32_t span_row;  // first row of the span
  int32_t span_rows;
  int32_t slot;  // below 0: no state, nothing to do
};

// Decode rows first, then the chunks of prefill spans.
__device__ __forceinline__ Piece PieceAt(const DevicePlan& plan, int index) {
  if (index < plan.decode_rows) return {index, 1, index, 1, plan.decode_slots[index]};
  const ChunkPlan chunk = plan.chunks[index - plan.decode_rows];
  const SpanPlan span = plan.spans[chunk.span];
  return {chunk.row, chunk.rows, span.row, span.length, span.slot};
}

__device__ __forceinline__ Piece SpanAt(const DevicePlan& plan, int index) {
  if (index < plan.decode_rows) return {index, 1, index, 1, plan.decode_slots[index]};
  const SpanPlan span = plan.spans[index - plan.decode_rows];
  return {span.row, span.length, span.row, span.length, span.slot};
}

__device__ __forceinline__ float Activate(Activation activation, float x) {
  switch (activation) {
    case Activation::kIdentity:
      return x;
    case Activation::kSilu:
      return x / (1.0F + expf(-x));
    case Activation::kRelu:
      return x > 0 ? x : 0.0F;
    case Activation::kEluPlusOne:
      return x > 0 ? x + 1.0F : expf(x);
  }
  return x;
}

// Input `index` of a span, counted from its first token; negative ones are in the tail.
__device__ __forceinline__ float InputAt(const ConvParams& p, const Piece& piece, int64_t index,
                                         int64_t channel) {
  if (index >= 0) return p.x[(piece.span_row + index) * p.dim + channel];
  return p.tail.base[piece.slot * p.tail.slot_stride + (p.size - 1 + index) * p.dim + channel];
}

__global__ __launch_bounds__(kThreads) void Convolve(ConvParams p) {
  WaitForPrevious();
  const int64_t channel = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (channel >= p.dim) return;
  const Piece piece = PieceAt(p.plan, blockIdx.x);
  if (piece.slot < 0) return;
  for (int i = 0; i < piece.rows; ++i) {
    const int64_t row = piece.first_row + i;
    float sum = p.bias != nullptr ? p.bias[channel] : 0.0F;
    for (int64_t j = 0; j < p.size; ++j) {
      const int64_t index = row - piece.span_row - (p.size - 1) + j;
      sum = fmaf(p.weight[channel * p.size + j], InputAt(p, piece, index, channel), sum);
    }
    p.y[row * p.dim + channel] = Activate(p.activation, sum);
  }
}

// After Convolve: what it read of the tails may be overwritten now. A thread shifts its channel
// from the front, so a short span reads each old row before it is written.
__global__ __launch_bounds__(kThreads) void UpdateTails(ConvParams p) {
  WaitForPrevious();
  const int64_t channel = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (channel >= p.dim) return;
  const Piece span = SpanAt(p.plan, blockIdx.x);
  if (span.slot < 0) return;
  for (int64_t i = 0; i < p.size - 1; ++i) {
    const float value = InputAt(p, span, span.span_rows - (p.size - 1) + i, channel);
    p.tail.base[span.slot * p.tail.slot_stride + i * p.dim + channel] = value;
  }
}

}  // namespace

cudaError_t LaunchShortConv(const ShortConvArgs& args, const DevicePlan& plan,
                            cudaStream_t stream) {
  const ConvParams params = {plan,      args.dim, args.size, args.activation, args.weight,
                             args.bias, args.x,   args.tail, args.y};
  const auto blocks_y = static_cast<uint32_t>((args.dim + kThreads - 1) / kThreads);
  const auto pieces = static_cast<uint32_t>(plan.decode_rows + plan.num_chunks);
  if (pieces == 0) return cudaSuccess;
  const cudaError_t error = Launch({dim3(pieces, blocks_y), kThreads, 0, stream}, Convolve, params);
  if (error != cudaSuccess || args.size == 1) return error;
  const auto spans = static_cast<uint32_t>(plan.decode_rows + plan.num_spans);
  return Launch({dim3(spans, blocks_y), kThreads, 0, stream}, UpdateTails, params);
}

}  // namespace osdn::kernels::cuda
