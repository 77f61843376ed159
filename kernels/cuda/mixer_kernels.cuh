// The mixer's kernels as types: what a launcher needs to know of each (arguments, threads, shared
// memory) and the body. mixer.cu launches them on the GPU, the emulated tests on the host.
#ifndef OSDN_KERNELS_CUDA_MIXER_KERNELS_CUH_
#define OSDN_KERNELS_CUDA_MIXER_KERNELS_CUH_

#include "kernels/cuda/chunk_gram.cuh"
#include "kernels/cuda/chunk_local.cuh"
#include "kernels/cuda/chunk_precond.cuh"
#include "kernels/cuda/chunk_state_pass.cuh"
#include "kernels/cuda/mixer_inputs.cuh"
#include "kernels/cuda/mixer_recurrent.cuh"

namespace osdn::kernels::cuda {

template <int kK>
struct GramKernel {
  using Args = ChunkArgs;
  static constexpr int kThreads = kGramThreads;
  static constexpr int kMinBlocks = 1;
  static constexpr size_t kSharedBytes = sizeof(GramShared<kK>);
  static OSDN_DEVICE void Run(const Args& args, unsigned char* shared) {
    GramBody<kK>(args, shared);
  }
};

template <int kK>
struct PrecondKernel {
  using Args = ChunkArgs;
  static constexpr int kThreads = kPrecondThreads;
  static constexpr int kMinBlocks = 1;
  static constexpr size_t kSharedBytes = sizeof(PrecondShared<kK>);
  static OSDN_DEVICE void Run(const Args& args, unsigned char* shared) {
    PrecondBody<kK>(args, shared);
  }
};

template <int kK, int kV>
struct LocalKernel {
  using Args = ChunkArgs;
  static constexpr int kThreads = kLocalThreads;
  static constexpr int kMinBlocks = 1;
  static constexpr size_t kSharedBytes = sizeof(LocalShared<kK, kV>);
  static OSDN_DEVICE void Run(const Args& args, unsigned char* shared) {
    LocalBody<kK, kV>(args, shared);
  }
};

template <int kK, int kV, int kWarps>
struct StatePassKernel {
  using Args = ChunkArgs;
  // Two where they fit into the 227 KiB that a Hopper block may have.
  static constexpr int kStages = sizeof(StateShared<kK, kWarps, 2>) <= 227 * 1024 ? 2 : 1;
  static constexpr int kThreads = 2 * kWarps * kWarp;
  static constexpr int kMinBlocks = 1;
  static constexpr size_t kSharedBytes = sizeof(StateShared<kK, kWarps, kStages>);
  static OSDN_DEVICE void Run(const Args& args, unsigned char* shared) {
    StatePassBody<kK, kWarps, kStages>(args, kV, shared);
  }
};

template <typename T, int kK, int kV>
struct PrepareKernel {
  using Args = PrepareArgs<T>;
  static constexpr int kThreads = kInputThreads;
  static constexpr int kMinBlocks = 1;
  static constexpr size_t kSharedBytes = 0;
  static OSDN_DEVICE void Run(const Args& args, unsigned char*) { PrepareBody<T, kK, kV>(args); }
};

template <typename T, int kK, int kV>
struct FinishKernel {
  using Args = PrepareArgs<T>;
  static constexpr int kThreads = kInputThreads;
  static constexpr int kMinBlocks = 1;
  static constexpr size_t kSharedBytes = 0;
  static OSDN_DEVICE void Run(const Args& args, unsigned char*) { FinishBody<T, kK, kV>(args); }
};

template <typename T, int kK, int kV>
struct RecurrentKernel {
  using Args = RecurrentArgs<T>;
  static constexpr int kThreads = kRecurrentThreads;
  static constexpr int kMinBlocks = 3;  // a multiprocessor: one's loads behind another's sums
  static constexpr size_t kSharedBytes = sizeof(RecurrentShared<kK, kV>);
  static OSDN_DEVICE void Run(const Args& args, unsigned char* shared) {
    RecurrentBody<T, kK, kV>(args, shared);
  }
};

struct Grid {
  int x = 1;
  int y = 1;
  int z = 1;
};

// How many state warps of 16 value rows share a block of the state pass: few where there are few
// heads to fill the multiprocessors, more where there are many, so that less is read twice.
constexpr int StatePassWarps(int64_t heads_of_spans, int value_dim, int multiprocessors) {
  return heads_of_spans * (value_dim / (kStateRows * 4)) >= multiprocessors / 2 ? 4 : 2;
}

// Both phases for all spans. `launch.template Launch<Kernel>(grid, args)` enqueues a kernel and
// returns false on an error, after which nothing more is enqueued.
template <int kK, int kV, class Launcher>
bool LaunchChunks(Launcher& launch, const DevicePlan& plan, int multiprocessors,
                  const ChunkArgs& args) {
  const Grid chunks = {plan.num_chunks, args.heads, 1};
  const Grid spans = {plan.num_spans, args.heads, 1};
  if (args.precond.enabled) {
    if (!launch.template Launch<GramKernel<kK>>(chunks, args)) return false;
    if (!launch.template Launch<PrecondKernel<kK>>(spans, args)) return false;
  }
  if (!launch.template Launch<LocalKernel<kK, kV>>(chunks, args)) return false;
  const int warps =
      StatePassWarps(static_cast<int64_t>(plan.num_spans) * args.heads, kV, multiprocessors);
  const Grid states = {plan.num_spans, args.heads, kV / (kStateRows * warps)};
  if (warps == 4) return launch.template Launch<StatePassKernel<kK, kV, 4>>(states, args);
  return launch.template Launch<StatePassKernel<kK, kV, 2>>(states, args);
}

}  // namespace osdn::kernels::cuda

#endif  // OSDN_KERNELS_CUDA_MIXER_KERNELS_CUH_
