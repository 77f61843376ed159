// The op table on the CPUs of this machine, with kernels picked at run time by instruction set.
#ifndef OSDN_KERNELS_CPU_CPU_BACKEND_H_
#define OSDN_KERNELS_CPU_CPU_BACKEND_H_

#include <memory>
#include <string_view>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace osdn::kernels {

// `threads` 0 means one a physical core this process may use; `isa` is "auto" or the name of an
// instruction set (kernels/cpu/isa.h), which is then the process's for Highway's kernels. Linear
// weights are repacked once (kernels/cpu/panels); only embedding lookup still reads their
// HostTensor. INVALID_ARGUMENT for a thread count out of range or an instruction set this CPU
// lacks.
absl::StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(int threads,
                                                          std::string_view isa = "auto");

}  // namespace osdn::kernels

#endif  // OSDN_KERNELS_CPU_CPU_BACKEND_H_
