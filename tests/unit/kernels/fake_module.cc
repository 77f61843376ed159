// Stand-ins for libosdn_cuda.so, one a build with OSDN_FAKE_MODULE: what the loader may meet.
//   0 works, on the reference backend     1 was built for another ABI version
//   2 finds no device                     3 refuses without a word        4 is no backend module
#include <cstdio>
#include <memory>

#include "kernels/backend_module.h"
#include "kernels/reference/reference_backend.h"

#if OSDN_FAKE_MODULE == 4
extern "C" int OsdnSomethingElse() { return 0; }
#else
extern "C" osdn::kernels::Backend* OsdnCreateCudaBackend(int abi_version, char* error,
                                                         size_t error_size) {
  constexpr int kBuiltFor = osdn::kernels::kBackendAbiVersion + (OSDN_FAKE_MODULE == 1 ? 1000 : 0);
  if (OSDN_FAKE_MODULE == 3) return nullptr;
  if (abi_version != kBuiltFor) {
    std::snprintf(error, error_size, "module has backend ABI %d, the program wants %d", kBuiltFor,
                  abi_version);
    return nullptr;
  }
  if (OSDN_FAKE_MODULE == 2) {
    std::snprintf(error, error_size, "no CUDA device found");
    return nullptr;
  }
  return osdn::kernels::CreateReferenceBackend().release();
}
#endif
