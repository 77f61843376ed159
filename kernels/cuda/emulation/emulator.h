// Runs a kernel's block on the host: every thread of the block is a fiber, switched at barriers and
// warp collectives. Slow and exact about who sees what when: shared memory written before a barrier
// is seen after it, asynchronous copies arrive only when waited for (what is read too early is
// old), and a thread that misses a barrier is reported. For tests of kernels/cuda/*.cuh
// (primitives.cuh).
#ifndef OSDN_KERNELS_CUDA_EMULATION_EMULATOR_H_
#define OSDN_KERNELS_CUDA_EMULATION_EMULATOR_H_

#include <array>
#include <cstddef>
#include <cstring>
#include <functional>

namespace osdn::kernels::cuda::emulation {

inline constexpr int kLanes = 32;
inline constexpr size_t kExchangeBytes = 64;  // of one lane

struct ThreadView {
  int thread = 0;
  std::array<int, 3> block = {0, 0, 0};
};

// Of the running fiber.
const ThreadView& Self();
void SyncThreads();
bool SyncThreadsOr(bool value);
void SyncWarp();
void CopyAsync(void* shared, const void* global, bool valid);
void CopyAsyncCommit();
void CopyAsyncWait(int pending);

// Deposits this lane's bytes and returns those of all lanes, `stride` apart, once all are there.
const std::byte* Exchange(const void* own, size_t bytes, size_t stride);

// result = combine(values of all lanes, own lane).
template <typename T, typename Combine>
auto WarpExchange(const T& own, const Combine& combine) {
  static_assert(sizeof(T) <= kExchangeBytes);
  const std::byte* all = Exchange(&own, sizeof(T), sizeof(T));
  std::array<T, kLanes> lanes;
  std::memcpy(static_cast<void*>(lanes.data()), all, sizeof(lanes));
  return combine(static_cast<const T*>(lanes.data()), Self().thread % kLanes);
}

struct Launch {
  std::array<int, 3> grid = {1, 1, 1};
  int threads = 32;
  size_t shared_bytes = 0;
};

// Runs `body(shared memory)` as every thread of every block, block after block. Shared memory
// starts as rubbish (NaN). Ends the program with a message when the threads' barriers do not match.
void Run(const Launch& launch, const std::function<void(unsigned char* shared)>& body);

}  // namespace osdn::kernels::cuda::emulation

#endif  // OSDN_KERNELS_CUDA_EMULATION_EMULATOR_H_
