#include <cuda_bf16.h>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/weight_kernels.h"

namespace osdn::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kInt4Block = 128;  // inputs
constexpr uint32_t kMaxGridY = 65535;

// Place of input `i` of a row: byte / 4, and the nibble within.
struct NibblePlace {
  int64_t word;
  int nibble;
};

__device__ __forceinline__ NibblePlace PlaceOf(int64_t i) {
  const int within = static_cast<int>(i % kInt4Block);
  const int group = within / 32;
  const int thread = within % 32 / 8;
  const int element = within % 8;
  // Even inputs in the low half word's nibbles, odd ones in the high half's.
  return {i / kInt4Block * 16 + thread * 4 + group, element / 2 + element % 2 * 4};
}

// One thread a word (8 inputs) of the output.
__global__ void ArrangeInt4(const uint8_t* raw, int64_t in, int64_t stride, int64_t rows,
                            uint32_t* out) {
  const int64_t words = stride / 8;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= rows * words) return;
  const int64_t row = index / words;
  const int64_t word = index % words;
  const int within = static_cast<int>(word % 16);
  const int64_t first = word / 16 * kInt4Block + within % 4 * 32 + within / 4 * 8;
  const uint8_t* from = raw + row * (stride / 2) + first / 2;
  uint32_t value = 0;
  for (int element = 0; element < 8; ++element) {
    uint32_t nibble = from[element / 2] >> (element % 2 * 4) & 0xF;
    if (first + element >= in) nibble = 8;
    value |= nibble << ((element / 2 + element % 2 * 4) * 4);
  }
  out[index] = value;
}

__device__ __forceinline__ float Element(const WeightView& weight, int64_t row, int64_t i) {
  const int64_t at = row * weight.stride + i;
  switch (weight.dtype) {
    case DType::kF32:
      return static_cast<const float*>(weight.data)[at];
    case DType::kBF16:
      return __bfloat162float(static_cast<const __nv_bfloat16*>(weight.data)[at]);
    case DType::kI8:
      return static_cast<const float*>(weight.scales)[row] *
             static_cast<float>(static_cast<const int8_t*>(weight.data)[at]);
    case DType::kI4: {
      const NibblePlace place = PlaceOf(i);
      const uint32_t word =
          static_cast<const uint32_t*>(weight.data)[row * (weight.stride / 8) + place.word];
      const int value = static_cast<int>(word >> (place.nibble * 4) & 0xF) - 8;
      const auto* scales = static_cast<const __nv_bfloat16*>(weight.scales);
      return __bfloat162float(scales[row * (weight.stride / kInt4Group) + i / kInt4Group]) *
             static_cast<float>(value);
    }
  }
  return 0;
}

__global__ void WidenToBf16(WeightView weight, __nv_bfloat16* out) {
  const int64_t index = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * 8;
  if (index >= weight.out * weight.stride) return;
  const int64_t row = index / weight.stride;
  const int64_t first = index % weight.stride;
  __align__(16) __nv_bfloat16 values[8];
  for (int i = 0; i < 8; ++i) values[i] = __float2bfloat16_rn(Element(weight, row, first + i));
  *reinterpret_cast<uint4*>(out + index) = *reinterpret_cast<const uint4*>(values);
}

__global__ void Embed(WeightView table, const int32_t* ids, int64_t rows, float* y) {
  WaitForPrevious();
  AllowNext();
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    const int64_t id = ids[row];
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < table.in;
         i += static_cast<int64_t>(gridDim.x) * kThreads) {
      y[row * table.in + i] = Element(table, id, i);
    }
  }
}

uint32_t Blocks(int64_t threads) {
  return static_cast<uint32_t>((threads + kThreads - 1) / kThreads);
}

}  // namespace

cudaError_t LaunchArrangeInt4(const void* raw, int64_t in, int64_t stride, int64_t rows, void* out,
                              cudaStream_t stream) {
  return Launch({Blocks(rows * stride / 8), kThreads, 0, stream}, ArrangeInt4,
                static_cast<const uint8_t*>(raw), in, stride, rows, static_cast<uint32_t*>(out));
}

cudaError_t LaunchWidenToBf16(const WeightView& weight, void* out, cudaStream_t stream) {
  return Launch({Blocks(weight.out * weight.stride / 8), kThreads, 0, stream}, WidenToBf16, weight,
                static_cast<__nv_bfloat16*>(out));
}

cudaError_t LaunchEmbed(const WeightView& table, const int32_t* ids, int64_t rows, float* y,
                        cudaStream_t stream) {
  const dim3 grid(min(Blocks(table.in), 8U),
                  static_cast<uint32_t>(rows < kMaxGridY ? rows : kMaxGridY));
  return Launch({grid, kThreads, 0, stream}, Embed, table, ids, rows, y);
}

}  // namespace osdn::kernels::cuda
