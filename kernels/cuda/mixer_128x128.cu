#include "kernels/cuda/mixer_launch.cuh"

namespace osdn::kernels::cuda {
OSDN_INSTANTIATE_MIXER(128, 128)
}  // namespace osdn::kernels::cuda
