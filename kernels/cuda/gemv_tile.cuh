// What the skinny products of all weight types share: parameters, staging of the input, epilogue.
#ifndef OSDN_KERNELS_CUDA_GEMV_TILE_CUH_
#define OSDN_KERNELS_CUDA_GEMV_TILE_CUH_

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/device.h"
#include "kernels/cuda/gemv.h"

namespace osdn::kernels::cuda {

inline constexpr int kGemvWarps = 8;
inline constexpr int kGemvThreads = kGemvWarps * 32;

struct GemvKernelJob {
  const void* weight = nullptr;
  const void* scales = nullptr;
  void* y = nullptr;
  int64_t row_stride = 0;
  int64_t feature_stride = 0;
  int32_t out = 0;
  int32_t first_tile = 0;
  bool y_bf16 = false;
  bool accumulate = false;
};

struct GemvKernelParams {
  const void* x = nullptr;
  const float* norm = nullptr;
  int64_t x_stride = 0;
  int64_t weight_stride = 0;  // elements
  float norm_eps = 0;
  int32_t in = 0;
  int32_t rows = 0;
  int32_t tiles = 0;
  int32_t jobs = 0;
  bool x_bf16 = false;
  bool x_vectors = false;     // x may be read four elements at a time
  bool norm_vectors = false;  // and so may norm, also where x is padded
  GemvKernelJob job[kMaxGemvJobs];
};

// 16 bytes of a weight: read once, so kept out of the L1 cache.
__device__ __forceinline__ uint4 LoadWeight(const uint4* address) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(address));
  return v;
}

__device__ __forceinline__ float WarpSum(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xFFFFFFFF, value, offset);
  }
  return value;
}

__device__ __forceinline__ int JobOfTile(const GemvKernelParams& p, int tile) {
  int job = 0;
  while (job + 1 < p.jobs && tile >= p.job[job + 1].first_tile) ++job;
  return job;
}

__device__ __forceinline__ float4 ReadX4(const GemvKernelParams& p, int row, int i) {
  if (p.x_bf16) {
    const auto* x = static_cast<const __nv_bfloat16*>(p.x) + row * p.x_stride + i;
    if (p.x_vectors && i + 4 <= p.in) {
      const uint2 v = *reinterpret_cast<const uint2*>(x);
      return {__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xFFFF0000),
              __uint_as_float(v.y << 16), __uint_as_float(v.y & 0xFFFF0000)};
    }
    float4 v = {0, 0, 0, 0};
    if (i < p.in) v.x = __bfloat162float(x[0]);
    if (i + 1 < p.in) v.y = __bfloat162float(x[1]);
    if (i + 2 < p.in) v.z = __bfloat162float(x[2]);
    if (i + 3 < p.in) v.w = __bfloat162float(x[3]);
    return v;
  }
  const auto* x = static_cast<const float*>(p.x) + row * p.x_stride + i;
  if (p.x_vectors && i + 4 <= p.in) return *reinterpret_cast<const float4*>(x);
  float4 v = {0, 0, 0, 0};
  if (i < p.in) v.x = x[0];
  if (i + 1 < p.in) v.y = x[1];
  if (i + 2 < p.in) v.z = x[2];
  if (i + 3 < p.in) v.w = x[3];
  return v;
}

__device__ __forceinline__ float4 ReadNorm4(const GemvKernelParams& p, int i) {
  if (p.norm_vectors) return *reinterpret_cast<const float4*>(p.norm + i);
  float4 v = {0, 0, 0, 0};
  if (i < p.in) v.x = p.norm[i];
  if (i + 1 < p.in) v.y = p.norm[i + 1];
  if (i + 2 < p.in) v.z = p.norm[i + 2];
  if (i + 3 < p.in) v.w = p.norm[i + 3];
  return v;
}

__device__ __forceinline__ void StoreX4(float* to, const float4& v) {
  *reinterpret_cast<float4*>(to) = v;
}

__device__ __forceinline__ void StoreX4(__nv_bfloat16* to, const float4& v) {
  const __nv_bfloat162 low = __floats2bfloat162_rn(v.x, v.y);
  const __nv_bfloat162 high = __floats2bfloat162_rn(v.z, v.w);
  uint2 packed;
  packed.x = *reinterpret_cast<const uint32_t*>(&low);
  packed.y = *reinterpret_cast<const uint32_t*>(&high);
  *reinterpret_cast<uint2*>(to) = packed;
}

// Four elements from `i` on of a row into shared memory; adds their squares to `sum`.
template <class T>
__device__ __forceinline__ void StageFour(const GemvKernelParams& p, float4 v, int i, T* shared_row,
                                          float& sum) {
  if (p.norm != nullptr) {
    sum = fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, fmaf(v.x, v.x, sum))));
    const float4 w = ReadNorm4(p, i);
    v.x *= w.x;
    v.y *= w.y;
    v.z *= w.z;
    v.w *= w.w;
  }
  StoreX4(shared_row + i, v);
}

// Puts all rows, zero-padded to the weights' stride, into shared memory. With a norm they are
// multiplied by its weight only: a row's factor rsqrt(mean + eps) is common to all that comes of
// the row and is applied at the end (RowFactor). `squares` is [kGemvWarps, rows]: part w of a row's
// sum of squares is that of every kGemvWarps-th run of 128 elements from the w-th on, added up in
// one order whoever does it. The caller synchronizes. kBatch loads are in flight.
template <int kBatch, class T>
__device__ __forceinline__ void StageRows(const GemvKernelParams& p, T* shared, int shared_stride,
                                          float* squares) {
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int end = static_cast<int>(p.weight_stride);
  constexpr int kRun = 128;
  if (p.rows <= 2) {
    // All warps on one row: a part each.
    for (int row = 0; row < p.rows; ++row) {
      float sum = 0;
      for (int first = threadIdx.x * 4; first < end; first += kRun * kGemvWarps * kBatch) {
        float4 v[kBatch];
#pragma unroll
        for (int u = 0; u < kBatch; ++u) {
          const int i = first + u * kRun * kGemvWarps;
          if (i < end) v[u] = ReadX4(p, row, i);
        }
#pragma unroll
        for (int u = 0; u < kBatch; ++u) {
          const int i = first + u * kRun * kGemvWarps;
          if (i < end) StageFour(p, v[u], i, shared + row * shared_stride, sum);
        }
      }
      sum = WarpSum(sum);
      if (lane == 0) squares[warp * p.rows + row] = sum;
    }
    return;
  }
  // A warp a row: all parts.
  for (int row = warp; row < p.rows; row += kGemvWarps) {
    float sums[kGemvWarps] = {};
    for (int first = lane * 4; first < end; first += kRun * kGemvWarps) {
#pragma unroll
      for (int part = 0; part < kGemvWarps; part += kBatch) {
        float4 v[kBatch];
#pragma unroll
        for (int u = 0; u < kBatch; ++u) {
          const int i = first + (part + u) * kRun;
          if (i < end) v[u] = ReadX4(p, row, i);
        }
#pragma unroll
        for (int u = 0; u < kBatch; ++u) {
          const int i = first + (part + u) * kRun;
          if (i < end) StageFour(p, v[u], i, shared + row * shared_stride, sums[part + u]);
        }
      }
    }
    if (p.norm == nullptr) continue;
#pragma unroll
    for (int part = 0; part < kGemvWarps; ++part) {
      const float sum = WarpSum(sums[part]);
      if (lane == 0) squares[part * p.rows + row] = sum;
    }
  }
}

__device__ __forceinline__ float RowFactor(const GemvKernelParams& p, const float* squares,
                                           int row) {
  if (p.norm == nullptr) return 1.0F;
  float sum = 0;
#pragma unroll
  for (int warp = 0; warp < kGemvWarps; ++warp) sum += squares[warp * p.rows + row];
  return 1.0F / sqrtf(sum / static_cast<float>(p.in) + p.norm_eps);
}

__device__ __forceinline__ void WriteOutput(const GemvKernelJob& job, int row, int feature,
                                            float value) {
  const int64_t at = row * job.row_stride + feature * job.feature_stride;
  if (job.y_bf16) {
    static_cast<__nv_bfloat16*>(job.y)[at] = __float2bfloat16_rn(value);
  } else if (job.accumulate) {
    static_cast<float*>(job.y)[at] += value;
  } else {
    static_cast<float*>(job.y)[at] = value;
  }
}

__device__ __forceinline__ float SiluOf(float x) { return x / (1.0F + expf(-x)); }

// Launchers, one a translation unit. `params` has everything but the tiles.
cudaError_t LaunchGemvF32(const Device& device, const GemvArgs& args, GemvKernelParams params);
cudaError_t PrepareGemvF32(size_t shared_bytes);

}  // namespace osdn::kernels::cuda

#endif  // OSDN_KERNELS_CUDA_GEMV_TILE_CUH_
