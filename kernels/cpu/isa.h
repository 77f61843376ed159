// Which instruction set the CPU backend computes with: the best this CPU has, or a lower one that
// was asked for.
#ifndef OSDN_KERNELS_CPU_ISA_H_
#define OSDN_KERNELS_CPU_ISA_H_

#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace osdn::kernels::cpu {

// On x86 each level has what the ones below it have.
enum class Isa : uint8_t {
  kBaseline,    // what every CPU of the architecture has, without vectors where that is little
  kNeon,        // Arm's; never together with the ones below
  kAvx2,        // with FMA
  kAvx512,      // F, BW, CD, DQ, VL (Skylake-X)
  kAvx512Bf16,  // also BF16 and VNNI (Zen 4, Cooper Lake, Sapphire Rapids)
  kAmx,         // also AMX tiles for bf16 and int8 (Sapphire Rapids)
};

// "baseline", "neon", "avx2", "avx512", "avx512_bf16", "amx"
std::string_view IsaName(Isa isa);

// What this CPU, and the kernel under it, can run; ascending, never empty.
std::vector<Isa> SupportedIsas();

// `name` is an IsaName, or "auto" for the best. INVALID_ARGUMENT with the names this CPU supports.
absl::StatusOr<Isa> ParseIsa(std::string_view name);

// Makes Highway's dispatch take targets up to `isa` from now on. Its table is the process's: every
// backend of a process uses the level that was chosen last.
void SelectSimdTarget(Isa isa);

}  // namespace osdn::kernels::cpu

#endif  // OSDN_KERNELS_CPU_ISA_H_
