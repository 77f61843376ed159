// A few threads and a queue of short jobs.
#ifndef OSDN_SERVER_EXECUTOR_H_
#define OSDN_SERVER_EXECUTOR_H_

#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace osdn {

// Thread-safe. Keeps work off threads that must not wait: the engine's loop and gRPC's pollers.
// Jobs start in the order of Post; with one thread they also end in it.
class Executor {
 public:
  explicit Executor(int threads);
  // Runs what was posted, then joins. Nothing may be posted any more but by the jobs themselves.
  ~Executor();

  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  void Post(std::function<void()> job);

 private:
  void Run();

  absl::Mutex mutex_;
  absl::CondVar work_;
  std::deque<std::function<void()>> jobs_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace osdn

#endif  // OSDN_SERVER_EXECUTOR_H_
