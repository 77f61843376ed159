// Carries the events of one TokenStream to one call, one at a time, at the call's pace.
#ifndef OSDN_SERVER_GENERATION_DRIVER_H_
#define OSDN_SERVER_GENERATION_DRIVER_H_

#include <atomic>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "engine/generation.h"
#include "engine/token_stream.h"
#include "server/executor.h"

namespace osdn {

// What receives the events: a call's reactor.
class GenerationSink {
 public:
  // One event; never two at once. True: give me the next when there is one. False: wait for Resume.
  // After the last event (a GenerationFinished that says so) the result is ignored; the driver does
  // not touch the sink during or after its return, so the sink may be deleted from then on.
  virtual bool OnEvent(GenerationEvent event) = 0;

 protected:
  ~GenerationSink() = default;
};

// Thread-safe; held by shared_ptr, because the stream's producer may be about to call it while the
// call ends. Back-pressure: while the sink is busy the stream is not read, fills up, and the engine
// lets the sequence sit out. Nothing of the call runs on the producer's thread: it only posts to
// `executor`, which must outlive every call.
class GenerationDriver : public std::enable_shared_from_this<GenerationDriver> {
 public:
  GenerationDriver(GenerationSink* sink, Executor* executor) : sink_(sink), executor_(executor) {}

  // Once, if at all. Afterwards the sink gets events, up to the last, whatever happens.
  void Start(const std::shared_ptr<TokenStream>& stream);
  // The sink is done with the event for which OnEvent returned false.
  void Resume();
  // The client is gone: cancels the stream, now or as soon as it is there.
  void Cancel();
  bool cancelled() const;

 private:
  void OnReady();
  void Pump();

  GenerationSink* const sink_;
  Executor* const executor_;
  std::atomic<bool> posted_{false};

  mutable absl::Mutex mutex_;
  std::shared_ptr<TokenStream> stream_ ABSL_GUARDED_BY(mutex_);
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  bool busy_ ABSL_GUARDED_BY(mutex_) = false;  // the sink has an event; for good after the last one
};

}  // namespace osdn

#endif  // OSDN_SERVER_GENERATION_DRIVER_H_
