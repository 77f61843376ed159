// The way back of one request: a bounded queue of events from the engine's loop to one consumer.
#ifndef OSDN_ENGINE_TOKEN_STREAM_H_
#define OSDN_ENGINE_TOKEN_STREAM_H_

#include <atomic>
#include <cstddef>
#include <deque>
#include <functional>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "engine/generation.h"

namespace osdn {

// Thread-safe: one producer (the loop), one consumer. The last event is always GenerationFinished.
// A full queue does not block the producer: the loop asks full() and lets the sequence sit out, so a slow
// reader slows itself only.
class TokenStream {
 public:
  // `wake_producer` is called (any thread) when a full queue drained or Cancel was called.
  TokenStream(size_t capacity, std::function<void()> wake_producer);

  // --- Consumer ---
  // The next event, or nullopt when none is ready now.
  std::optional<GenerationEvent> TryNext();
  // Waits for the next event. Not after GenerationFinished was returned.
  GenerationEvent Next();
  // `callback` runs on the producer's thread after each push; it must be quick and must not call back
  // into the stream but for TryNext. Runs once at once if events are waiting.
  void SetReadyCallback(std::function<void()> callback);
  // The client is gone or has had enough: frees the slot within one step. Idempotent. A
  // GenerationFinished with kCancelled still comes.
  void Cancel();

  // --- Producer ---
  bool full() const;
  bool cancelled() const { return cancelled_.load(std::memory_order_acquire); }
  // Deltas to a full queue merge into its last delta, so nothing is lost and memory stays bounded by
  // the tokens of the step that filled it.
  void Push(GenerationEvent event);

 private:
  const size_t capacity_;
  const std::function<void()> wake_producer_;
  std::atomic<bool> cancelled_{false};
  mutable absl::Mutex mutex_;
  std::deque<GenerationEvent> events_ ABSL_GUARDED_BY(mutex_);
  std::function<void()> ready_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace osdn

#endif  // OSDN_ENGINE_TOKEN_STREAM_H_
