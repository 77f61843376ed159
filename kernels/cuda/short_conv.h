// The op ShortConv. Fused blocks convolve inside the mixer's kernels instead.
#ifndef OSDN_KERNELS_CUDA_SHORT_CONV_H_
#define OSDN_KERNELS_CUDA_SHORT_CONV_H_

#include <cuda_runtime_api.h>

#include "kernels/cuda/batch_plan.h"
#include "kernels/include/short_conv.h"

namespace osdn::kernels::cuda {

// args.batch is not looked at: `plan` is its plan.
cudaError_t LaunchShortConv(const ShortConvArgs& args, const DevicePlan& plan, cudaStream_t stream);

}  // namespace osdn::kernels::cuda

#endif  // OSDN_KERNELS_CUDA_SHORT_CONV_H_
