// Row operations: the op table's in float32, and the forms that the fused blocks use.
#ifndef OSDN_KERNELS_CUDA_ELEMENTWISE_H_
#define OSDN_KERNELS_CUDA_ELEMENTWISE_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/mixer.h"
#include "kernels/include/embedding.h"
#include "kernels/include/mixer.h"
#include "kernels/include/norm.h"

namespace osdn::kernels::cuda {

// All pointers are device memory. Each call is one launch.
cudaError_t LaunchOutputNorm(const OutputNormArgs& args, cudaStream_t stream);
cudaError_t LaunchQkPrepare(const QkPrepareArgs& args, cudaStream_t stream);
cudaError_t LaunchGates(const GateArgs& args, cudaStream_t stream);
cudaError_t LaunchFill(float* dst, float value, int64_t count, cudaStream_t stream);

// y = rmsnorm(x) * weight as `y_type`, rows of y `y_stride` apart and zero from `dim` on. Without a
// weight: y = x, no norm.
struct RowNormArgs {
  int64_t rows = 0;
  int64_t dim = 0;
  float eps = 0;
  const float* x = nullptr;  // [rows, dim]
  const float* weight = nullptr;
  void* y = nullptr;
  ActivationType y_type = ActivationType::kF32;
  int64_t y_stride = 0;
};
cudaError_t LaunchRowNorm(const RowNormArgs& args, cudaStream_t stream);

// y = silu(gate) * up over `count` elements of one type; y may be gate or up.
cudaError_t LaunchSwiGlu(const void* gate, const void* up, void* y, ActivationType type,
                         int64_t count, cudaStream_t stream);

// y[i, :] = x[indices[i], :].
cudaError_t LaunchGatherRows(const int64_t* indices, int64_t count, int64_t dim, const float* x,
                             float* y, cudaStream_t stream);

}  // namespace osdn::kernels::cuda

#endif  // OSDN_KERNELS_CUDA_ELEMENTWISE_H_
