#include "kernels/cuda/mixer_launch.cuh"

namespace osdn::kernels::cuda {
OSDN_INSTANTIATE_MIXER(256, 256)
}  // namespace osdn::kernels::cuda
