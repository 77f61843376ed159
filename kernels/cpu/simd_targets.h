// Which Highway targets are compiled. Include before any Highway header.
//
// Kept: AVX-512 (AVX3), AVX2, NEON, and Highway's baseline so that any CPU gets a right answer. SSE
// has no FMA and no server that matters. SVE vectors have no size at compile time, so they cannot
// be array elements (register tiles); NEON reaches the same width on Arm's four-pipe server cores.
#ifndef OSDN_KERNELS_CPU_SIMD_TARGETS_H_
#define OSDN_KERNELS_CPU_SIMD_TARGETS_H_

#define HWY_DISABLED_TARGETS                                                                      \
  (HWY_SSSE3 | HWY_SSE4 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_PPC8 | HWY_WASM | \
   HWY_WASM_EMU256 | HWY_RVV)

// Register tiles are arrays of vectors that live in registers only when their loops are unrolled.
#define OSDN_UNROLL _Pragma("GCC unroll 32")

#endif  // OSDN_KERNELS_CPU_SIMD_TARGETS_H_
