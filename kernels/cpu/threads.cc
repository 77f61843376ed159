#include "kernels/cpu/threads.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace osdn::kernels::cpu {
namespace {

// First integer of a sysfs file, or `fallback`.
int ReadInt(const std::string& path, int fallback) {
  std::ifstream file(path);
  int value = fallback;
  return file >> value ? value : fallback;
}

int AffinityCores() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return omp_get_num_procs();
  std::set<std::pair<int, int>> cores;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    const std::string topology = absl::StrCat("/sys/devices/system/cpu/cpu", cpu, "/topology/");
    // Without sysfs every CPU counts as a core of its own.
    cores.emplace(ReadInt(topology + "physical_package_id", -1),
                  ReadInt(topology + "core_id", cpu));
  }
  return static_cast<int>(cores.size());
}

// CPUs granted by cgroup v2 ("max 100000" or "<quota> <period>"), rounded up; 0 = no limit.
int QuotaCores() {
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  std::string quota_text;
  double period = 0;
  double quota = 0;
  if (!(file >> quota_text >> period) || period <= 0) return 0;
  if (!absl::SimpleAtod(quota_text, &quota) || quota <= 0) return 0;
  return static_cast<int>(std::ceil(quota / period));
}

}  // namespace

int UsableCores() {
  const int cores = AffinityCores();
  const int quota = QuotaCores();
  return std::max(1, quota > 0 ? std::min(cores, quota) : cores);
}

}  // namespace osdn::kernels::cpu
