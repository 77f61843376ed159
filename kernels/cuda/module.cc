// The module's entry point (kernels/backend_module.h).
#include <cstdio>
#include <exception>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/backend_module.h"
#include "kernels/cuda/cuda_backend.h"

extern "C" __attribute__((visibility("default"))) osdn::kernels::Backend* OsdnCreateCudaBackend(
    int abi_version, char* error, size_t error_size) {
  using osdn::kernels::kBackendAbiVersion;
  if (abi_version != kBackendAbiVersion) {
    std::snprintf(error, error_size, "module has backend ABI %d, the program wants %d",
                  kBackendAbiVersion, abi_version);
    return nullptr;
  }
  try {
    absl::StatusOr<std::unique_ptr<osdn::kernels::Backend>> backend =
        osdn::kernels::cuda::CreateCudaBackend();
    if (backend.ok()) return backend->release();
    std::snprintf(error, error_size, "%s", std::string(backend.status().message()).c_str());
  } catch (const std::exception& cause) {  // out of memory: nothing may pass the module's border
    std::snprintf(error, error_size, "%s", cause.what());
  }
  return nullptr;
}
