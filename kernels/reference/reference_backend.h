// The truth that other backends are tested against: obvious loops, host memory, one thread. Every
// op computes in double and rounds to float32 at its end; the mixer is the token recurrence.
#ifndef OSDN_KERNELS_REFERENCE_REFERENCE_BACKEND_H_
#define OSDN_KERNELS_REFERENCE_REFERENCE_BACKEND_H_

#include <memory>

#include "kernels/backend.h"

namespace osdn::kernels {

std::unique_ptr<Backend> CreateReferenceBackend();

}  // namespace osdn::kernels

#endif  // OSDN_KERNELS_REFERENCE_REFERENCE_BACKEND_H_
