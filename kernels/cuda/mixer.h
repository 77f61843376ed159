// Everything of a block's token mixer between the projections and o_proj, as few launches:
// short convolutions, activation and norm of q and k, gates, the OSDN recurrence, output norm and
// output gate. Decode rows take one launch (mixer_recurrent.cuh); prefill spans go chunkwise
// (chunk_*.cuh), or token by token in float32. The Backend op Mixer uses the same recurrence
// kernels with `fused` off.
#ifndef OSDN_KERNELS_CUDA_MIXER_H_
#define OSDN_KERNELS_CUDA_MIXER_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/batch_plan.h"
#include "kernels/include/layer.h"

namespace osdn::kernels::cuda {

// Element type of the activations between products: that of the weights' operands.
enum class ActivationType : uint8_t { kF32, kBF16 };

constexpr size_t ActivationBytes(ActivationType type) {
  return type == ActivationType::kBF16 ? 2 : 4;
}

// Pointers are device memory. Matrices are row-major with rows packed ([rows, dim]).
struct MixerCoreArgs {
  DevicePlan plan;
  ActivationType type = ActivationType::kF32;
  // True: q, k, v are projections, beta and log_alpha those of b_proj and a_proj (null without),
  // and o is to be normed and gated. False: they are what MixerArgs wants, and o is the bare
  // output.
  bool fused = true;
  const void* q = nullptr;                     // [rows, heads * K]
  const void* k = nullptr;                     // [rows, heads * K]
  const void* v = nullptr;                     // [rows, heads * V]
  const void* gate = nullptr;                  // [rows, heads * V] or null
  const float* beta = nullptr;                 // [rows, heads] or null: beta_scale
  const float* log_alpha = nullptr;            // [rows, heads] or null: alpha = 1
  const MixerLayerWeights* weights = nullptr;  // conv, a_bias, o_norm; unused without `fused`
  SlotArray s, d, conv_q, conv_k, conv_v;
  void* o = nullptr;  // [rows, heads * V]
};

// Where and how to launch.
struct MixerResources {
  void* workspace = nullptr;  // MixerWorkspaceBytes; only of prefill with `fused`
  int multiprocessors = 0;
  cudaStream_t stream = nullptr;
  bool overlap = false;  // launch.cuh
};

// Whether there are kernels for `fused` calls of these head sizes and this convolution; where not,
// composed layers do it op by op.
bool FusesMixer(const LayerSpec& spec);

// Device memory that LaunchMixer wants beside its arguments, for batches of at most `max_rows`
// rows.
size_t MixerWorkspaceBytes(const LayerSpec& spec, ActivationType type, int64_t max_rows);

// Enqueues the batch's decode rows and prefill spans. Without `fused` any K and V, float32 only.
// INTERNAL when a launch fails; INVALID_ARGUMENT for what there is no kernel for.
absl::Status LaunchMixer(const LayerSpec& spec, const MixerCoreArgs& args,
                         const MixerResources& resources);

}  // namespace osdn::kernels::cuda

#endif  // OSDN_KERNELS_CUDA_MIXER_H_
