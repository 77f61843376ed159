// A team of threads that shares out the loops of one backend, and how many cores there are for it.
#ifndef OSDN_KERNELS_CPU_THREADS_H_
#define OSDN_KERNELS_CPU_THREADS_H_

#include <atomic>
#include <cstdint>
#include <memory>

#include "kernels/cpu/denormals.h"
#include "kernels/cpu/sizes.h"

namespace osdn::kernels::cpu {

// Physical cores this process may run on: scheduling affinity with hyper-threads counted once, and
// not more than the cgroup's CPU quota. At least 1.
int UsableCores();

// Regions are microseconds long and follow each other closely while a step runs: between them the
// workers keep looking for the next for a millisecond, then sleep, so that an idle server burns
// nothing. Used by one thread at a time; copies share the workers, which end with the last copy.
class Threads {
 public:
  explicit Threads(int count);

  int count() const { return count_; }

  // Tasks run with denormals flushed, on the caller too.
  //
  // Calls task(index, thread) for every index in [0, tasks), in any order. `work` is the total cost
  // in float operations, roughly; too little of it runs on the caller.
  template <class Task>
  void For(int64_t tasks, int64_t work, const Task& task) const {
    const FlushDenormals flush;
    if (Serial(tasks, work)) {
      for (int64_t i = 0; i < tasks; ++i) task(i, 0);
      return;
    }
    std::atomic<int64_t> next{0};
    Region([&](int thread) {
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) task(i, thread);
    });
  }

  // Calls task(begin, end) once a thread with equal shares of [0, items), borders at multiples of
  // `grain`.
  template <class Task>
  void ForShares(int64_t items, int64_t grain, int64_t work, const Task& task) const {
    const FlushDenormals flush;
    const int64_t grains = CeilDiv(items, grain);
    if (Serial(grains, work)) {
      task(int64_t{0}, items);
      return;
    }
    Region([&](int thread) {
      const int64_t begin = Min(items, grains * thread / count_ * grain);
      const int64_t end = Min(items, grains * (thread + 1) / count_ * grain);
      if (begin < end) task(begin, end);
    });
  }

  // Calls task(share, shares) once a thread, or once with shares 1 where `items` or `work` are too
  // few: for callers that divide the work themselves.
  template <class Task>
  void Each(int64_t items, int64_t work, const Task& task) const {
    const FlushDenormals flush;
    if (Serial(items, work)) {
      task(int64_t{0}, int64_t{1});
      return;
    }
    Region([&](int thread) { task(int64_t{thread}, int64_t{count_}); });
  }

 private:
  class Team;
  using RegionFn = void (*)(const void* context, int thread);

  // Below this a region (a microsecond or two) costs more than it saves.
  static constexpr int64_t kMinParallelWork = int64_t{1} << 17;

  bool Serial(int64_t tasks, int64_t work) const {
    return count_ == 1 || tasks < 2 || work < kMinParallelWork;
  }

  // Calls body(thread) on every thread of the team, the caller being thread 0, and waits.
  template <class Body>
  void Region(const Body& body) const {
    Run([](const void* context, int thread) { (*static_cast<const Body*>(context))(thread); },
        &body);
  }
  void Run(RegionFn function, const void* context) const;

  int count_;
  std::shared_ptr<Team> team_;
};

}  // namespace osdn::kernels::cpu

#endif  // OSDN_KERNELS_CPU_THREADS_H_
