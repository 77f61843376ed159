// The one team of OpenMP threads that our kernels and oneDNN share.
#ifndef OSDN_KERNELS_CPU_THREADS_H_
#define OSDN_KERNELS_CPU_THREADS_H_

#include <omp.h>

#include <cstdint>

#include "kernels/cpu/sizes.h"

namespace osdn::kernels::cpu {

// Physical cores this process may run on: scheduling affinity with hyper-threads counted once, and
// not more than the cgroup's CPU quota. At least 1.
int UsableCores();

// How many threads to use. A region runs either on all of them or on the caller alone: libgomp ends
// and restarts threads when the team size changes. Which of the two depends on sizes only and never
// changes results.
class Threads {
 public:
  explicit Threads(int count) : count_(count) {}

  int count() const { return count_; }

  // Calls task(index, thread) for every index in [0, tasks), in any order. `work` is the total cost
  // in float operations, roughly; too little of it runs on the caller.
  template <class Task>
  void For(int64_t tasks, int64_t work, const Task& task) const {
    if (Serial(tasks, work)) {
      for (int64_t i = 0; i < tasks; ++i) task(i, 0);
      return;
    }
#pragma omp parallel for schedule(dynamic, 1) num_threads(count_)
    for (int64_t i = 0; i < tasks; ++i) task(i, omp_get_thread_num());
  }

  // Calls task(begin, end) once a thread with equal shares of [0, items), borders at multiples of
  // `grain`.
  template <class Task>
  void ForShares(int64_t items, int64_t grain, int64_t work, const Task& task) const {
    const int64_t grains = CeilDiv(items, grain);
    if (Serial(grains, work)) {
      task(int64_t{0}, items);
      return;
    }
#pragma omp parallel num_threads(count_)
    {
      const int64_t thread = omp_get_thread_num();
      const int64_t team = omp_get_num_threads();
      const int64_t begin = Min(items, grains * thread / team * grain);
      const int64_t end = Min(items, grains * (thread + 1) / team * grain);
      if (begin < end) task(begin, end);
    }
  }

 private:
  // Below this a fork and join (a few microseconds) costs more than it saves.
  static constexpr int64_t kMinParallelWork = int64_t{1} << 17;

  bool Serial(int64_t tasks, int64_t work) const {
    return count_ == 1 || tasks < 2 || work < kMinParallelWork;
  }

  int count_;
};

// While alive, OpenMP regions of the calling thread (oneDNN's) get `threads` threads.
class ScopedOmpThreads {
 public:
  explicit ScopedOmpThreads(const Threads& threads) : previous_(omp_get_max_threads()) {
    omp_set_num_threads(threads.count());
  }
  ~ScopedOmpThreads() { omp_set_num_threads(previous_); }
  ScopedOmpThreads(const ScopedOmpThreads&) = delete;
  ScopedOmpThreads& operator=(const ScopedOmpThreads&) = delete;

 private:
  int previous_;
};

}  // namespace osdn::kernels::cpu

#endif  // OSDN_KERNELS_CPU_THREADS_H_
