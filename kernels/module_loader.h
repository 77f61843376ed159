// Finds and opens the CUDA backend's module.
#ifndef OSDN_KERNELS_MODULE_LOADER_H_
#define OSDN_KERNELS_MODULE_LOADER_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace osdn::kernels {

struct LoadedBackend {
  std::unique_ptr<Backend> backend;
  std::string path;  // the module it came from
};

// Takes the first module that opens and creates a backend among `module_dir`, or, when that is
// empty, the executable's folder and its ../lib. FAILED_PRECONDITION with every path's cause and
// the remedy.
absl::StatusOr<LoadedBackend> LoadCudaBackend(const std::string& module_dir);

}  // namespace osdn::kernels

#endif  // OSDN_KERNELS_MODULE_LOADER_H_
