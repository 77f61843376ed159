#include "engine/token_stream.h"

#include <algorithm>
#include <iterator>
#include <utility>
#include <variant>

namespace osdn {

TokenStream::TokenStream(size_t capacity, std::function<void()> wake_producer)
    : capacity_(std::max<size_t>(capacity, 1)), wake_producer_(std::move(wake_producer)) {}

std::optional<GenerationEvent> TokenStream::PopLocked(bool* drained) {
  if (events_.empty()) return std::nullopt;
  GenerationEvent event = std::move(events_.front());
  events_.pop_front();
  *drained = events_.size() + 1 == capacity_;
  return event;
}

std::optional<GenerationEvent> TokenStream::TryNext() {
  bool drained = false;
  std::optional<GenerationEvent> event;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    event = PopLocked(&drained);
  }
  if (drained) wake_producer_();
  return event;
}

GenerationEvent TokenStream::Next() {
  bool drained = false;
  std::optional<GenerationEvent> event;
  {
    std::unique_lock<std::mutex> lock(mutex_);
    pushed_.wait(lock, [this] { return !events_.empty(); });
    event = PopLocked(&drained);
  }
  if (drained) wake_producer_();
  return *std::move(event);
}

void TokenStream::SetReadyCallback(std::function<void()> callback) {
  std::lock_guard<std::mutex> lock(ready_mutex_);
  ready_ = std::move(callback);
  bool waiting = false;
  {
    std::lock_guard<std::mutex> events_lock(mutex_);
    waiting = !events_.empty();
  }
  if (ready_ && waiting) ready_();
}

void TokenStream::Cancel() {
  if (!cancelled_.exchange(true, std::memory_order_acq_rel)) wake_producer_();
}

bool TokenStream::full() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return events_.size() >= capacity_;
}

bool TokenStream::MergeLocked(GenerationEvent* event) {
  if (events_.size() < capacity_) return false;
  if (std::holds_alternative<PrefillProgress>(*event)) {
    if (!std::holds_alternative<PrefillProgress>(events_.back())) return false;
    events_.back() = std::move(*event);
    return true;
  }
  auto* delta = std::get_if<TokenDelta>(event);
  if (delta == nullptr) return false;
  for (auto it = events_.rbegin(); it != events_.rend(); ++it) {
    auto* last = std::get_if<TokenDelta>(&*it);
    if (last == nullptr || last->choice != delta->choice) continue;
    last->token_ids.insert(last->token_ids.end(), delta->token_ids.begin(), delta->token_ids.end());
    last->text += delta->text;
    last->logprobs.insert(last->logprobs.end(), std::make_move_iterator(delta->logprobs.begin()),
                          std::make_move_iterator(delta->logprobs.end()));
    return true;
  }
  return false;
}

void TokenStream::Push(GenerationEvent event) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!MergeLocked(&event)) events_.push_back(std::move(event));
  }
  pushed_.notify_one();
  std::lock_guard<std::mutex> lock(ready_mutex_);
  if (ready_) ready_();
}

}  // namespace osdn
