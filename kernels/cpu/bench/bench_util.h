// What the benchmarks share: reproducible data and the machine's own ceilings, measured in the same
// run because they drift on shared machines.
#ifndef OSDN_KERNELS_CPU_BENCH_BENCH_UTIL_H_
#define OSDN_KERNELS_CPU_BENCH_BENCH_UTIL_H_

#include <cstdint>
#include <memory>

#include "kernels/backend.h"

namespace osdn::kernels::bench {

// Threads to use: OSDN_BENCH_THREADS, else 0 (one a physical core).
std::unique_ptr<Backend> MakeBackend();
int ThreadCount();

// Uniform in [-1, 1), the same every time. Aligned like the engine's memory.
Buffer RandomFloats(int64_t count, uint32_t seed);
Buffer RandomBf16(int64_t count, uint32_t seed);
Buffer ZeroFloats(int64_t count);

// Bytes a second of all threads reading a buffer far larger than the caches; and of scaling it in
// place, counting each byte as read and written. Best of a few passes.
double ReadBandwidth();
double UpdateBandwidth();

// FLOP/s of oneDNN on a large square product: the ceiling for products.
double GemmPeak(DType dtype);

}  // namespace osdn::kernels::bench

#endif  // OSDN_KERNELS_CPU_BENCH_BENCH_UTIL_H_
