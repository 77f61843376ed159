#include <cuda_bf16.h>

#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/launch.cuh"

namespace osdn::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int64_t kMaxBlocks = 132 * 16;  // then threads take several elements

uint32_t Blocks(int64_t items, int64_t a_block) {
  const int64_t blocks = (items + a_block - 1) / a_block;
  return static_cast<uint32_t>(blocks < 1 ? 1 : blocks);
}

uint32_t LoopingBlocks(int64_t items) {
  const uint32_t blocks = Blocks(items, kThreads);
  return blocks < kMaxBlocks ? blocks : kMaxBlocks;
}

__device__ __forceinline__ float WarpSum(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xFFFFFFFF, value, offset);
  }
  return value;
}

__device__ __forceinline__ float Sigmoid(float x) { return 1.0F / (1.0F + expf(-x)); }
__device__ __forceinline__ float Silu(float x) { return x / (1.0F + expf(-x)); }

__device__ __forceinline__ float Activate(Activation activation, float x) {
  switch (activation) {
    case Activation::kIdentity:
      return x;
    case Activation::kSilu:
      return Silu(x);
    case Activation::kRelu:
      return x > 0 ? x : 0.0F;
    case Activation::kEluPlusOne:
      return x > 0 ? x + 1.0F : expf(x);
  }
  return x;
}

__device__ __forceinline__ void Write(void* y, ActivationType type, int64_t at, float value) {
  if (type == ActivationType::kBF16) {
    static_cast<__nv_bfloat16*>(y)[at] = __float2bfloat16_rn(value);
  } else {
    static_cast<float*>(y)[at] = value;
  }
}

// A block a row.
__global__ __launch_bounds__(kThreads) void RowNorm(RowNormArgs args) {
  __shared__ float sums[kWarps];
  WaitForPrevious();
  AllowNext();
  const float* x = args.x + blockIdx.x * args.dim;
  float factor = 1.0F;
  if (args.weight != nullptr) {
    float sum = 0;
    for (int64_t i = threadIdx.x; i < args.dim; i += kThreads) sum += x[i] * x[i];
    sum = WarpSum(sum);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) sum += sums[warp];
    factor = 1.0F / sqrtf(sum / static_cast<float>(args.dim) + args.eps);
  }
  const int64_t first = blockIdx.x * args.y_stride;
  for (int64_t i = threadIdx.x; i < args.y_stride; i += kThreads) {
    float value = 0;
    if (i < args.dim) value = args.weight != nullptr ? x[i] * factor * args.weight[i] : x[i];
    Write(args.y, args.y_type, first + i, value);
  }
}

// The same for rows that 16-byte accesses fit.
__global__ __launch_bounds__(kThreads) void RowNormVectors(RowNormArgs args) {
  constexpr int kHeld = 4;  // vectors a thread keeps between the two passes: dims up to 4096
  __shared__ float sums[kWarps];
  WaitForPrevious();
  AllowNext();
  const auto* x = reinterpret_cast<const float4*>(args.x + blockIdx.x * args.dim);
  const auto vectors = static_cast<int>(args.dim / 4);
  float4 held[kHeld];
  float sum = 0;
#pragma unroll
  for (int u = 0; u < kHeld; ++u) {
    const int i = threadIdx.x + u * kThreads;
    if (i >= vectors) continue;
    held[u] = x[i];
  }
  float factor = 1.0F;
  if (args.weight != nullptr) {
#pragma unroll
    for (int u = 0; u < kHeld; ++u) {
      if (static_cast<int>(threadIdx.x) + u * kThreads >= vectors) continue;
      const float4 v = held[u];
      sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
    sum = WarpSum(sum);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) sum += sums[warp];
    factor = 1.0F / sqrtf(sum / static_cast<float>(args.dim) + args.eps);
  }
#pragma unroll
  for (int u = 0; u < kHeld; ++u) {
    const int i = threadIdx.x + u * kThreads;
    if (i >= vectors) continue;
    float4 v = held[u];
    if (args.weight != nullptr) {
      const float4 w = reinterpret_cast<const float4*>(args.weight)[i];
      v = {v.x * factor * w.x, v.y * factor * w.y, v.z * factor * w.z, v.w * factor * w.w};
    }
    if (args.y_type == ActivationType::kF32) {
      reinterpret_cast<float4*>(static_cast<float*>(args.y) + blockIdx.x * args.y_stride)[i] = v;
      continue;
    }
    const __nv_bfloat162 low = __floats2bfloat162_rn(v.x, v.y);
    const __nv_bfloat162 high = __floats2bfloat162_rn(v.z, v.w);
    uint2 packed;
    packed.x = *reinterpret_cast<const uint32_t*>(&low);
    packed.y = *reinterpret_cast<const uint32_t*>(&high);
    reinterpret_cast<uint2*>(static_cast<__nv_bfloat16*>(args.y) + blockIdx.x * args.y_stride)[i] =
        packed;
  }
}

// A warp a head of a row.
__global__ __launch_bounds__(kThreads) void OutputNorm(OutputNormArgs args) {
  WaitForPrevious();
  AllowNext();
  const int64_t head = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (head >= args.rows * args.heads) return;
  const int lane = threadIdx.x % 32;
  float* o = args.o + head * args.value_dim;
  float sum = 0;
  for (int64_t i = lane; i < args.value_dim; i += 32) sum += o[i] * o[i];
  const float mean = WarpSum(sum) / static_cast<float>(args.value_dim);
  const float factor = 1.0F / sqrtf(mean + args.eps);
  for (int64_t i = lane; i < args.value_dim; i += 32) {
    float value = o[i] * factor * args.weight[i];
    if (args.gate != nullptr) value *= Silu(args.gate[head * args.value_dim + i]);
    o[i] = value;
  }
}

// A warp a head of a row of q (blockIdx.y 0) or of k (1).
__global__ __launch_bounds__(kThreads) void QkPrepare(QkPrepareArgs args) {
  WaitForPrevious();
  AllowNext();
  const int64_t head = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (head >= args.rows * args.heads) return;
  const int lane = threadIdx.x % 32;
  const bool is_q = blockIdx.y == 0;
  float* x = (is_q ? args.q : args.k) + head * args.key_dim;
  const bool l2 = args.norm == QkNorm::kL2;
  float sum = 0;
  for (int64_t i = lane; i < args.key_dim; i += 32) {
    const float v = Activate(args.activation, x[i]);
    sum += l2 ? v * v : v;
  }
  sum = WarpSum(sum);
  float factor = l2 ? 1.0F / sqrtf(sum + 1e-6F) : 1.0F / sum;
  if (is_q) factor *= args.q_scale;
  for (int64_t i = lane; i < args.key_dim; i += 32) {
    x[i] = Activate(args.activation, x[i]) * factor;
  }
}

__global__ __launch_bounds__(kThreads) void Gates(GateArgs args) {
  WaitForPrevious();
  AllowNext();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= args.rows * args.heads) return;
  args.beta[i] = Sigmoid(args.beta[i]) * args.beta_scale;
  if (args.log_alpha == nullptr) return;
  const float bias = args.alpha_bias != nullptr ? args.alpha_bias[i % args.heads] : 0.0F;
  const float x = args.log_alpha[i] + bias;
  args.log_alpha[i] = fminf(x, 0.0F) - log1pf(expf(-fabsf(x)));
}

__global__ __launch_bounds__(kThreads) void FillWith(float* dst, float value, int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += step) {
    dst[i] = value;
  }
}

__global__ __launch_bounds__(kThreads) void SwiGluF32(const float* gate, const float* up, float* y,
                                                      int64_t count) {
  WaitForPrevious();
  AllowNext();
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += step) {
    y[i] = Silu(gate[i]) * up[i];
  }
}

__device__ __forceinline__ uint32_t SwiGluPair(uint32_t gate, uint32_t up) {
  const float low = Silu(__uint_as_float(gate << 16)) * __uint_as_float(up << 16);
  const float high = Silu(__uint_as_float(gate & 0xFFFF0000)) * __uint_as_float(up & 0xFFFF0000);
  const __nv_bfloat162 packed = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&packed);
}

// 8 elements a thread; the last count % 8 by the first threads.
__global__ __launch_bounds__(kThreads) void SwiGluBf16(const __nv_bfloat16* gate,
                                                       const __nv_bfloat16* up, __nv_bfloat16* y,
                                                       int64_t count) {
  WaitForPrevious();
  AllowNext();
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  for (int64_t i = first; i < count / 8; i += step) {
    const uint4 g = reinterpret_cast<const uint4*>(gate)[i];
    const uint4 u = reinterpret_cast<const uint4*>(up)[i];
    reinterpret_cast<uint4*>(y)[i] = {SwiGluPair(g.x, u.x), SwiGluPair(g.y, u.y),
                                      SwiGluPair(g.z, u.z), SwiGluPair(g.w, u.w)};
  }
  const int64_t rest = count / 8 * 8 + first;
  if (rest < count) {
    y[rest] = __float2bfloat16_rn(Silu(__bfloat162float(gate[rest])) * __bfloat162float(up[rest]));
  }
}

__global__ __launch_bounds__(kThreads) void GatherRows(const int64_t* indices, int64_t dim,
                                                       const float* x, float* y) {
  WaitForPrevious();
  AllowNext();
  const float* from = x + indices[blockIdx.x] * dim;
  float* to = y + blockIdx.x * dim;
  for (int64_t i = threadIdx.x; i < dim; i += kThreads) to[i] = from[i];
}

bool Aligned16(const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; }

}  // namespace

cudaError_t LaunchOutputNorm(const OutputNormArgs& args, cudaStream_t stream) {
  return Launch({Blocks(args.rows * args.heads, kWarps), kThreads, 0, stream}, OutputNorm, args);
}

cudaError_t LaunchQkPrepare(const QkPrepareArgs& args, cudaStream_t stream) {
  return Launch({dim3(Blocks(args.rows * args.heads, kWarps), 2), kThreads, 0, stream}, QkPrepare,
                args);
}

cudaError_t LaunchGates(const GateArgs& args, cudaStream_t stream) {
  return Launch({Blocks(args.rows * args.heads, kThreads), kThreads, 0, stream}, Gates, args);
}

cudaError_t LaunchFill(float* dst, float value, int64_t count, cudaStream_t stream) {
  if (count <= 0) return cudaSuccess;
  return Launch({LoopingBlocks(count), kThreads, 0, stream}, FillWith, dst, value, count);
}

cudaError_t LaunchRowNorm(const RowNormArgs& args, cudaStream_t stream) {
  const bool vectors = args.dim % 4 == 0 && args.dim <= kThreads * 16 &&
                       args.y_stride == args.dim && Aligned16(args.x) && Aligned16(args.y) &&
                       (args.weight == nullptr || Aligned16(args.weight));
  return Launch({static_cast<uint32_t>(args.rows), kThreads, 0, stream},
                vectors ? RowNormVectors : RowNorm, args);
}

cudaError_t LaunchSwiGlu(const void* gate, const void* up, void* y, ActivationType type,
                         int64_t count, cudaStream_t stream) {
  if (type == ActivationType::kF32) {
    return Launch({LoopingBlocks(count), kThreads, 0, stream}, SwiGluF32,
                  static_cast<const float*>(gate), static_cast<const float*>(up),
                  static_cast<float*>(y), count);
  }
  return Launch({LoopingBlocks((count + 7) / 8), kThreads, 0, stream}, SwiGluBf16,
                static_cast<const __nv_bfloat16*>(gate), static_cast<const __nv_bfloat16*>(up),
                static_cast<__nv_bfloat16*>(y), count);
}

cudaError_t LaunchGatherRows(const int64_t* indices, int64_t count, int64_t dim, const float* x,
                             float* y, cudaStream_t stream) {
  if (count <= 0) return cudaSuccess;
  return Launch({static_cast<uint32_t>(count), kThreads, 0, stream}, GatherRows, indices, dim, x,
                y);
}

}  // namespace osdn::kernels::cuda
