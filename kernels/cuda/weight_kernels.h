// Kernels that rearrange and widen weights.
#ifndef OSDN_KERNELS_CUDA_WEIGHT_KERNELS_H_
#define OSDN_KERNELS_CUDA_WEIGHT_KERNELS_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/weights.h"
#include "kernels/include/embedding.h"

namespace osdn::kernels::cuda {

// From the file's int4 rows, padded to `stride` / 2 bytes, to the layout of WeightView. Nibbles of
// inputs from `in` on become 8, which stands for 0.
cudaError_t LaunchArrangeInt4(const void* raw, int64_t in, int64_t stride, int64_t rows, void* out,
                              cudaStream_t stream);

// A quantized weight as bf16 [out, stride], rounded, for products of many rows.
cudaError_t LaunchWidenToBf16(const WeightView& weight, void* out, cudaStream_t stream);

// y[r, :] = weight[ids[r], :] as float32, exactly. `ids` is device memory.
cudaError_t LaunchEmbed(const WeightView& table, const int32_t* ids, int64_t rows, float* y,
                        cudaStream_t stream);

}  // namespace osdn::kernels::cuda

#endif  // OSDN_KERNELS_CUDA_WEIGHT_KERNELS_H_
