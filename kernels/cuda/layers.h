// A block of the network with everything fused that pays: kernels/include/layer.h on the GPU.
#ifndef OSDN_KERNELS_CUDA_LAYERS_H_
#define OSDN_KERNELS_CUDA_LAYERS_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/memory.h"
#include "kernels/cuda/mixer.h"
#include "kernels/cuda/step_graphs.h"
#include "kernels/include/layer.h"

namespace osdn::kernels::cuda {

// What runners share with the backend that made them, which outlives them.
struct LayerContext {
  Device* device = nullptr;
  Linear* linear = nullptr;
  StepGraphs* steps = nullptr;
};

// Mixer: [norm and projections] [mixer] [o_proj, adding to x]; Mlp: [norm, gate, up, SwiGLU]
// [down_proj, adding to x]: five launches a block while rows are few (linear.h). Activations
// between products are bf16, or float32 where the weights are float32.
class CudaLayerRunner final : public LayerRunner {
 public:
  // `type` is what the weights are expected to want; a network of another type makes the scratch
  // anew when it is met. RESOURCE_EXHAUSTED when it does not fit.
  static absl::StatusOr<std::unique_ptr<CudaLayerRunner>> Create(const LayerContext& context,
                                                                 const LayerSpec& spec,
                                                                 int64_t max_rows,
                                                                 ActivationType type);
  CudaLayerRunner(const CudaLayerRunner&) = delete;
  CudaLayerRunner& operator=(const CudaLayerRunner&) = delete;
  ~CudaLayerRunner() override;

  absl::Status Mixer(const MixerLayerArgs& args) override;
  absl::Status Mlp(const MlpLayerArgs& args) override;
  size_t scratch_bytes() const override {
    return scratch_.bytes() + context_.linear->scratch_bytes();
  }

  // Whether the kernels have the sizes of `spec`; others take the composition of single ops.
  static bool Supports(const LayerSpec& spec);

 private:
  // Places in scratch_, [max_rows, dim] each. q, k, v and gate lie at equal distances when their
  // sizes are equal, so that their products run as one batch.
  struct Places {
    void* q = nullptr;
    void* k = nullptr;
    void* v = nullptr;
    void* gate = nullptr;  // null without
    float* beta = nullptr;
    float* log_alpha = nullptr;
    void* o = nullptr;
    void* inner = nullptr;  // over q and what is behind it: the mixer is done by then
    void* workspace = nullptr;
  };

  CudaLayerRunner(const LayerContext& context, const LayerSpec& spec, int64_t max_rows);
  absl::Status Allocate(ActivationType type);
  absl::Status CheckRows(const BatchView& batch) const;
  absl::Status Project(int64_t rows, const MixerLayerArgs& args);

  LayerContext context_;
  LayerSpec spec_;
  int64_t max_rows_;
  ActivationType type_ = ActivationType::kBF16;
  Scratch scratch_;
  Places places_;
};

}  // namespace osdn::kernels::cuda

#endif  // OSDN_KERNELS_CUDA_LAYERS_H_
