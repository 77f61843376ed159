// The border between the program and a backend built as a module of its own (libosdn_cuda.so), so
// that one program runs on machines with and without that device's libraries.
//
// A module is built from the same sources as the program, with the same compiler and Abseil: it
// exchanges C++ objects (Backend, Buffer, absl::Status). The version guards against a module of an
// older or newer build. Raise it with every change to kernels/backend.h or kernels/include.
// Modules stay mapped until the process ends: vtables, buffer deleters and the exit handlers of
// device libraries live in them.
#ifndef OSDN_KERNELS_BACKEND_MODULE_H_
#define OSDN_KERNELS_BACKEND_MODULE_H_

#include <cstddef>

#include "kernels/backend.h"

namespace osdn::kernels {

inline constexpr int kBackendAbiVersion = 3;
inline constexpr char kCudaModuleFile[] = "libosdn_cuda.so";
inline constexpr char kCreateCudaBackendSymbol[] = "OsdnCreateCudaBackend";

extern "C" {
// The type of the module's only exported symbol. Returns a backend that the caller deletes, or null
// after writing a terminated cause of at most error_size bytes ("no CUDA device", ...). It refuses
// an abi_version other than its own kBackendAbiVersion, naming both, and never throws.
using CreateBackendFunction = Backend*(int abi_version, char* error, size_t error_size);
}

}  // namespace osdn::kernels

#endif  // OSDN_KERNELS_BACKEND_MODULE_H_
