// Size arithmetic shared by the CPU kernels.
#ifndef OSDN_KERNELS_CPU_SIZES_H_
#define OSDN_KERNELS_CPU_SIZES_H_

#include <cstdint>

namespace osdn::kernels::cpu {

// Rows of scratch matrices are padded to whole 64-byte lines: a multiple of every target's vector,
// so kernels on scratch have no tails.
inline constexpr int64_t kLineFloats = 16;

constexpr int64_t CeilDiv(int64_t n, int64_t d) { return (n + d - 1) / d; }
constexpr int64_t RoundUp(int64_t n, int64_t multiple) { return CeilDiv(n, multiple) * multiple; }
constexpr int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }

}  // namespace osdn::kernels::cpu

#endif  // OSDN_KERNELS_CPU_SIZES_H_
