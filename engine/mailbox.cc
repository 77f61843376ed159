#include "engine/mailbox.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace osdn {

absl::Status Mailbox::Submit(std::unique_ptr<Sequence> sequence) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!closed_.ok()) return closed_;
  if (stats_.queued >= limits_.max_requests) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the queue is full: ", stats_.queued, " requests wait, at most ",
                     limits_.max_requests, " may; try again later"));
  }
  const int64_t tokens = sequence->queued_tokens();
  if (tokens > limits_.max_tokens - stats_.queued_tokens) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the queue is full: ", stats_.queued_tokens, " prompt tokens wait and this request has ",
        tokens, ", at most ", limits_.max_tokens, " may wait; try again later"));
  }
  sequence->set_id(next_id_);
  next_id_ += static_cast<uint64_t>(sequence->choices());
  arrivals_.push_back(std::move(sequence));
  ++stats_.queued;
  stats_.queued_tokens += tokens;
  ++open_;
  wake_ = true;
  woken_.notify_one();
  return absl::OkStatus();
}

void Mailbox::Wake() {
  std::lock_guard<std::mutex> lock(mutex_);
  wake_ = true;
  woken_.notify_one();
}

void Mailbox::Close(absl::Status reason) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (closed_.ok()) closed_ = std::move(reason);
}

absl::Status Mailbox::closed() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return closed_;
}

void Mailbox::Abort(Ending ending) {
  std::lock_guard<std::mutex> lock(mutex_);
  abort_ = std::move(ending);
  wake_ = true;
  woken_.notify_one();
}

void Mailbox::Stop() {
  std::lock_guard<std::mutex> lock(mutex_);
  stop_ = true;
  wake_ = true;
  woken_.notify_one();
}

void Mailbox::WaitUntilDone() {
  std::unique_lock<std::mutex> lock(mutex_);
  all_done_.wait(lock, [this] { return open_ == 0; });
}

bool Mailbox::WaitUntilDone(std::chrono::milliseconds timeout) {
  // Far deadlines would overflow the clock.
  constexpr std::chrono::milliseconds kLongest = std::chrono::hours(24 * 365);
  std::unique_lock<std::mutex> lock(mutex_);
  return all_done_.wait_for(lock, std::min(timeout, kLongest), [this] { return open_ == 0; });
}

EngineStats Mailbox::stats() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return stats_;
}

Mailbox::Orders Mailbox::Take(bool wait,
                              std::optional<std::chrono::steady_clock::time_point> until) {
  std::unique_lock<std::mutex> lock(mutex_);
  const auto woken = [this] { return wake_; };
  if (wait && until.has_value()) {
    woken_.wait_until(lock, *until, woken);
  } else if (wait) {
    woken_.wait(lock, woken);
  }
  wake_ = false;
  return {std::exchange(arrivals_, {}), std::exchange(abort_, std::nullopt), stop_};
}

void Mailbox::LeftQueue(int64_t tokens) {
  std::lock_guard<std::mutex> lock(mutex_);
  --stats_.queued;
  stats_.queued_tokens -= tokens;
}

void Mailbox::SetRunning(int64_t running, int64_t swapped, int64_t slots_used) {
  std::lock_guard<std::mutex> lock(mutex_);
  stats_.swapped = swapped;
  stats_.running = running;
  stats_.slots_used = slots_used;
}

void Mailbox::SetPrefixCache(const PrefixCacheStats& stats) {
  std::lock_guard<std::mutex> lock(mutex_);
  stats_.prefix_cache = stats;
}

void Mailbox::SetStepTimes(const StepTimes& times) {
  std::lock_guard<std::mutex> lock(mutex_);
  stats_.step_times = times;
}

void Mailbox::Done() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (--open_ == 0) all_done_.notify_all();
}

}  // namespace osdn
