#include "kernels/cuda/mixer_launch.cuh"

namespace osdn::kernels::cuda {
OSDN_INSTANTIATE_MIXER(64, 64)
}  // namespace osdn::kernels::cuda
