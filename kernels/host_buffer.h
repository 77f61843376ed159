// Buffers in host memory, for the backends that compute there.
#ifndef OSDN_KERNELS_HOST_BUFFER_H_
#define OSDN_KERNELS_HOST_BUFFER_H_

#include <cstddef>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace osdn::kernels {

inline constexpr size_t kBufferAlignment = 64;

// Zeroed and kBufferAlignment-aligned; 0 bytes give an empty Buffer. RESOURCE_EXHAUSTED, naming the
// size, when the system has no such memory.
absl::StatusOr<Buffer> AllocateHostBuffer(size_t bytes);

}  // namespace osdn::kernels

#endif  // OSDN_KERNELS_HOST_BUFFER_H_
