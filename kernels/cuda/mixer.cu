#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/mixer.h"
#include "kernels/cuda/mixer_generic.cuh"
#include "kernels/cuda/mixer_launch.cuh"

namespace osdn::kernels::cuda {

namespace {

using LaunchFunction = bool (*)(const MixerLaunch&);

// Null for sizes that only the generic kernel has.
LaunchFunction KernelsOf(int64_t key_dim, int64_t value_dim) {
  if (key_dim == 64 && value_dim == 64) return LaunchMixerOf<64, 64>;
  if (key_dim == 128 && value_dim == 128) return LaunchMixerOf<128, 128>;
  if (key_dim == 256 && value_dim == 256) return LaunchMixerOf<256, 256>;
  return nullptr;
}

__global__ void __launch_bounds__(kGenericThreads)
    RunGeneric(const __grid_constant__ GenericArgs args) {
  extern __shared__ __align__(16) unsigned char shared[];
  WaitForPrevious();
  AllowNext();
  GenericBody(args, shared);
}

cudaError_t LaunchGeneric(const LayerSpec& spec, const MixerCoreArgs& args, cudaStream_t stream,
                          bool overlap) {
  GenericArgs generic;
  generic.recurrent = RecurrentOf<float>(spec, args);
  generic.key_dim = static_cast<int32_t>(spec.key_dim);
  generic.value_dim = static_cast<int32_t>(spec.value_dim);
  const auto launch = [&](int32_t blocks) {
    if (blocks == 0) return cudaSuccess;
    const LaunchShape shape = {
        .grid = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(spec.heads)),
        .block = dim3(kGenericThreads),
        .shared_bytes = static_cast<size_t>(2 * spec.key_dim) * sizeof(float),
        .stream = stream,
        .overlap = overlap,
    };
    return Launch(shape, RunGeneric, generic);
  };
  generic.recurrent.decode_slots = args.plan.decode_slots;
  if (const cudaError_t error = launch(args.plan.decode_rows); error != cudaSuccess) return error;
  generic.recurrent.decode_slots = nullptr;
  generic.recurrent.spans = args.plan.spans;
  return launch(args.plan.num_spans);
}

}  // namespace

bool FusesMixer(const LayerSpec& spec) {
  return KernelsOf(spec.key_dim, spec.value_dim) != nullptr && spec.conv_size <= kMaxTaps;
}

size_t MixerWorkspaceBytes(const LayerSpec& spec, ActivationType type, int64_t max_rows) {
  return type == ActivationType::kBF16 ? WorkspaceBytes<Bf16>(spec, max_rows)
                                       : WorkspaceBytes<float>(spec, max_rows);
}

absl::Status LaunchMixer(const LayerSpec& spec, const MixerCoreArgs& args,
                         const MixerResources& resources) {
  const LaunchFunction kernels = KernelsOf(spec.key_dim, spec.value_dim);
  if (args.fused ? !FusesMixer(spec) : args.type != ActivationType::kF32) {
    return absl::InvalidArgumentError(
        absl::StrCat("mixer: no kernels for heads of K ", spec.key_dim, " and V ", spec.value_dim,
                     " with ", spec.conv_size, " taps, ", args.fused ? "fused" : "alone, in bf16"));
  }
  cudaError_t error = cudaSuccess;
  if (kernels == nullptr) {
    error = LaunchGeneric(spec, args, resources.stream, resources.overlap);
  } else {
    StreamLauncher launcher(resources.stream, resources.overlap);
    kernels({spec, args, resources.multiprocessors, resources.workspace, &launcher});
    error = launcher.error();
  }
  if (error == cudaSuccess) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat("mixer launch: ", cudaGetErrorName(error), ": ", cudaGetErrorString(error)));
}

}  // namespace osdn::kernels::cuda
