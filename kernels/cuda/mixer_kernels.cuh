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

// The shared memory that a Hopper block may have.
constexpr size_t kMaxSharedBytes = 227 * 1024;

// With output warps beside kWarps state warps.
template <int kK, int kV, int kWarps>
struct SplitStatePassKernel {
  using Args = ChunkArgs;
  static constexpr int kStages = sizeof(StateShared<kK, kWarps, 2>) <= kMaxSharedBytes ? 2 : 1;
  static constexpr int kThreads = 2 * kWarps * kWarp;
  static constexpr int kMinBlocks = 1;
  static constexpr size_t kSharedBytes = sizeof(StateShared<kK, kWarps, kStages>);
  static OSDN_DEVICE void Run(const Args& args, unsigned char* shared) {
    SplitStatePassBody<kK, kWarps, kStages>(args, kV, shared);
  }
};

// A whole head a block.
template <int kK, int kV>
struct WholeStatePassKernel {
  using Args = ChunkArgs;
  static constexpr int kWarps = kV / kStateRows;
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int kMinBlocks = 1;
  static constexpr size_t kSharedBytes = sizeof(StateShared<kK, kWarps, 2, 1>);
  static constexpr bool kExists = kSharedBytes <= kMaxSharedBytes;
  static OSDN_DEVICE void Run(const Args& args, unsigned char* shared) {
    WholeStatePassBody<kK, kWarps>(args, kV, shared);
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
  // A multiprocessor: one's loads behind another's sums.
  static constexpr int kMinBlocks = kK <= 128 ? 3 : 2;
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
  // Whole heads where they fill the multiprocessors, else as many pieces as it takes.
  const int64_t heads = static_cast<int64_t>(plan.num_spans) * args.heads;
  if constexpr (WholeStatePassKernel<kK, kV>::kExists) {
    if (4 * heads >= 3 * multiprocessors) {
      return launch.template Launch<WholeStatePassKernel<kK, kV>>(spans, args);
    }
  }
  if (heads * (kV / (4 * kStateRows)) >= multiprocessors / 2) {
    const Grid states = {plan.num_spans, args.heads, kV / (4 * kStateRows)};
    return launch.template Launch<SplitStatePassKernel<kK, kV, 4>>(states, args);
  }
  const Grid states = {plan.num_spans, args.heads, kV / (2 * kStateRows)};
  return launch.template Launch<SplitStatePassKernel<kK, kV, 2>>(states, args);
}

}  // namespace osdn::kernels::cuda

#endif  // OSDN_KERNELS_CUDA_MIXER_KERNELS_CUH_
