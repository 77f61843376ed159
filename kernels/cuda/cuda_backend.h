// The op table on an NVIDIA GPU.
#ifndef OSDN_KERNELS_CUDA_CUDA_BACKEND_H_
#define OSDN_KERNELS_CUDA_CUDA_BACKEND_H_

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace osdn::kernels::cuda {

// FAILED_PRECONDITION, with the cause, where no GPU can be used.
absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend();

}  // namespace osdn::kernels::cuda

#endif  // OSDN_KERNELS_CUDA_CUDA_BACKEND_H_
