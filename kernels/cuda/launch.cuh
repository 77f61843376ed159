// Kernel launches that report their error, and programmatic dependent launch.
//
// A kernel launched with `overlap` may start while the kernel before it in the stream still runs,
// so it must call WaitForPrevious() before it touches anything that an earlier kernel reads or
// writes: only weights may be read ahead of it. It calls AllowNext() once it has nothing more to
// gain from keeping the next kernel out. On GPUs before Hopper both do nothing and launches are
// ordinary.
#ifndef OSDN_KERNELS_CUDA_LAUNCH_CUH_
#define OSDN_KERNELS_CUDA_LAUNCH_CUH_

#include <cuda_runtime.h>

#include <cstddef>
#include <utility>

namespace osdn::kernels::cuda {

__device__ __forceinline__ void WaitForPrevious() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void AllowNext() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

struct LaunchShape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
  cudaStream_t stream = nullptr;
  bool overlap = false;
};

template <class... Params, class... Args>
cudaError_t Launch(const LaunchShape& shape, void (*kernel)(Params...), Args&&... args) {
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = shape.stream;
  cudaLaunchAttribute attribute = {};
  if (shape.overlap) {
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &attribute;
    config.numAttrs = 1;
  }
  return cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...);
}

}  // namespace osdn::kernels::cuda

#endif  // OSDN_KERNELS_CUDA_LAUNCH_CUH_
