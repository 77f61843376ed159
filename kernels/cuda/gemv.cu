// Skinny products of bf16, int8 and int4 weights by tensor cores: a block takes tiles of 16
// outputs, its warps share out the inputs, and a warp multiplies 16 outputs by 8 rows of x with
// mma.m16n8k16. The order of the inputs within a product is free as long as both operands have the
// same, so each thread's fragments are 16 consecutive bytes of a row. Reading the weights is all
// the work there is: each thread has several such loads in flight, across tiles, and the first ones
// leave before the kernel in front has finished (launch.cuh).
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/gemv.h"
#include "kernels/cuda/gemv_tile.cuh"
#include "kernels/cuda/launch.cuh"

namespace osdn::kernels::cuda {
namespace {

constexpr int kTileRows = 16;  // outputs
// Floats between the columns of a warp's partial sums: free of bank conflicts.
constexpr int kColumnStride = 20;

// Inputs a warp takes in one step: 16 bytes of each of 16 rows a thread quad.
constexpr int StepInputs(DType type) {
  return type == DType::kBF16 ? 32 : type == DType::kI8 ? 64 : 128;
}
// Steps in flight.
constexpr int Depth(DType type, int tiles) {
  return type == DType::kBF16 ? 4 : type == DType::kI8 || tiles == 1 ? 2 : 1;
}

// Elements between rows of x in shared memory, so that the 8 threads that read 16 bytes each at a
// time meet different banks: 64 bytes more than a multiple of 128 where a thread quad reads 64
// consecutive bytes; 16 more where it reads every other 16 bytes (int8).
constexpr int SharedStride(DType type, int64_t stride) {
  const int rounded = static_cast<int>((stride + 63) / 64 * 64);
  return rounded + (type == DType::kI8 ? 8 : 32);
}

__device__ __forceinline__ void Mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                    uint32_t a3, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Four int8 as two pairs of bf16, exactly: 2^23 + 128 + q in float32, less 2^23 + 128, whose low
// half is zero.
__device__ __forceinline__ uint2 WidenInt8(uint32_t packed) {
  const uint32_t biased = packed ^ 0x80808080;
  constexpr uint32_t kMagic = 0x4B000000;  // 2^23
  constexpr float kBias = 8388608.0F + 128.0F;
  const float f0 = __uint_as_float(__byte_perm(biased, kMagic, 0x7650)) - kBias;
  const float f1 = __uint_as_float(__byte_perm(biased, kMagic, 0x7651)) - kBias;
  const float f2 = __uint_as_float(__byte_perm(biased, kMagic, 0x7652)) - kBias;
  const float f3 = __uint_as_float(__byte_perm(biased, kMagic, 0x7653)) - kBias;
  return {__byte_perm(__float_as_uint(f0), __float_as_uint(f1), 0x7632),
          __byte_perm(__float_as_uint(f2), __float_as_uint(f3), 0x7632)};
}

// Nibbles `pair` and `pair` + 4, each q in 1 to 15, as bf16 of q - 8: 128 + q, less 136.
__device__ __forceinline__ uint32_t WidenInt4(uint32_t word, int pair) {
  const uint32_t biased = (word >> (4 * pair) & 0x000F000F) | 0x43004300;
  const __nv_bfloat162 bias = __bfloat162bfloat162(__float2bfloat16_rn(136.0F));
  const __nv_bfloat162 v = __hsub2(*reinterpret_cast<const __nv_bfloat162*>(&biased), bias);
  return *reinterpret_cast<const uint32_t*>(&v);
}

// One step's loads of a thread: 16 bytes of output g and of output g + 8 of each tile.
template <DType kType, int kTiles>
struct Step {
  uint4 w[kTiles][2];
};
template <int kTiles>
struct Step<DType::kI4, kTiles> {
  uint4 w[kTiles][2];
  uint2 scales[kTiles][2];  // of the block's four groups
};

// Adds the step to the sums of 16 outputs by 8 rows. `x` is this thread's place in shared memory.
__device__ __forceinline__ void AddBf16(const uint4 (&w)[2], const __nv_bfloat16* x,
                                        float (&sums)[4]) {
  const uint4 b = *reinterpret_cast<const uint4*>(x);
  Mma(sums, w[0].x, w[1].x, w[0].y, w[1].y, b.x, b.y);
  Mma(sums, w[0].z, w[1].z, w[0].w, w[1].w, b.z, b.w);
}

__device__ __forceinline__ void AddInt8(const uint4 (&w)[2], const __nv_bfloat16* x,
                                        float (&sums)[4]) {
  const uint32_t low[4] = {w[0].x, w[0].y, w[0].z, w[0].w};
  const uint32_t high[4] = {w[1].x, w[1].y, w[1].z, w[1].w};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint4 b = *reinterpret_cast<const uint4*>(x + half * 8);
    const uint2 a0 = WidenInt8(low[half * 2]);
    const uint2 a1 = WidenInt8(high[half * 2]);
    Mma(sums, a0.x, a1.x, a0.y, a1.y, b.x, b.y);
    const uint2 a2 = WidenInt8(low[half * 2 + 1]);
    const uint2 a3 = WidenInt8(high[half * 2 + 1]);
    Mma(sums, a2.x, a3.x, a2.y, a3.y, b.z, b.w);
  }
}

__device__ __forceinline__ float ScaleAt(const uint2& scales, int group) {
  const uint32_t word = group < 2 ? scales.x : scales.y;
  return __uint_as_float(group % 2 == 0 ? word << 16 : word & 0xFFFF0000);
}

__device__ __forceinline__ void AddInt4(const uint4 (&w)[2], const uint2 (&scales)[2],
                                        const __nv_bfloat16* x, float (&sums)[4]) {
  const uint32_t low[4] = {w[0].x, w[0].y, w[0].z, w[0].w};
  const uint32_t high[4] = {w[1].x, w[1].y, w[1].z, w[1].w};
#pragma unroll
  for (int group = 0; group < 4; ++group) {
    const uint4 b = *reinterpret_cast<const uint4*>(x + group * 32);
    float part[4] = {0, 0, 0, 0};
    Mma(part, WidenInt4(low[group], 0), WidenInt4(high[group], 0), WidenInt4(low[group], 1),
        WidenInt4(high[group], 1), b.x, b.y);
    Mma(part, WidenInt4(low[group], 2), WidenInt4(high[group], 2), WidenInt4(low[group], 3),
        WidenInt4(high[group], 3), b.z, b.w);
    const float scale0 = ScaleAt(scales[0], group);
    const float scale1 = ScaleAt(scales[1], group);
    sums[0] += scale0 * part[0];
    sums[1] += scale0 * part[1];
    sums[2] += scale1 * part[2];
    sums[3] += scale1 * part[3];
  }
}

// kTiles 2: gate and up of the same outputs, combined at the end. kColumns: groups of 8 rows of x.
template <DType kType, int kTiles, int kColumns>
__global__ __launch_bounds__(kGemvThreads,
                             2) void GemvKernel(const __grid_constant__ GemvKernelParams p) {
  constexpr int kInputs = StepInputs(kType);
  constexpr int kDepth = Depth(kType, kTiles);
  constexpr int kPartFloats = kTiles * kColumns * 8 * kColumnStride;  // of one warp
  extern __shared__ __align__(16) unsigned char shared[];
  // [2][kGemvWarps][kPartFloats] partial sums, squares [kGemvWarps][rows], then x.
  auto* parts = reinterpret_cast<float*>(shared);
  float* squares = parts + 2 * kGemvWarps * kPartFloats;
  auto* x = reinterpret_cast<__nv_bfloat16*>(squares + kGemvWarps * kColumns * 8);
  const int shared_stride = SharedStride(kType, p.weight_stride);

  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  const int chunks = static_cast<int>(p.weight_stride / kInputs);
  const int steps = (chunks + kGemvWarps - 1) / kGemvWarps;
  const int groups = (steps + kDepth - 1) / kDepth;
  // Where the next loads come from: the tile's weights, and this thread's place in them, in units
  // of 16 bytes. An int4 row has a fourth as many units of 8 bytes of scales.
  int load_tile = blockIdx.x;
  int load_step = 0;
  const uint4* weights[kTiles];
  const uint2* scales[kTiles];
  int place[kTiles][2];
  const auto begin_tile = [&] {
    const int job_index = kTiles == 2 ? 0 : JobOfTile(p, load_tile);
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      const GemvKernelJob& job = p.job[job_index + m];
      weights[m] = static_cast<const uint4*>(job.weight);
      scales[m] = static_cast<const uint2*>(job.scales);
      const int first = (load_tile - p.job[job_index].first_tile) * kTileRows;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        place[m][h] = min(first + g + 8 * h, job.out - 1) * (chunks * 4) + t;
      }
    }
  };
  const auto load = [&](Step<kType, kTiles>& step) {
    if (load_tile >= p.tiles) return;
    const int chunk = load_step * kGemvWarps + warp;
    if (chunk < chunks) {
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          step.w[m][h] = LoadWeight(weights[m] + place[m][h] + chunk * 4);
          if constexpr (kType == DType::kI4) {
            step.scales[m][h] = __ldg(scales[m] + place[m][h] / 4 + chunk);
          }
        }
      }
    }
    if (++load_step == groups * kDepth) {
      load_step = 0;
      load_tile += gridDim.x;
      if (load_tile < p.tiles) begin_tile();
    }
  };

  begin_tile();
  Step<kType, kTiles> ring[kDepth];
#pragma unroll
  for (int u = 0; u < kDepth; ++u) load(ring[u]);

  WaitForPrevious();
  StageRows<kTiles == 2 ? 4 : 8>(p, x, shared_stride, squares);
  __syncthreads();
  AllowNext();

  // This thread's rows of x; those past the last are computed along and dropped.
  int x_row[kColumns];
#pragma unroll
  for (int n = 0; n < kColumns; ++n) x_row[n] = min(n * 8 + g, p.rows - 1) * shared_stride;

  int parity = 0;
  for (int tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
    float sums[kTiles][kColumns][4] = {};
    for (int group = 0; group < groups; ++group) {
#pragma unroll
      for (int u = 0; u < kDepth; ++u) {
        const int chunk = (group * kDepth + u) * kGemvWarps + warp;
        if (chunk < chunks) {
#pragma unroll
          for (int n = 0; n < kColumns; ++n) {
            const __nv_bfloat16* at =
                x + x_row[n] + chunk * kInputs + t * (kType == DType::kI8 ? 16 : 8);
#pragma unroll
            for (int m = 0; m < kTiles; ++m) {
              if constexpr (kType == DType::kBF16) AddBf16(ring[u].w[m], at, sums[m][n]);
              if constexpr (kType == DType::kI8) AddInt8(ring[u].w[m], at, sums[m][n]);
              if constexpr (kType == DType::kI4) {
                AddInt4(ring[u].w[m], ring[u].scales[m], at, sums[m][n]);
              }
            }
          }
        }
        load(ring[u]);
      }
    }

    // The warps' sums meet in shared memory, in the order of the warps.
    float* part = parts + (parity * kGemvWarps + warp) * kPartFloats;
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
        if (n * 8 + 2 * t >= p.rows) continue;
        float* column = part + ((m * kColumns + n) * 8 + 2 * t) * kColumnStride + g;
        column[0] = sums[m][n][0];
        column[8] = sums[m][n][2];
        column[kColumnStride] = sums[m][n][1];
        column[kColumnStride + 8] = sums[m][n][3];
      }
    }
    __syncthreads();
    const int job_index = kTiles == 2 ? 0 : JobOfTile(p, tile);
    const GemvKernelJob& job = p.job[job_index];
    const int first = (tile - job.first_tile) * kTileRows;
    for (int i = threadIdx.x; i < kTileRows * p.rows; i += kGemvThreads) {
      const int row = i / kTileRows;
      const int feature = first + i % kTileRows;
      if (feature >= job.out) continue;
      float value[kTiles] = {};
      const float* from =
          parts + parity * kGemvWarps * kPartFloats + row * kColumnStride + i % kTileRows;
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
#pragma unroll
        for (int w = 0; w < kGemvWarps; ++w) {
          value[m] += from[w * kPartFloats + m * kColumns * 8 * kColumnStride];
        }
        value[m] *= RowFactor(p, squares, row);
        if constexpr (kType == DType::kI8) {
          value[m] *= static_cast<const float*>(p.job[job_index + m].scales)[feature];
        }
      }
      if constexpr (kTiles == 2) {
        WriteOutput(job, row, feature, SiluOf(value[0]) * value[1]);
      } else {
        WriteOutput(job, row, feature, value[0]);
      }
    }
    parity ^= 1;
  }
}

size_t SharedBytes(DType type, int tiles, int columns, int64_t rows, int64_t stride) {
  if (type == DType::kF32) return (kGemvWarps * columns * 8 + rows * stride) * sizeof(float);
  const size_t parts = size_t{2} * kGemvWarps * tiles * columns * 8 * kColumnStride;
  return (parts + kGemvWarps * columns * 8) * sizeof(float) +
         rows * SharedStride(type, stride) * sizeof(__nv_bfloat16);
}

int ColumnsFor(int64_t rows) { return rows <= 8 ? 1 : rows <= 16 ? 2 : 4; }

using GemvFunction = void (*)(GemvKernelParams);

template <DType kType>
GemvFunction KernelOf(bool swiglu, int columns) {
  switch (columns) {
    case 1:
      return swiglu ? GemvKernel<kType, 2, 1> : GemvKernel<kType, 1, 1>;
    case 2:
      return swiglu ? GemvKernel<kType, 2, 2> : GemvKernel<kType, 1, 2>;
    default:
      return GemvKernel<kType, 1, 4>;
  }
}

GemvFunction KernelOf(DType type, bool swiglu, int columns) {
  switch (type) {
    case DType::kBF16:
      return KernelOf<DType::kBF16>(swiglu, columns);
    case DType::kI8:
      return KernelOf<DType::kI8>(swiglu, columns);
    default:
      return KernelOf<DType::kI4>(swiglu, columns);
  }
}

GemvKernelParams ParamsOf(const GemvArgs& args) {
  const WeightView& weight = args.jobs[0].weight;
  GemvKernelParams p;
  p.x = args.x.data;
  p.norm = args.norm;
  p.x_stride = args.x.stride;
  p.weight_stride = weight.stride;
  p.norm_eps = args.norm_eps;
  p.in = static_cast<int32_t>(weight.in);
  p.rows = static_cast<int32_t>(args.rows);
  p.x_bf16 = args.x.type == ActivationType::kBF16;
  p.x_vectors = args.x.stride % 4 == 0 && reinterpret_cast<uintptr_t>(args.x.data) % 16 == 0;
  p.norm_vectors = weight.stride == weight.in && reinterpret_cast<uintptr_t>(args.norm) % 16 == 0;
  for (const GemvJob& from : args.jobs) {
    GemvKernelJob& job = p.job[p.jobs++];
    job.weight = from.weight.data;
    job.scales = from.weight.scales;
    job.y = from.y;
    job.row_stride = from.row_stride;
    job.feature_stride = from.feature_stride;
    job.out = static_cast<int32_t>(from.weight.out);
    job.first_tile = p.tiles;
    job.y_bf16 = from.y_type == ActivationType::kBF16;
    job.accumulate = from.accumulate;
    if (args.swiglu && p.jobs == 2) {
      job.first_tile = 0;
      continue;
    }
    p.tiles += (job.out + kTileRows - 1) / kTileRows;
  }
  return p;
}

cudaError_t LaunchGemvMma(const Device& device, const GemvArgs& args,
                          const GemvKernelParams& params) {
  const DType type = args.jobs[0].weight.dtype;
  const bool swiglu = args.swiglu;
  const int columns = ColumnsFor(params.rows);
  const size_t shared =
      SharedBytes(type, swiglu ? 2 : 1, columns, params.rows, params.weight_stride);
  // Two blocks an SM where shared memory allows; each the same number of tiles, or one less.
  const bool two = shared * 2 + 4096 <= device.shared_bytes_per_block();
  const int slots = device.multiprocessors() * (two ? 2 : 1);
  const int tiles_a_block = (params.tiles + slots - 1) / slots;
  const int blocks = (params.tiles + tiles_a_block - 1) / tiles_a_block;
  return Launch({dim3(blocks), dim3(kGemvThreads), shared, device.stream(),
                 args.read_ahead && device.overlaps_launches()},
                KernelOf(type, swiglu, columns), params);
}

}  // namespace

int64_t GemvRows(const Device& device, DType dtype, int64_t in) {
  const int64_t step = StrideStep(dtype);
  const int64_t stride = (in + step - 1) / step * step;
  int64_t rows = kMaxGemvRows;
  while (rows > 0 &&
         SharedBytes(dtype, 2, ColumnsFor(rows), rows, stride) > device.shared_bytes_per_block()) {
    --rows;
  }
  return rows;
}

absl::Status PrepareGemv(Device* device) {
  for (const DType type : {DType::kBF16, DType::kI8, DType::kI4}) {
    for (const bool swiglu : {false, true}) {
      for (const int columns : {1, 2, 4}) {
        if (absl::Status s = device->Check(
                cudaFuncSetAttribute(reinterpret_cast<const void*>(KernelOf(type, swiglu, columns)),
                                     cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     static_cast<int>(device->shared_bytes_per_block())),
                "cudaFuncSetAttribute of a skinny product");
            !s.ok()) {
          return s;
        }
      }
    }
  }
  return device->Check(PrepareGemvF32(device->shared_bytes_per_block()),
                       "cudaFuncSetAttribute of a float32 skinny product");
}

absl::Status LaunchGemv(Device* device, const GemvArgs& args) {
  if (args.jobs.empty() || args.jobs.size() > kMaxGemvJobs || args.rows < 1 ||
      args.rows > kMaxGemvRows ||
      (args.swiglu && (args.jobs.size() != 2 || args.rows > kMaxGemvSwiGluRows))) {
    return absl::InternalError(
        absl::StrCat("skinny product: ", args.jobs.size(), " products of ", args.rows, " rows"));
  }
  const GemvKernelParams params = ParamsOf(args);
  const cudaError_t error = args.jobs[0].weight.dtype == DType::kF32
                                ? LaunchGemvF32(*device, args, params)
                                : LaunchGemvMma(*device, args, params);
  return device->Check(error, "skinny product");
}

}  // namespace osdn::kernels::cuda
