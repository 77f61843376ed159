// The way back of one request, all its choices: a bounded queue of events from the engine's loop to
// one consumer.
#ifndef OSDN_ENGINE_TOKEN_STREAM_H_
#define OSDN_ENGINE_TOKEN_STREAM_H_

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>

#include "engine/generation.h"

namespace osdn {

// Thread-safe: one producer (the loop), one consumer. The last event is always a GenerationFinished
// whose `last` is set.
// A full queue does not block the producer: the loop asks full() and lets the sequence sit out, so
// a slow reader slows itself only.
class TokenStream {
 public:
  // `wake_producer` is called (any thread, no lock of the stream held) when a full queue drained or
  // Cancel was called. It must not throw and may outlive the producer.
  TokenStream(size_t capacity, std::function<void()> wake_producer);

  TokenStream(const TokenStream&) = delete;
  TokenStream& operator=(const TokenStream&) = delete;

  // --- Consumer ---
  // The next event, or nullopt when none is ready now.
  std::optional<GenerationEvent> TryNext();
  // Waits for the next event. Not after the last one was returned.
  GenerationEvent Next();
  // `callback` runs on the producer's thread after each push; it must be quick and may call TryNext
  // and Cancel, nothing else of the stream. Runs at once, on this thread, if events are waiting.
  // When this returns, no earlier callback is running or will run: set an empty one before
  // destroying what it uses.
  void SetReadyCallback(std::function<void()> callback);
  // The client is gone or has had enough: frees the slot within one step. Idempotent. A
  // GenerationFinished with kCancelled still comes for every choice that had none.
  void Cancel();

  // --- Producer ---
  bool full() const;
  bool cancelled() const { return cancelled_.load(std::memory_order_acquire); }
  // Deltas to a full queue merge into the last delta of their choice (progress replaces progress),
  // so nothing is lost and memory stays bounded by the tokens of the step that filled it. Nothing
  // may follow a choice's GenerationFinished.
  void Push(GenerationEvent event);

 private:
  // With mutex_ held.
  std::optional<GenerationEvent> PopLocked(bool* drained);
  bool MergeLocked(GenerationEvent* event);

  const size_t capacity_;
  const std::function<void()> wake_producer_;
  std::atomic<bool> cancelled_{false};
  // Standard mutexes: Debian's Abseil is built without ThreadSanitizer, which then cannot see
  // through absl::Mutex.
  mutable std::mutex mutex_;
  std::condition_variable pushed_;
  std::deque<GenerationEvent> events_;  // guarded by mutex_
  std::mutex ready_mutex_;              // held while the callback runs; never taken under mutex_
  std::function<void()> ready_;         // guarded by ready_mutex_
};

}  // namespace osdn

#endif  // OSDN_ENGINE_TOKEN_STREAM_H_
