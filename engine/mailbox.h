// Everything the engine's loop shares with other threads: arrivals, orders, gauges.
#ifndef OSDN_ENGINE_MAILBOX_H_
#define OSDN_ENGINE_MAILBOX_H_

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "engine/engine_stats.h"
#include "engine/sequence.h"

namespace osdn {

// Thread-safe. Requests are accepted while fewer than the limits wait, and each accepted one is
// handed to the loop exactly once.
class Mailbox {
 public:
  struct Limits {
    int64_t max_requests = 256;
    int64_t max_tokens = 1 << 20;  // of input: prompts, and continuations to be scored
  };

  explicit Mailbox(const Limits& limits) : limits_(limits) {}

  // --- Any thread ---
  // RESOURCE_EXHAUSTED telling the limit that is reached; what Close said after it.
  absl::Status Submit(std::unique_ptr<Sequence> sequence);
  // Makes the loop look again: a reader caught up or cancelled.
  void Wake();
  // No more submissions; they get `reason` from now on. The first reason stays.
  void Close(absl::Status reason);
  // OK while open, else Close's reason.
  absl::Status closed() const;
  // Asks the loop to end everything it has, so.
  void Abort(Ending ending);
  // Asks the loop to return. After Close.
  void Stop();
  // Until every accepted request has its last GenerationFinished.
  void WaitUntilDone();
  // The same for at most `timeout`; whether it came to that.
  bool WaitUntilDone(std::chrono::milliseconds timeout);
  EngineStats stats() const;

  // --- The loop ---
  struct Orders {
    std::vector<std::unique_ptr<Sequence>> arrivals;  // in order of submission
    std::optional<Ending> abort;
    bool stop = false;
  };
  // What came since the last call; with `wait`, not before something did or `until` is reached.
  Orders Take(bool wait, std::optional<std::chrono::steady_clock::time_point> until = {});
  // A request of so many input tokens left the queue.
  void LeftQueue(int64_t tokens);
  void SetRunning(int64_t running, int64_t swapped, int64_t slots_used);
  void SetPrefixCache(const PrefixCacheStats& stats);
  void SetStepTimes(const StepTimes& times);
  // A request's last GenerationFinished is pushed.
  void Done();

 private:
  const Limits limits_;
  // Guards all below. Standard mutexes for the reason given in token_stream.h.
  mutable std::mutex mutex_;
  std::condition_variable woken_;     // the loop waits
  std::condition_variable all_done_;  // drainers wait
  std::vector<std::unique_ptr<Sequence>> arrivals_;
  std::optional<Ending> abort_;
  absl::Status closed_;
  bool stop_ = false;
  bool wake_ = false;
  uint64_t next_id_ = 1;
  int64_t open_ = 0;  // accepted, not done
  EngineStats stats_;
};

}  // namespace osdn

#endif  // OSDN_ENGINE_MAILBOX_H_
