// The op table on the CPUs of this machine: Highway kernels picked at run time, oneDNN for prefill
// products, one team of OpenMP threads for both.
#ifndef OSDN_KERNELS_CPU_CPU_BACKEND_H_
#define OSDN_KERNELS_CPU_CPU_BACKEND_H_

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace osdn::kernels {

// `threads` 0 means one a physical core this process may use. Linear weights keep pointing into
// their HostTensor for decode and hold a repacked copy for prefill. INVALID_ARGUMENT for a thread
// count out of range, INTERNAL when oneDNN does not start.
absl::StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(int threads);

}  // namespace osdn::kernels

#endif  // OSDN_KERNELS_CPU_CPU_BACKEND_H_
