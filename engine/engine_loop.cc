#include "engine/engine_loop.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/row_math.h"

namespace osdn {
namespace {

using Clock = Sequence::Clock;

// The sequence of this id, which is among them.
template <class Sequences>
std::unique_ptr<Sequence> Take(Sequences* sequences, uint64_t id) {
  const auto it = std::find_if(sequences->begin(), sequences->end(),
                               [id](const auto& sequence) { return sequence->id() == id; });
  std::unique_ptr<Sequence> taken = std::move(*it);
  sequences->erase(it);
  return taken;
}

// Those that `wanted` holds for, in order.
template <class Sequences, class Predicate>
std::vector<std::unique_ptr<Sequence>> TakeIf(Sequences* sequences, const Predicate& wanted) {
  const auto first =
      std::stable_partition(sequences->begin(), sequences->end(),
                            [&](const auto& sequence) { return !wanted(*sequence); });
  std::vector<std::unique_ptr<Sequence>> taken(std::make_move_iterator(first),
                                               std::make_move_iterator(sequences->end()));
  sequences->erase(first, sequences->end());
  return taken;
}

// The ending of a sequence that was cancelled or is out of time. Once there is one, there is one at
// the next call.
std::optional<Ending> DueEnding(const Sequence& sequence, Clock::time_point now) {
  if (sequence.cancelled()) return Ending{FinishReason::kCancelled, absl::OkStatus()};
  return sequence.OutOfTime(now);
}

}  // namespace

EngineLoop::EngineLoop(const Options& options, VocabularyView vocabulary, StepExecutor* executor)
    : options_(options),
      vocabulary_(std::move(vocabulary)),
      executor_(executor),
      mailbox_(std::make_shared<Mailbox>(options.queue)),
      slots_(executor),
      limits_(options.limits),
      prefix_reuse_(options.prefix_cache),
      samplers_(static_cast<size_t>(executor->host_threads())),
      thread_([this] { Run(); }) {}

EngineLoop::~EngineLoop() {
  mailbox_->Close(absl::UnavailableError("the engine is shutting down"));
  mailbox_->Abort({FinishReason::kCancelled, absl::OkStatus()});
  mailbox_->Stop();
  thread_.join();
}

absl::StatusOr<std::shared_ptr<TokenStream>> EngineLoop::Submit(GenerationRequest request) {
  auto stream = std::make_shared<TokenStream>(options_.stream_capacity,
                                              [mailbox = mailbox_] { mailbox->Wake(); });
  absl::Status accepted = mailbox_->Submit(
      std::make_unique<Sequence>(std::move(request), stream, &vocabulary_, Clock::now()));
  if (!accepted.ok()) return accepted;
  return stream;
}

void EngineLoop::Drain(std::chrono::milliseconds timeout) {
  mailbox_->Close(absl::UnavailableError("the server is draining: no new requests"));
  if (mailbox_->WaitUntilDone(timeout)) return;
  mailbox_->Abort({FinishReason::kDrained,
                   absl::UnavailableError(absl::StrCat("the server shut down before the request "
                                                       "was done (drain timeout ",
                                                       timeout.count(), " ms)"))});
  mailbox_->WaitUntilDone();
}

Ending EngineLoop::InternalEnding(const absl::Status& cause) {
  return {FinishReason::kError,
          absl::InternalError(absl::StrCat("the backend failed: ", cause.message()))};
}

void EngineLoop::Run() {
  bool busy = false;
  while (true) {
    Mailbox::Orders orders = mailbox_->Take(/*wait=*/!busy, NextLook());
    if (!busy) lap_ = Clock::now();  // waiting is no work
    for (auto& sequence : orders.arrivals) {
      shares_.Arrive(sequence->scheduling().client);
      waiting_.push_back(std::move(sequence));
    }
    if (orders.abort.has_value()) EndAll(*orders.abort);
    if (orders.stop) return;
    EndDue();
    busy = Step();
  }
}

void EngineLoop::Lap(std::chrono::nanoseconds* phase) {
  const Clock::time_point now = Clock::now();
  *phase += now - std::exchange(lap_, now);
}

bool EngineLoop::Step() {
  const StepTimes before = times_;
  const StepPlan plan = Plan();
  if (plan.empty()) return false;
  Lap(&times_.plan);
  for (const uint64_t id : plan.swap_out) SwapOut(id);
  for (const uint64_t id : plan.admit) {
    const bool returns = std::any_of(swapped_.begin(), swapped_.end(),
                                     [id](const auto& sequence) { return sequence->id() == id; });
    returns ? SwapIn(id) : Admit(id);
  }
  PublishRunning();
  BuildBatch(plan);
  Lap(&times_.admit);
  if (batch_.tokens.empty()) return true;  // no slot could be had: the next round sees fewer
  if (absl::Status status = RunBatch(); !status.ok()) {
    EndRunning(InternalEnding(status));
    OnFailure(status);
    return true;
  }
  Lap(&times_.forward);
  failures_ = 0;
  TakeResults();
  Lap(&times_.results);
  ++times_.steps;
  mailbox_->SetStepTimes(times_);
  ReportStep(before);
  return true;
}

StepPlan EngineLoop::Plan() {
  const Clock::time_point now = Clock::now();
  for (const auto& sequence : running_) {
    sequence->NoteStall(now);
    sequence->prefix().wanted_class = PrefixPlan::kNobody;
  }
  // Choices that wait for a first slot hold no place of slow readers: their prompt's image is one.
  limits_.swap_room =
      options_.max_swapped -
      std::count_if(swapped_.begin(), swapped_.end(), [](const auto& s) { return s->had_slot(); });
  // First, because a waiting prompt may have a running one pause where the two part.
  const std::vector<WaitingPrompt> waiting = Candidates();
  std::vector<RunningSequence> running;
  running.reserve(running_.size());
  for (const auto& sequence : running_) {
    running.push_back(sequence->schedule_view());
    running.back().priority =
        std::min(EffectiveClass(*sequence, now), sequence->prefix().wanted_class);
    running.back().idle = sequence->stalled_since().has_value() &&
                          now - *sequence->stalled_since() >= options_.swap_after;
  }
  return PlanStep(running, waiting, limits_);
}

int64_t EngineLoop::EffectiveClass(const Sequence& sequence, Clock::time_point now) const {
  return EffectivePriority(sequence.scheduling().priority, now - sequence.submitted(),
                           options_.ageing);
}

std::vector<WaitingPrompt> EngineLoop::Candidates() {
  int64_t slots = limits_.max_slots - static_cast<int64_t>(running_.size());
  const auto stalled = std::count_if(running_.begin(), running_.end(),
                                     [](const auto& sequence) { return sequence->stalled(); });
  slots += std::clamp<int64_t>(limits_.swap_room, 0, stalled);
  if (slots <= 0 || (waiting_.empty() && swapped_.empty())) return {};

  const Clock::time_point now = Clock::now();
  std::map<uint64_t, Sequence*> by_id;
  std::vector<QueueEntry> order;
  const auto enqueue = [&](Sequence* sequence, bool returning) {
    by_id.emplace(sequence->id(), sequence);
    order.push_back({.id = sequence->id(),
                     .priority = EffectiveClass(*sequence, now),
                     .returning = returning,
                     .served = shares_.served(sequence->scheduling().client)});
  };
  for (const auto& sequence : swapped_) {
    if (!sequence->stalled()) enqueue(sequence.get(), /*returning=*/sequence->had_slot());
  }
  for (const auto& sequence : waiting_) enqueue(sequence.get(), /*returning=*/false);
  SortForAdmission(&order);

  std::vector<Sequence*> ahead;  // reading their prompts, or about to
  for (const auto& sequence : running_) {
    if (!sequence->prefilled()) ahead.push_back(sequence.get());
  }
  std::vector<WaitingPrompt> candidates;
  for (const QueueEntry& entry : order) {
    if (static_cast<int64_t>(candidates.size()) >= slots) break;
    Sequence* sequence = by_id.at(entry.id);
    if (!sequence->swapped() && !MayFork(*sequence)) continue;
    if (!sequence->swapped() && !prefix_reuse_.MayStart(sequence, ahead)) {
      // What it waits for is read as if it were its own: else those between the two classes could
      // hold up both. A leader that waits too is ahead of it, and so of no lower class.
      if (Sequence* leader = FindRunning(sequence->prefix().leader)) {
        int64_t& wanted = leader->prefix().wanted_class;
        wanted = std::min(wanted, entry.priority);
      }
      continue;
    }
    candidates.push_back(sequence->waiting_view());
    candidates.back().priority = entry.priority;
    ahead.push_back(sequence);
  }
  // Only now: one that came later may have asked an earlier one to pause.
  for (size_t i = 0; i < candidates.size(); ++i) {
    candidates[i].next_cut = ahead[ahead.size() - candidates.size() + i]->schedule_view().next_cut;
  }
  return candidates;
}

void EngineLoop::SwapOut(uint64_t id) {
  Sequence* sequence = FindRunning(id);
  auto image = std::make_shared<StateImage>(slots_.bytes());
  // What cannot be copied is lost with its slot's content.
  if (absl::Status s = slots_.Save(sequence->slot_ref(), image->mutable_state()); !s.ok()) {
    return Fail(Take(&running_, id), s);
  }
  const absl::Status released = slots_.Release(sequence->slot_ref());
  sequence->SwapOut(std::move(image));
  swapped_.push_back(Take(&running_, id));
  if (!released.ok()) OnFailure(released);
}

void EngineLoop::SwapIn(uint64_t id) {
  std::unique_ptr<Sequence> sequence = Take(&swapped_, id);
  const std::optional<int32_t> slot = SlotFor(&sequence);
  if (!slot.has_value()) return;
  const std::shared_ptr<const StateImage> image = sequence->SwapIn(*slot);
  if (absl::Status s = slots_.Restore(sequence->slot_ref(), image->state()); !s.ok()) {
    return Fail(std::move(sequence), s);
  }
  AddRunning(std::move(sequence));
}

std::optional<int32_t> EngineLoop::SlotFor(std::unique_ptr<Sequence>* sequence) {
  const absl::StatusOr<int32_t> slot = slots_.Acquire((*sequence)->id());
  if (slot.ok()) return *slot;
  Fail(std::move(*sequence), slot.status());
  return std::nullopt;
}

void EngineLoop::AddRunning(std::unique_ptr<Sequence> sequence) {
  const auto place =
      std::upper_bound(running_.begin(), running_.end(), sequence->id(),
                       [](uint64_t id, const auto& other) { return id < other->id(); });
  running_.insert(place, std::move(sequence));
}

void EngineLoop::Admit(uint64_t id) {
  std::unique_ptr<Sequence> sequence = Take(&waiting_, id);
  mailbox_->LeftQueue(sequence->queued_tokens());
  const std::optional<int32_t> slot = SlotFor(&sequence);
  if (!slot.has_value()) return;
  sequence->Admit(*slot, Clock::now());
  prefix_reuse_.Start(sequence.get());
  const absl::StatusOr<std::optional<Ending>> started = StartPrompt(sequence.get());
  if (!started.ok()) {
    Fail(std::move(sequence), started.status());
  } else if (started->has_value()) {
    End(std::move(sequence), **started);
  } else {
    AddRunning(std::move(sequence));
  }
}

absl::StatusOr<std::optional<Ending>> EngineLoop::StartPrompt(Sequence* sequence) {
  const std::shared_ptr<const StateImage> image = std::move(sequence->prefix().image);
  if (image == nullptr) return std::nullopt;
  if (absl::Status s = slots_.Restore(sequence->slot_ref(), image->state()); !s.ok()) return s;
  sequence->SkipTo(image->position);
  if (!sequence->prefilled() || image->logits.empty()) return std::nullopt;
  logits_.assign(image->logits.begin(), image->logits.end());
  return TakeLogits(sequence, absl::MakeSpan(logits_));
}

void EngineLoop::Batch::Clear() {
  spans.clear();
  sequences.clear();
  tokens.clear();
  logit_rows.clear();
  decode_rows = 0;
}

void EngineLoop::Batch::Add(Sequence* sequence, int64_t count) {
  const auto row = static_cast<int64_t>(tokens.size());
  spans.push_back({row, count, sequence->position(), sequence->slot()});
  sequences.push_back(sequence);
  const absl::Span<const int32_t> input = sequence->InputTokens(count);
  tokens.insert(tokens.end(), input.begin(), input.end());
  if (sequence->position() + count >= sequence->prompt_end()) {
    logit_rows.push_back(row + count - 1);
  }
}

void EngineLoop::BuildBatch(const StepPlan& plan) {
  batch_.Clear();
  for (const uint64_t id : plan.decode) AddToBatch(id, 1);
  batch_.decode_rows = static_cast<int64_t>(batch_.tokens.size());
  for (const PrefillStep& piece : plan.prefill) AddToBatch(piece.id, piece.tokens);
}

void EngineLoop::AddToBatch(uint64_t id, int64_t tokens) {
  Sequence* sequence = FindRunning(id);
  if (sequence == nullptr) return;  // it ended when it was to start
  const absl::Status owned = slots_.Check(sequence->slot_ref());
  if (!owned.ok()) return Fail(Take(&running_, id), owned);
  batch_.Add(sequence, tokens);
}

absl::Status EngineLoop::RunBatch() {
  const size_t vocab = static_cast<size_t>(executor_->vocab_size());
  logits_.resize(batch_.logit_rows.size() * vocab);
  const kernels::BatchView view{.rows = static_cast<int64_t>(batch_.tokens.size()),
                                .decode_rows = batch_.decode_rows,
                                .spans = batch_.spans};
  return executor_->Forward(view, batch_.tokens, batch_.logit_rows, absl::MakeSpan(logits_));
}

void EngineLoop::TakeResults() {
  const size_t vocab = static_cast<size_t>(executor_->vocab_size());
  size_t logit_row = 0;
  std::vector<std::pair<Sequence*, Ending>> ended;
  for (size_t i = 0; i < batch_.spans.size(); ++i) {
    Sequence* sequence = batch_.sequences[i];
    const bool prefilling = !sequence->prefilled();
    sequence->Advance(batch_.spans[i].length);
    shares_.Charge(sequence->scheduling().client, batch_.spans[i].length);
    absl::Span<float> logits;
    if (sequence->prefilled()) {
      logits = absl::MakeSpan(logits_).subspan(logit_row++ * vocab, vocab);
    }
    // What is not finite ends its sequence below and must not serve another.
    if (prefilling && !row_math::FindPeak(logits).invalid) {
      // A copy that fails is a state less to start from; nothing of this request is lost.
      prefix_reuse_.Capture(sequence, logits, &slots_).IgnoreError();
    }
    if (!logits.empty()) rows_.push_back({sequence, logits});
  }
  TakeRows(&ended);
  for (auto& [sequence, ending] : ended) End(Take(&running_, sequence->id()), ending);
}

void EngineLoop::TakeRows(std::vector<std::pair<Sequence*, Ending>>* ended) {
  for (LogitRow& row : rows_) row.forks = row.sequence->Fork();
  executor_->RunOnHost(static_cast<int64_t>(rows_.size()), [this](int64_t i, int thread) {
    rows_[static_cast<size_t>(i)].sequence->ChooseToken(rows_[static_cast<size_t>(i)].logits,
                                                        &samplers_[static_cast<size_t>(thread)]);
  });
  // Taken by value: a fork's first token adds a row of its own.
  for (LogitRow& row : std::exchange(rows_, {})) {
    std::optional<Ending> ending = TakeToken(row.sequence);
    if (ending.has_value()) ending = LeaveState(row.sequence, *ending, row.logits);
    if (!row.forks.empty()) StartForks(*row.sequence, std::move(row.forks), row.logits);
    if (ending.has_value()) ended->emplace_back(row.sequence, *std::move(ending));
  }
}

std::optional<Ending> EngineLoop::TakeToken(Sequence* sequence) {
  const Clock::time_point now = Clock::now();
  const std::optional<Clock::time_point> before = sequence->last_token_time();
  std::optional<Ending> ending = sequence->TakeToken(now);
  if (options_.observer == nullptr) return ending;
  if (sequence->last_token_time() == now) {
    options_.observer->OnToken(!before.has_value(), now - before.value_or(sequence->submitted()));
  } else if (ending.has_value() && absl::IsInternal(ending->status)) {
    options_.observer->OnNonFinite();
  }
  return ending;
}

void EngineLoop::ReportStep(const StepTimes& before) {
  if (options_.observer == nullptr) return;
  StepReport report{
      .decode_rows = batch_.decode_rows,
      .prefill_rows = static_cast<int64_t>(batch_.tokens.size()) - batch_.decode_rows};
  report.times.steps = 1;
  report.times.plan = times_.plan - before.plan;
  report.times.admit = times_.admit - before.admit;
  report.times.forward = times_.forward - before.forward;
  report.times.results = times_.results - before.results;
  options_.observer->OnStep(report);
}

std::optional<Ending> EngineLoop::TakeLogits(Sequence* sequence, absl::Span<float> logits) {
  std::vector<std::pair<Sequence*, Ending>> ended;
  rows_.push_back({sequence, logits});
  TakeRows(&ended);
  if (ended.empty()) return std::nullopt;
  return std::move(ended.front().second);
}

Ending EngineLoop::LeaveState(Sequence* sequence, const Ending& ending,
                              absl::Span<const float> logits) {
  if (!sequence->leaves_state(ending.reason)) return ending;
  auto image = std::make_shared<StateImage>(slots_.bytes());
  if (sequence->swapped()) {
    const std::shared_ptr<const StateImage> held = sequence->SwapIn(-1);
    const absl::Span<const std::byte> state = held->state();
    std::copy(state.begin(), state.end(), image->mutable_state().begin());
  } else if (absl::Status s = slots_.Save(sequence->slot_ref(), image->mutable_state()); !s.ok()) {
    OnFailure(s);
    return InternalEnding(s);
  }
  if (!row_math::AllFinite(image->floats())) {
    return {FinishReason::kError,
            absl::InternalError("the state at the end is not finite and is not kept")};
  }
  image->position = sequence->position();
  if (sequence->goes_on_from_logits()) image->logits.assign(logits.begin(), logits.end());
  sequence->LeaveState(std::move(image));
  return ending;
}

void EngineLoop::EndDue() {
  const Clock::time_point now = Clock::now();
  const auto due = [now](const Sequence& sequence) { return DueEnding(sequence, now).has_value(); };
  for (auto& sequence : TakeIf(&waiting_, due)) {
    mailbox_->LeftQueue(sequence->queued_tokens());
    const Ending ending = *DueEnding(*sequence, now);
    End(std::move(sequence), ending);
  }
  for (auto* sequences : {&running_, &swapped_}) {
    for (auto& sequence : TakeIf(sequences, due)) {
      const Ending ending = LeaveState(sequence.get(), *DueEnding(*sequence, now), {});
      End(std::move(sequence), ending);
    }
  }
}

std::optional<Clock::time_point> EngineLoop::NextLook() const {
  std::optional<Clock::time_point> next;
  const auto at = [&next](std::optional<Clock::time_point> time) {
    if (time.has_value() && (!next.has_value() || *time < *next)) next = time;
  };
  for (const auto& sequence : waiting_) at(sequence->time_limit());
  for (const auto& sequence : swapped_) at(sequence->time_limit());
  const Clock::time_point now = Clock::now();
  for (const auto& sequence : running_) {
    at(sequence->time_limit());
    if (limits_.swap_room <= 0 || !sequence->stalled_since().has_value()) continue;
    // One that is idle already has been looked at.
    const Clock::time_point idle = *sequence->stalled_since() + options_.swap_after;
    if (idle > now) at(idle);
  }
  return next;
}

void EngineLoop::End(std::unique_ptr<Sequence> sequence, const Ending& ending) {
  absl::Status released;
  if (sequence->slot() >= 0) released = slots_.Release(sequence->slot_ref());
  shares_.Leave(sequence->scheduling().client);
  PublishRunning();
  if (sequence->Finish(ending, Clock::now())) mailbox_->Done();
  if (!released.ok()) OnFailure(released);
}

void EngineLoop::Fail(std::unique_ptr<Sequence> sequence, const absl::Status& status) {
  End(std::move(sequence), InternalEnding(status));
  OnFailure(status);
}

void EngineLoop::EndRunning(const Ending& ending) {
  while (!running_.empty()) {
    std::unique_ptr<Sequence> sequence = std::move(running_.front());
    running_.erase(running_.begin());
    EndWithState(std::move(sequence), ending);
  }
}

void EngineLoop::EndWithState(std::unique_ptr<Sequence> sequence, const Ending& ending) {
  if (ending.reason != FinishReason::kDrained) return End(std::move(sequence), ending);
  // What has not begun can begin elsewhere.
  if (!sequence->leaves_state(ending.reason)) {
    return End(std::move(sequence), {FinishReason::kError, ending.status});
  }
  const Ending left = LeaveState(sequence.get(), {ending.reason, absl::OkStatus()}, {});
  End(std::move(sequence), left);
}

void EngineLoop::EndAll(const Ending& ending) {
  EndRunning(ending);
  while (!swapped_.empty()) {
    std::unique_ptr<Sequence> sequence = std::move(swapped_.back());
    swapped_.pop_back();
    EndWithState(std::move(sequence), ending);
  }
  while (!waiting_.empty()) {
    std::unique_ptr<Sequence> sequence = std::move(waiting_.front());
    waiting_.pop_front();
    mailbox_->LeftQueue(sequence->queued_tokens());
    EndWithState(std::move(sequence), ending);
  }
}

void EngineLoop::OnFailure(const absl::Status& status) {
  ++failures_;
  limits_.max_slots = options_.limits.max_slots - slots_.quarantined();
  if (failures_ < kMaxConsecutiveFailures && limits_.max_slots > 0) return;
  const absl::Status reason = absl::UnavailableError(absl::StrCat(
      "the backend failed ", failures_, " times in a row, restart the server: ", status.message()));
  mailbox_->Close(reason);
  // Ends what waits, and what arrives before Close is seen, at the top of the loop.
  mailbox_->Abort({FinishReason::kError, reason});
}

Sequence* EngineLoop::FindRunning(uint64_t id) const {
  // Ids ascend in order of arrival.
  const auto it = std::lower_bound(
      running_.begin(), running_.end(), id,
      [](const auto& sequence, uint64_t wanted) { return sequence->id() < wanted; });
  return it != running_.end() && (*it)->id() == id ? it->get() : nullptr;
}

void EngineLoop::PublishRunning() {
  const auto swapped = static_cast<int64_t>(swapped_.size());
  mailbox_->SetRunning(static_cast<int64_t>(running_.size()) + swapped, swapped, slots_.used());
  mailbox_->SetPrefixCache(prefix_reuse_.stats());
}

}  // namespace osdn
