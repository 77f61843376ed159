// A network of a few lines, for tests of the loop without a model.
#ifndef OSDN_TESTS_UNIT_ENGINE_SCRIPTED_EXECUTOR_H_
#define OSDN_TESTS_UNIT_ENGINE_SCRIPTED_EXECUTOR_H_

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/step_executor.h"

namespace osdn {

// Keeps the whole history of each slot as its "state" and asks `next_logits` what follows it.
// Checks the contract of every batch and remembers breaches in problems(). Knobs may be turned from
// any thread.
class ScriptedExecutor final : public StepExecutor {
 public:
  using History = std::vector<int32_t>;
  using NextLogits = std::function<void(const History& history, absl::Span<float> logits)>;

  ScriptedExecutor(int64_t vocab, int32_t slots, NextLogits next_logits)
      : vocab_(vocab), next_logits_(std::move(next_logits)), state_(static_cast<size_t>(slots)) {
    for (int32_t slot = slots; slot-- > 0;) free_.push_back(slot);
  }

  // --- The test ---
  // Holds the loop before its next forward pass until Resume.
  void Pause() {
    std::lock_guard<std::mutex> lock(mutex_);
    paused_ = true;
  }
  void Resume() {
    std::lock_guard<std::mutex> lock(mutex_);
    paused_ = false;
    changed_.notify_all();
  }
  // Waits until a forward pass is held by Pause.
  void AwaitHeld() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return held_; });
  }
  void FailForwards(int count) {
    std::lock_guard<std::mutex> lock(mutex_);
    failing_forwards_ = count;
  }
  void FailReleases(int count) {
    std::lock_guard<std::mutex> lock(mutex_);
    failing_releases_ = count;
  }
  // The next slot that is asked for is this one, whoever has it: an executor gone wrong.
  void GiveOutAgain(int32_t slot) {
    std::lock_guard<std::mutex> lock(mutex_);
    given_again_ = slot;
  }
  int64_t forwards() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return forwards_;
  }
  int64_t tokens_computed() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return tokens_computed_;
  }
  int64_t max_sequences() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return max_sequences_;
  }
  std::vector<std::string> problems() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return problems_;
  }

  // --- The loop ---
  int64_t vocab_size() const override { return vocab_; }
  int64_t slots_used() const override { return static_cast<int64_t>(state_.size() - free_.size()); }

  absl::StatusOr<std::optional<int32_t>> AcquireSlot() override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (const auto slot = std::exchange(given_again_, std::nullopt)) return slot;
    }
    if (free_.empty()) return std::nullopt;
    const int32_t slot = free_.back();
    free_.pop_back();
    if (!state_[static_cast<size_t>(slot)].empty()) Problem("slot was not wiped");
    return slot;
  }

  absl::Status ReleaseSlot(int32_t slot) override {
    std::lock_guard<std::mutex> lock(mutex_);
    if (failing_releases_ > 0) {
      --failing_releases_;
      return absl::InternalError("wipe failed");
    }
    state_[static_cast<size_t>(slot)].clear();
    free_.push_back(slot);
    return absl::OkStatus();
  }

  // A slot's bytes are the number of a history that was saved.
  size_t slot_bytes() const override { return sizeof(size_t); }
  absl::Status SaveSlot(int32_t slot, absl::Span<std::byte> out) override {
    const size_t number = saved_.size();
    saved_.push_back(state_[static_cast<size_t>(slot)]);
    std::memcpy(out.data(), &number, sizeof number);
    return absl::OkStatus();
  }
  absl::Status RestoreSlot(int32_t slot, absl::Span<const std::byte> in) override {
    size_t number = 0;
    std::memcpy(&number, in.data(), sizeof number);
    if (number >= saved_.size()) return absl::InternalError("no such history was saved");
    state_[static_cast<size_t>(slot)] = saved_[number];
    return absl::OkStatus();
  }
  absl::Status CopySlot(int32_t from, int32_t to) override {
    state_[static_cast<size_t>(to)] = state_[static_cast<size_t>(from)];
    return absl::OkStatus();
  }

  absl::Status Forward(const kernels::BatchView& batch, absl::Span<const int32_t> tokens,
                       absl::Span<const int64_t> logit_rows, absl::Span<float> logits) override {
    if (absl::Status status = Enter(); !status.ok()) return status;
    CheckBatch(batch, tokens, logit_rows, logits);
    std::map<int64_t, int32_t> slot_of_last_row;
    for (const kernels::SequenceSpan& span : batch.spans) {
      History& history = state_[static_cast<size_t>(span.slot)];
      if (static_cast<int64_t>(history.size()) != span.position) Problem("position");
      const auto input =
          tokens.subspan(static_cast<size_t>(span.row), static_cast<size_t>(span.length));
      history.insert(history.end(), input.begin(), input.end());
      slot_of_last_row[span.row + span.length - 1] = span.slot;
    }
    for (size_t i = 0; i < logit_rows.size(); ++i) {
      const auto it = slot_of_last_row.find(logit_rows[i]);
      if (it == slot_of_last_row.end()) {
        Problem("logits of a row that ends no span");
        continue;
      }
      next_logits_(state_[static_cast<size_t>(it->second)],
                   logits.subspan(i * static_cast<size_t>(vocab_), static_cast<size_t>(vocab_)));
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Enter() {
    std::unique_lock<std::mutex> lock(mutex_);
    ++forwards_;
    held_ = paused_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return !paused_; });
    held_ = false;
    if (failing_forwards_ > 0) {
      --failing_forwards_;
      return absl::InternalError("device on fire");
    }
    return absl::OkStatus();
  }

  void CheckBatch(const kernels::BatchView& batch, absl::Span<const int32_t> tokens,
                  absl::Span<const int64_t> logit_rows, absl::Span<float> logits) {
    int64_t row = 0;
    std::map<int32_t, int> slots;
    for (size_t i = 0; i < batch.spans.size(); ++i) {
      const kernels::SequenceSpan& span = batch.spans[i];
      if (span.row != row || span.length < 1) Problem(absl::StrCat("span ", i, " is not packed"));
      if (row < batch.decode_rows && span.length != 1) Problem("decode span of several rows");
      if (++slots[span.slot] != 1) Problem("two spans of a slot");
      row += span.length;
    }
    if (row != batch.rows || row != static_cast<int64_t>(tokens.size())) Problem("rows");
    if (logits.size() != logit_rows.size() * static_cast<size_t>(vocab_)) Problem("logits size");
    std::lock_guard<std::mutex> lock(mutex_);
    tokens_computed_ += batch.rows;
    max_sequences_ = std::max(max_sequences_, static_cast<int64_t>(batch.spans.size()));
  }

  void Problem(std::string text) {
    std::lock_guard<std::mutex> lock(mutex_);
    problems_.push_back(std::move(text));
  }

  const int64_t vocab_;
  const NextLogits next_logits_;
  std::vector<History> state_;  // the loop's
  std::vector<History> saved_;  // the loop's
  std::vector<int32_t> free_;   // the loop's
  mutable std::mutex mutex_;    // guards all below
  std::condition_variable changed_;
  bool paused_ = false;
  bool held_ = false;
  int failing_forwards_ = 0;
  int failing_releases_ = 0;
  std::optional<int32_t> given_again_;
  int64_t forwards_ = 0;
  int64_t tokens_computed_ = 0;
  int64_t max_sequences_ = 0;
  std::vector<std::string> problems_;
};

}  // namespace osdn

#endif  // OSDN_TESTS_UNIT_ENGINE_SCRIPTED_EXECUTOR_H_
