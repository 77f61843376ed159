#include "server/generation_driver.h"

#include <optional>
#include <utility>
#include <variant>

namespace osdn {

void GenerationDriver::Start(const std::shared_ptr<TokenStream>& stream) {
  bool cancelled = false;
  {
    absl::MutexLock lock(&mutex_);
    stream_ = stream;
    cancelled = cancelled_;
  }
  if (cancelled) stream->Cancel();
  // Weak: the stream belongs to the driver, and must not keep it alive in turn.
  stream->SetReadyCallback([weak = weak_from_this()] {
    if (const std::shared_ptr<GenerationDriver> self = weak.lock()) self->OnReady();
  });
}

void GenerationDriver::OnReady() {
  // One job in the queue is enough for any number of events.
  if (posted_.exchange(true)) return;
  executor_->Post([self = shared_from_this()] {
    self->posted_.store(false);
    self->Pump();
  });
}

void GenerationDriver::Resume() {
  const std::shared_ptr<GenerationDriver> self = shared_from_this();  // the sink may go meanwhile
  {
    absl::MutexLock lock(&mutex_);
    busy_ = false;
  }
  Pump();
}

void GenerationDriver::Pump() {
  while (true) {
    std::optional<GenerationEvent> event;
    {
      absl::MutexLock lock(&mutex_);
      if (busy_) return;
      event = stream_->TryNext();
      if (!event.has_value()) return;
      busy_ = true;
    }
    const auto* finished = std::get_if<GenerationFinished>(&*event);
    const bool last = finished != nullptr && finished->last;
    if (!sink_->OnEvent(*std::move(event)) || last) return;
    absl::MutexLock lock(&mutex_);
    busy_ = false;
  }
}

void GenerationDriver::Cancel() {
  std::shared_ptr<TokenStream> stream;
  {
    absl::MutexLock lock(&mutex_);
    cancelled_ = true;
    stream = stream_;
  }
  if (stream != nullptr) stream->Cancel();
}

bool GenerationDriver::cancelled() const {
  absl::MutexLock lock(&mutex_);
  return cancelled_;
}

}  // namespace osdn
