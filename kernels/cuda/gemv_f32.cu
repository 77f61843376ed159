// Skinny products of float32 weights: a warp an output, all in float32.
#include "kernels/cuda/gemv_tile.cuh"
#include "kernels/cuda/launch.cuh"

namespace osdn::kernels::cuda {
namespace {

constexpr int kDepth = 4;  // loads in flight

__device__ __forceinline__ float Dot(const float4& a, const float4& b, float sum) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

// Sums over all inputs of one output by kRows rows of x, of which the first `rows` count; the same
// in every lane.
template <int kRows>
__device__ __forceinline__ void DotRows(const float* weight, const float* x, int stride, int rows,
                                        float (&sums)[kRows]) {
  const int lane = threadIdx.x % 32;
  const int vectors = stride / 4;
  const auto* w = reinterpret_cast<const float4*>(weight);
#pragma unroll
  for (int r = 0; r < kRows; ++r) sums[r] = 0;
  for (int first = lane; first < vectors; first += 32 * kDepth) {
    float4 loaded[kDepth];
#pragma unroll
    for (int u = 0; u < kDepth; ++u) {
      const int i = first + 32 * u;
      loaded[u] = i < vectors ? __ldg(w + i) : float4{0, 0, 0, 0};
    }
#pragma unroll
    for (int u = 0; u < kDepth; ++u) {
      const int i = first + 32 * u;
      if (i >= vectors) continue;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float4 v = *reinterpret_cast<const float4*>(x + min(r, rows - 1) * stride + i * 4);
        sums[r] = Dot(loaded[u], v, sums[r]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) sums[r] = WarpSum(sums[r]);
}

template <int kTiles, int kRows>
__global__ __launch_bounds__(kGemvThreads,
                             2) void GemvF32Kernel(const __grid_constant__ GemvKernelParams p) {
  extern __shared__ __align__(16) float shared_floats[];
  const int stride = static_cast<int>(p.weight_stride);
  float* squares = shared_floats;                                  // [kGemvWarps][rows]
  float* x = shared_floats + kGemvWarps * ((p.rows + 7) / 8 * 8);  // [rows][stride]
  WaitForPrevious();
  StageRows<8>(p, x, stride, squares);
  __syncthreads();
  AllowNext();

  const int lane = threadIdx.x % 32;
  for (int tile = blockIdx.x * kGemvWarps + threadIdx.x / 32; tile < p.tiles;
       tile += gridDim.x * kGemvWarps) {
    const int job_index = kTiles == 2 ? 0 : JobOfTile(p, tile);
    const GemvKernelJob& job = p.job[job_index];
    const int feature = tile - job.first_tile;
    for (int first_row = 0; first_row < p.rows; first_row += kRows) {
      float sums[kTiles][kRows];
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        const float* weight =
            static_cast<const float*>(p.job[job_index + m].weight) + feature * p.weight_stride;
        DotRows<kRows>(weight, x + first_row * stride, stride, p.rows - first_row, sums[m]);
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int row = first_row + r;
        if (lane != r || row >= p.rows) continue;
        const float factor = RowFactor(p, squares, row);
        float value = sums[0][r] * factor;
        if constexpr (kTiles == 2) value = SiluOf(value) * (sums[1][r] * factor);
        WriteOutput(job, row, feature, value);
      }
    }
  }
}

using GemvFunction = void (*)(GemvKernelParams);

GemvFunction KernelOf(bool swiglu, int64_t rows) {
  if (rows == 1) return swiglu ? GemvF32Kernel<2, 1> : GemvF32Kernel<1, 1>;
  if (rows <= 4) return swiglu ? GemvF32Kernel<2, 4> : GemvF32Kernel<1, 4>;
  return swiglu ? GemvF32Kernel<2, 8> : GemvF32Kernel<1, 8>;
}

}  // namespace

cudaError_t PrepareGemvF32(size_t shared_bytes) {
  for (const bool swiglu : {false, true}) {
    for (const int rows : {1, 4, 8}) {
      const cudaError_t error = cudaFuncSetAttribute(
          reinterpret_cast<const void*>(KernelOf(swiglu, rows)),
          cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
      if (error != cudaSuccess) return error;
    }
  }
  return cudaSuccess;
}

cudaError_t LaunchGemvF32(const Device& device, const GemvArgs& args, GemvKernelParams params) {
  // A tile is one output here.
  params.tiles = 0;
  for (int i = 0; i < params.jobs; ++i) {
    if (args.swiglu && i == 1) continue;
    params.job[i].first_tile = params.tiles;
    params.tiles += params.job[i].out;
  }
  const size_t shared = (static_cast<size_t>(kGemvWarps) * ((params.rows + 7) / 8 * 8) +
                         static_cast<size_t>(params.rows) * params.weight_stride) *
                        sizeof(float);
  const int wanted = (params.tiles + kGemvWarps - 1) / kGemvWarps;
  const int most = device.multiprocessors() * 4;
  const int blocks = wanted < most ? wanted : most;
  return Launch({dim3(blocks), dim3(kGemvThreads), shared, device.stream(),
                 args.read_ahead && device.overlaps_launches()},
                KernelOf(args.swiglu, params.rows), params);
}

}  // namespace osdn::kernels::cuda
