// The mixer for one pair of head sizes: workspace, and the order of launches. Instantiated in
// mixer_*.cu, a file each so that they compile side by side.
#ifndef OSDN_KERNELS_CUDA_MIXER_LAUNCH_CUH_
#define OSDN_KERNELS_CUDA_MIXER_LAUNCH_CUH_

#include <cuda_runtime.h>

#include <cstddef>
#include <type_traits>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mixer.h"
#include "kernels/cuda/mixer_kernels.cuh"

namespace osdn::kernels::cuda {

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kMinBlocks)
    RunKernel(const __grid_constant__ typename Kernel::Args args) {
  extern __shared__ __align__(128) unsigned char shared[];
  WaitForPrevious();
  AllowNext();
  Kernel::Run(args, shared);
}

class StreamLauncher {
 public:
  StreamLauncher(cudaStream_t stream, bool overlap) : stream_(stream), overlap_(overlap) {}

  template <class Kernel>
  bool Launch(Grid grid, const typename Kernel::Args& args) {
    if (error_ != cudaSuccess) return false;
    auto* kernel = RunKernel<Kernel>;
    if (Kernel::kSharedBytes > kDefaultSharedBytes) {
      error_ = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(Kernel::kSharedBytes));
      if (error_ != cudaSuccess) return false;
    }
    const LaunchShape shape = {
        .grid = dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
                     static_cast<unsigned>(grid.z)),
        .block = dim3(Kernel::kThreads),
        .shared_bytes = Kernel::kSharedBytes,
        .stream = stream_,
        .overlap = overlap_,
    };
    error_ = osdn::kernels::cuda::Launch(shape, kernel, args);
    return error_ == cudaSuccess;
  }

  cudaError_t error() const { return error_; }

 private:
  static constexpr size_t kDefaultSharedBytes = 48 * 1024;

  cudaStream_t stream_;
  bool overlap_;
  cudaError_t error_ = cudaSuccess;
};

// Hands out pieces of the workspace in order; with a null base it only counts.
class WorkspacePieces {
 public:
  explicit WorkspacePieces(void* base) : base_(static_cast<unsigned char*>(base)) {}

  template <typename T>
  void Take(int64_t count, T** piece) {
    if (base_ != nullptr) *piece = reinterpret_cast<T*>(base_ + used_);
    constexpr size_t kAlign = 256;
    used_ += (static_cast<size_t>(count) * sizeof(T) + kAlign - 1) / kAlign * kAlign;
  }
  size_t used() const { return used_; }

 private:
  unsigned char* base_;
  size_t used_ = 0;
};

// Of prefill rows; the sizes of `rows` rows fit any smaller batch.
template <typename T>
void LayOutInputs(const LayerSpec& spec, int64_t rows, PrepareArgs<T>* prepare,
                  WorkspacePieces* pieces) {
  pieces->Take(rows * spec.heads * spec.key_dim, &prepare->q_out);
  pieces->Take(rows * spec.heads * spec.key_dim, &prepare->k_out);
  pieces->Take(rows * spec.heads * spec.value_dim, &prepare->v_out);
  pieces->Take(rows * spec.heads, &prepare->beta_out);
  pieces->Take(rows * spec.heads, &prepare->log_alpha_out);
}

inline void LayOutChunks(const LayerSpec& spec, int64_t rows, ChunkArgs* args,
                         WorkspacePieces* pieces) {
  const int64_t keys = rows * spec.heads * spec.key_dim;
  const int64_t gates = rows * spec.heads;
  pieces->Take(keys, &args->w);
  pieces->Take(rows * spec.heads * spec.value_dim, &args->u);
  pieces->Take(gates * kChunk, &args->p);
  if (!spec.precond.enabled) return;
  pieces->Take(keys, &args->kt);
  pieces->Take(keys, &args->w_d);
  pieces->Take(gates, &args->s0);
  pieces->Take(gates, &args->c);
  pieces->Take(gates, &args->solution);
  // A batch has at most as many chunks as rows.
  pieces->Take(keys, &args->e_start);
  pieces->Take(gates, &args->redone);
}

template <typename T>
size_t WorkspaceBytes(const LayerSpec& spec, int64_t rows) {
  WorkspacePieces pieces(nullptr);
  PrepareArgs<T> prepare;
  LayOutInputs(spec, rows, &prepare, &pieces);
  ChunkArgs chunk;
  if constexpr (std::is_same_v<T, Bf16>) LayOutChunks(spec, rows, &chunk, &pieces);
  return pieces.used();
}

inline InputArgs InputsOf(const LayerSpec& spec, const MixerCoreArgs& args) {
  InputArgs input;
  input.heads = static_cast<int32_t>(spec.heads);
  input.beta = args.beta;
  input.log_alpha = args.log_alpha;
  if (!args.fused) return input;
  const MixerLayerWeights& weights = *args.weights;
  input.taps = static_cast<int32_t>(spec.conv_size);
  input.activation = spec.qk_activation;
  input.norm = spec.qk_norm;
  input.q_scale = spec.q_scale;
  input.beta_scale = spec.beta_scale;
  input.conv_q = {weights.q_conv, weights.q_conv_bias, args.conv_q};
  input.conv_k = {weights.k_conv, weights.k_conv_bias, args.conv_k};
  input.conv_v = {weights.v_conv, weights.v_conv_bias, args.conv_v};
  input.alpha_bias = weights.a_bias;
  input.norm_eps = spec.norm_eps;
  input.o_norm = weights.o_norm;
  return input;
}

template <typename T>
RecurrentArgs<T> RecurrentOf(const LayerSpec& spec, const MixerCoreArgs& args) {
  RecurrentArgs<T> recurrent;
  recurrent.heads = static_cast<int32_t>(spec.heads);
  recurrent.precond = spec.precond;
  recurrent.fused = args.fused;
  recurrent.input = InputsOf(spec, args);
  recurrent.q = static_cast<const T*>(args.q);
  recurrent.k = static_cast<const T*>(args.k);
  recurrent.v = static_cast<const T*>(args.v);
  recurrent.gate = static_cast<const T*>(args.gate);
  recurrent.s = args.s;
  recurrent.d = args.d;
  recurrent.o = static_cast<T*>(args.o);
  return recurrent;
}

template <typename T, int kK, int kV>
bool LaunchPrefill(const LayerSpec& spec, const MixerCoreArgs& args, int multiprocessors,
                   void* workspace, StreamLauncher* launch) {
  const DevicePlan& plan = args.plan;
  const int heads = static_cast<int>(spec.heads);
  RecurrentArgs<T> recurrent = RecurrentOf<T>(spec, args);
  recurrent.spans = plan.spans;
  if (!args.fused) {
    return launch->template Launch<RecurrentKernel<T, kK, kV>>({plan.num_spans, heads, 1},
                                                               recurrent);
  }
  WorkspacePieces pieces(workspace);
  PrepareArgs<T> prepare;
  LayOutInputs(spec, plan.rows, &prepare, &pieces);
  prepare.input = recurrent.input;
  prepare.chunks = plan.chunks;
  prepare.spans = plan.spans;
  prepare.q = recurrent.q;
  prepare.k = recurrent.k;
  prepare.v = recurrent.v;
  prepare.gate = recurrent.gate;
  prepare.o = recurrent.o;
  const Grid chunks = {plan.num_chunks, heads, 1};
  if (!launch->template Launch<PrepareKernel<T, kK, kV>>(chunks, prepare)) return false;

  const float* log_alpha = args.log_alpha == nullptr ? nullptr : prepare.log_alpha_out;
  if constexpr (std::is_same_v<T, Bf16>) {
    ChunkArgs chunk;
    LayOutChunks(spec, plan.rows, &chunk, &pieces);
    chunk.chunks = plan.chunks;
    chunk.spans = plan.spans;
    chunk.heads = heads;
    chunk.precond = spec.precond;
    chunk.q = prepare.q_out;
    chunk.k = prepare.k_out;
    chunk.v = prepare.v_out;
    chunk.beta = prepare.beta_out;
    chunk.log_alpha = log_alpha;
    chunk.s = args.s;
    chunk.d = args.d;
    // The write keys are the read keys without preconditioner; nothing writes them then.
    if (!spec.precond.enabled) chunk.kt = prepare.k_out;
    chunk.o = recurrent.o;
    if (!LaunchChunks<kK, kV>(*launch, plan, multiprocessors, chunk)) return false;
  } else {
    recurrent.fused = false;
    recurrent.q = prepare.q_out;
    recurrent.k = prepare.k_out;
    recurrent.v = prepare.v_out;
    recurrent.input.beta = prepare.beta_out;
    recurrent.input.log_alpha = log_alpha;
    if (!launch->template Launch<RecurrentKernel<T, kK, kV>>({plan.num_spans, heads, 1},
                                                             recurrent)) {
      return false;
    }
  }
  return launch->template Launch<FinishKernel<T, kK, kV>>(chunks, prepare);
}

struct MixerLaunch {
  const LayerSpec& spec;
  const MixerCoreArgs& args;
  int multiprocessors;
  void* workspace;
  StreamLauncher* launch;
};

template <typename T, int kK, int kV>
bool LaunchAll(const MixerLaunch& mixer) {
  const DevicePlan& plan = mixer.args.plan;
  if (plan.decode_rows > 0) {
    RecurrentArgs<T> recurrent = RecurrentOf<T>(mixer.spec, mixer.args);
    recurrent.decode_slots = plan.decode_slots;
    const Grid grid = {plan.decode_rows, static_cast<int>(mixer.spec.heads), 1};
    if (!mixer.launch->template Launch<RecurrentKernel<T, kK, kV>>(grid, recurrent)) return false;
  }
  if (plan.num_spans == 0) return true;
  return LaunchPrefill<T, kK, kV>(mixer.spec, mixer.args, mixer.multiprocessors, mixer.workspace,
                                  mixer.launch);
}

// Defined for the pairs of mixer_*.cu.
template <int kK, int kV>
bool LaunchMixerOf(const MixerLaunch& mixer);
template <>
bool LaunchMixerOf<64, 64>(const MixerLaunch& mixer);
template <>
bool LaunchMixerOf<128, 128>(const MixerLaunch& mixer);
template <>
bool LaunchMixerOf<256, 256>(const MixerLaunch& mixer);

#define OSDN_INSTANTIATE_MIXER(K, V)                                                 \
  template <>                                                                        \
  bool LaunchMixerOf<K, V>(const MixerLaunch& mixer) {                               \
    return mixer.args.type == ActivationType::kBF16 ? LaunchAll<Bf16, K, V>(mixer)   \
                                                    : LaunchAll<float, K, V>(mixer); \
  }

}  // namespace osdn::kernels::cuda

#endif  // OSDN_KERNELS_CUDA_MIXER_LAUNCH_CUH_
