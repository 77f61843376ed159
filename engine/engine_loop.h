// The continuous-batching loop: takes requests, plans steps, runs them, hands out tokens.
#ifndef OSDN_ENGINE_ENGINE_LOOP_H_
#define OSDN_ENGINE_ENGINE_LOOP_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/admission.h"
#include "engine/engine_observer.h"
#include "engine/engine_stats.h"
#include "engine/generation.h"
#include "engine/mailbox.h"
#include "engine/owned_slots.h"
#include "engine/prefix_reuse.h"
#include "engine/sampler.h"
#include "engine/scheduler.h"
#include "engine/sequence.h"
#include "engine/step_executor.h"
#include "engine/token_stream.h"

namespace osdn {

// Public methods are thread-safe. One thread owns everything else: executor, sequences, scratch.
//
// Faults. Logits that are not finite end their sequence (kError / INTERNAL); its slot is wiped and
// the batch goes on. So does a slot that turns out not to be the sequence's, which is then
// quarantined (engine/owned_slots.h). A failed forward pass leaves the states it touched undefined,
// so it ends every running sequence (kError / INTERNAL, with the backend's message) and the queue
// goes on; after kMaxConsecutiveFailures failures in a row, or when no usable slot is left, the
// queue ends too and Submit returns UNAVAILABLE from then on. A slot that cannot be wiped is never
// used again.
class EngineLoop {
 public:
  static constexpr int kMaxConsecutiveFailures = 3;

  struct Options {
    SchedulerLimits limits{};
    Mailbox::Limits queue{};
    size_t stream_capacity = 256;  // events a reader may lag behind before its sequence sits out
    PrefixReuse::Options prefix_cache{};
    std::chrono::nanoseconds ageing = std::chrono::seconds(10);  // see EffectivePriority
    int64_t max_swapped = 0;  // sequences of slow readers that may be without a slot
    // A reader that lags for so long gives up its slot if others wait.
    std::chrono::nanoseconds swap_after = std::chrono::milliseconds(200);
    EngineObserver* observer = nullptr;  // outlives the loop
  };

  // `executor` outlives the loop.
  EngineLoop(const Options& options, VocabularyView vocabulary, StepExecutor* executor);
  // Ends what is left with kCancelled and joins the thread.
  ~EngineLoop();

  EngineLoop(const EngineLoop&) = delete;
  EngineLoop& operator=(const EngineLoop&) = delete;

  // `request` is valid (ValidateGeneration). RESOURCE_EXHAUSTED when the queue is full, UNAVAILABLE
  // after Drain or a fault.
  absl::StatusOr<std::shared_ptr<TokenStream>> Submit(GenerationRequest request);
  // See Engine::Drain.
  void Drain(std::chrono::milliseconds timeout);
  // OK, or why Submit refuses everything.
  absl::Status health() const { return mailbox_->closed(); }
  EngineStats stats() const { return mailbox_->stats(); }

 private:
  // One forward pass: what goes in, and whose row is whose.
  struct Batch {
    std::vector<kernels::SequenceSpan> spans;
    std::vector<Sequence*> sequences;  // of each span
    std::vector<int32_t> tokens;
    std::vector<int64_t> logit_rows;  // the last row of each span that ends its input, in order
    int64_t decode_rows = 0;

    void Clear();
    void Add(Sequence* sequence, int64_t tokens);
  };

  // The logits after the last input token of a sequence, whose next token is due.
  struct LogitRow {
    Sequence* sequence;
    absl::Span<float> logits;
    std::vector<std::unique_ptr<Sequence>> forks{};
  };

  static Ending InternalEnding(const absl::Status& cause);

  void Run();
  // Adds the time since the last lap, or since lap_ was set, to `phase`.
  void Lap(std::chrono::nanoseconds* phase);
  // Plans and runs one step; false when there is nothing to do.
  bool Step();
  StepPlan Plan();
  // Those of the queue that may start now, in order, as the planner wants them.
  std::vector<WaitingPrompt> Candidates();
  void Admit(uint64_t id);
  // Gives the slot of an idle sequence to others; what it held goes to the host.
  void SwapOut(uint64_t id);
  void SwapIn(uint64_t id);
  // A slot for the sequence, or nullopt: then it has ended.
  std::optional<int32_t> SlotFor(std::unique_ptr<Sequence>* sequence);
  // Fills the sequence's new slot with what its prompt starts from. The ending if that was all.
  absl::StatusOr<std::optional<Ending>> StartPrompt(Sequence* sequence);
  void BuildBatch(const StepPlan& plan);
  void AddToBatch(uint64_t id, int64_t tokens);
  absl::Status RunBatch();
  void TakeResults();
  // Copies the slot for whoever asked for the state; `logits` are those after its last token. What
  // the ending is then: another one if there was a state to leave and it could not be.
  Ending LeaveState(Sequence* sequence, const Ending& ending, absl::Span<const float> logits);
  // Chooses the next token of each of rows_, on all threads, and empties it; where it is the
  // request's first one those of its forks too. Whose last it was, with the ending, is added to
  // `ended`.
  void TakeRows(std::vector<std::pair<Sequence*, Ending>>* ended);
  // The same for one sequence.
  std::optional<Ending> TakeLogits(Sequence* sequence, absl::Span<float> logits);

  // Sequence::TakeToken, and tells the observer.
  std::optional<Ending> TakeToken(Sequence* sequence);
  void ReportStep(const StepTimes& before);

  // Forks (engine_loop_forks.cc). A request's other choices begin when its prompt is read: with a
  // copy of the slot where one is spare, else they wait in swapped_, with one image of it between
  // them, and take their places in the queue.

  // False while so many sequences are without slots that no more prompts should be kept for choices
  // that wait; they get on without this request, which waits for them.
  bool MayFork(const Sequence& sequence) const;
  void StartForks(const Sequence& stem, std::vector<std::unique_ptr<Sequence>> forks,
                  absl::Span<float> logits);
  // Takes the fork's first token and gives it a slot or, with a part in `image`, its place in the
  // queue. The ending if that was all.
  absl::StatusOr<std::optional<Ending>> StartFork(const Sequence& stem, Sequence* fork,
                                                  std::shared_ptr<const StateImage>* image,
                                                  absl::Span<float> logits);
  // Slots beyond those that sequences have or wait for; `stem` has one.
  bool HasSpareSlot(const Sequence& stem) const;
  void AddRunning(std::unique_ptr<Sequence> sequence);
  // Those that were cancelled, and whose deadline or time is up.
  void EndDue();
  // When the loop must look again though nothing happened.
  std::optional<Sequence::Clock::time_point> NextLook() const;
  int64_t EffectiveClass(const Sequence& sequence, Sequence::Clock::time_point now) const;
  // Ends it for `status`, which is the backend's or a broken invariant's.
  void Fail(std::unique_ptr<Sequence> sequence, const absl::Status& status);
  // Frees the sequence's slot, if it has one, and tells the reader.
  void End(std::unique_ptr<Sequence> sequence, const Ending& ending);
  // The same; for kDrained with the sequence's state or, where it has none worth keeping, as an
  // error of ending.status.
  void EndWithState(std::unique_ptr<Sequence> sequence, const Ending& ending);
  void EndRunning(const Ending& ending);
  void EndAll(const Ending& ending);
  void OnFailure(const absl::Status& status);
  Sequence* FindRunning(uint64_t id) const;
  void PublishRunning();

  const Options options_;
  const VocabularyView vocabulary_;
  StepExecutor* const executor_;
  // Shared with the streams, which may outlive the loop.
  const std::shared_ptr<Mailbox> mailbox_;

  // The loop thread's own.
  OwnedSlots slots_;
  SchedulerLimits limits_;  // max_slots shrinks when a slot is lost
  std::deque<std::unique_ptr<Sequence>> waiting_;
  std::vector<std::unique_ptr<Sequence>> running_;  // in order of arrival
  std::vector<std::unique_ptr<Sequence>> swapped_;  // running, without slots: of slow readers, and
                                                    // forks that wait for their first
  PrefixReuse prefix_reuse_;
  FairShare shares_;
  std::vector<Sampler> samplers_;  // one a thread of the executor
  std::vector<LogitRow> rows_;
  Batch batch_;
  std::vector<float> logits_;
  int failures_ = 0;  // in a row
  StepTimes times_;
  Sequence::Clock::time_point lap_;

  std::thread thread_;  // last: starts when all else stands
};

}  // namespace osdn

#endif  // OSDN_ENGINE_ENGINE_LOOP_H_
