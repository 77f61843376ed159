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

// The machine's ceilings (kernels/cpu/ceilings.h), in bytes and FLOP a second.
double ReadBandwidth();
double UpdateBandwidth();
double GemmPeak(DType dtype);

}  // namespace osdn::kernels::bench

#endif  // OSDN_KERNELS_CPU_BENCH_BENCH_UTIL_H_
