#include "kernels/cpu/isa.h"

#include <algorithm>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/cpu/simd_targets.h"
// After simd_targets.h
#include "hwy/highway.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace osdn::kernels::cpu {
namespace {

constexpr Isa kAll[] = {Isa::kBaseline, Isa::kNeon,       Isa::kAvx2,
                        Isa::kAvx512,   Isa::kAvx512Bf16, Isa::kAmx};

#if defined(__x86_64__)
// Tiles are 8 KB of state a thread, which Linux saves only for processes that have asked.
bool EnableAmx() {
  constexpr unsigned kBf16 = 1U << 22;
  constexpr unsigned kTile = 1U << 24;
  constexpr unsigned kInt8 = 1U << 25;
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  constexpr unsigned kAmx = kBf16 | kTile | kInt8;
  if ((edx & kAmx) != kAmx) return false;
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;               // XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

bool Supports(Isa isa) {
  switch (isa) {
    case Isa::kBaseline:
      return true;
    case Isa::kNeon:
      return false;
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0;
    case Isa::kAvx512:
      return Supports(Isa::kAvx2) && __builtin_cpu_supports("avx512f") != 0 &&
             __builtin_cpu_supports("avx512bw") != 0 && __builtin_cpu_supports("avx512cd") != 0 &&
             __builtin_cpu_supports("avx512dq") != 0 && __builtin_cpu_supports("avx512vl") != 0;
    case Isa::kAvx512Bf16:
      return Supports(Isa::kAvx512) && __builtin_cpu_supports("avx512bf16") != 0 &&
             __builtin_cpu_supports("avx512vnni") != 0;
    case Isa::kAmx:
      return Supports(Isa::kAvx512Bf16) && EnableAmx();
  }
  return false;
}
#elif defined(__aarch64__)
bool Supports(Isa isa) { return isa == Isa::kBaseline || isa == Isa::kNeon; }
#else
bool Supports(Isa isa) { return isa == Isa::kBaseline; }
#endif

}  // namespace

std::string_view IsaName(Isa isa) {
  switch (isa) {
    case Isa::kBaseline:
      return "baseline";
    case Isa::kNeon:
      return "neon";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
    case Isa::kAmx:
      return "amx";
  }
  return "unknown";
}

std::vector<Isa> SupportedIsas() {
  std::vector<Isa> supported;
  std::copy_if(std::begin(kAll), std::end(kAll), std::back_inserter(supported), Supports);
  return supported;
}

absl::StatusOr<Isa> ParseIsa(std::string_view name) {
  const std::vector<Isa> supported = SupportedIsas();
  if (name == "auto") return supported.back();
  for (const Isa isa : supported) {
    if (name == IsaName(isa)) return isa;
  }
  const std::string names = absl::StrJoin(supported, ", ", [](std::string* out, Isa isa) {
    absl::StrAppend(out, std::string(IsaName(isa)));
  });
  return absl::InvalidArgumentError(
      absl::StrCat("cpu instruction set \"", std::string(name), "\": this CPU has auto, ", names));
}

void SelectSimdTarget(Isa isa) {
  int64_t disabled = 0;
  if (isa < Isa::kAvx512) disabled |= HWY_AVX3 | HWY_AVX3_DL;
  if (isa < Isa::kAvx2) disabled |= HWY_AVX2;
  hwy::DisableTargets(disabled);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

}  // namespace osdn::kernels::cpu
