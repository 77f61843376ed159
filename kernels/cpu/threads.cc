#include "kernels/cpu/threads.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

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
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) {
    return static_cast<int>(std::thread::hardware_concurrency());
  }
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

// How long a worker looks for the next region before it sleeps: longer than anything a step does
// between two regions, shorter than anyone would notice on an idle machine.
constexpr std::chrono::microseconds kSpin{1000};
constexpr int kSpinsPerClock = 64;

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");
#endif
}

}  // namespace

int UsableCores() {
  const int cores = AffinityCores();
  const int quota = QuotaCores();
  return std::max(1, quota > 0 ? std::min(cores, quota) : cores);
}

class Threads::Team {
 public:
  explicit Team(int workers) {
    for (int i = 0; i < workers; ++i) {
      workers_.emplace_back([this, thread = i + 1] { Work(thread); });
    }
  }
  ~Team() {
    Start(nullptr, nullptr);
    for (std::thread& worker : workers_) worker.join();
  }
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  void Run(RegionFn function, const void* context) {
    Start(function, context);
    function(context, 0);
    // The others are about to end too; with more threads than cores they may yet have to begin.
    for (int spins = 0; running_.load(std::memory_order_acquire) != 0; ++spins) {
      spins < kSpinsPerClock ? Pause() : std::this_thread::yield();
    }
  }

 private:
  void Start(RegionFn function, const void* context) {
    function_ = function;
    context_ = context;
    running_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    region_.fetch_add(1, std::memory_order_release);
    region_.notify_all();
  }

  void Work(int thread) {
    const FlushDenormals flush;
    uint32_t seen = 0;
    while (true) {
      seen = AwaitRegionAfter(seen);
      if (function_ == nullptr) return;
      function_(context_, thread);
      running_.fetch_sub(1, std::memory_order_release);
    }
  }

  uint32_t AwaitRegionAfter(uint32_t seen) {
    const auto start = std::chrono::steady_clock::now();
    do {
      for (int i = 0; i < kSpinsPerClock; ++i) {
        const uint32_t now = region_.load(std::memory_order_acquire);
        if (now != seen) return now;
        Pause();
      }
    } while (std::chrono::steady_clock::now() - start < kSpin);
    region_.wait(seen, std::memory_order_acquire);
    return region_.load(std::memory_order_acquire);
  }

  // Written by the caller before region_ moves on, read by workers after.
  RegionFn function_ = nullptr;
  const void* context_ = nullptr;
  alignas(64) std::atomic<uint32_t> region_{0};
  alignas(64) std::atomic<int> running_{0};
  std::vector<std::thread> workers_;
};

Threads::Threads(int count)
    : count_(std::max(count, 1)), team_(count > 1 ? std::make_shared<Team>(count - 1) : nullptr) {}

void Threads::Run(RegionFn function, const void* context) const { team_->Run(function, context); }

}  // namespace osdn::kernels::cpu
