#include "engine/sequence.h"

#include <algorithm>
#include <utility>

namespace osdn {
namespace {

// What ends a completion of `request`; nothing ends one that is only scored.
std::vector<int32_t> EndTokens(const GenerationRequest& request, const VocabularyView& vocabulary) {
  if (request.scores()) return {};
  std::vector<int32_t> ids = request.stop_token_ids;
  if (!request.ignore_eos) {
    ids.insert(ids.end(), vocabulary.eos_ids.begin(), vocabulary.eos_ids.end());
  }
  return ids;
}

}  // namespace

std::shared_ptr<Sequence::Group> Sequence::MakeGroup(GenerationRequest request,
                                                     std::shared_ptr<TokenStream> stream) {
  auto group = std::make_shared<Group>();
  const SequenceSnapshot* from = request.state.resume.get();
  if (from != nullptr && from->pending_token >= 0) {
    group->pending = request.prompt.empty() ? Pending::kDecoded : Pending::kInPrompt;
    if (group->pending == Pending::kInPrompt) {
      request.prompt.insert(request.prompt.begin(), from->pending_token);
    }
  }
  group->unfinished = request.choice_count();
  group->request = std::move(request);
  group->stream = std::move(stream);
  return group;
}

Sequence::Sequence(GenerationRequest request, std::shared_ptr<TokenStream> stream,
                   const VocabularyView* vocabulary, Clock::time_point submitted)
    : group_(MakeGroup(std::move(request), std::move(stream))),
      request_(group_->request),
      stream_(group_->stream.get()),
      pending_(group_->pending),
      choice_(0),
      vocabulary_(vocabulary),
      chooser_(request_, EndTokens(request_, *vocabulary), choice_),
      submitted_(submitted) {
  if (vocabulary_->token_bytes && !request_.scores()) {
    const bool restarts = vocabulary_->restarts_text && !request_.prompt.empty() &&
                          vocabulary_->restarts_text(request_.prompt.back());
    // A constraint is on every byte, so none may be left out.
    text_.emplace(request_.stop_strings, restarts && !request_.constraint.has_value());
  }
  if (request_.state.resume != nullptr) Resume();
  for (const int32_t token : request_.prompt) history_hash_ = ExtendHistory(history_hash_, token);
}

void Sequence::Resume() {
  const SequenceSnapshot& from = *request_.state.resume;
  base_ = from.image->position;
  position_ = base_;
  history_hash_ = from.history_hash;
  prefix_.image = from.image;
  // Text goes on only where nothing comes between.
  if (text_.has_value() && request_.prompt.empty()) {
    TextTail tail = from.text;
    tail.strip_leading_space = tail.strip_leading_space && !request_.constraint.has_value();
    text_->Resume(tail);
  }
  if (pending_ == Pending::kDecoded) last_token_ = from.pending_token;
}

Sequence::Sequence(const Sequence& stem, int32_t choice)
    : group_(stem.group_),
      request_(stem.request_),
      stream_(stem.stream_),
      pending_(stem.pending_),
      choice_(choice),
      vocabulary_(stem.vocabulary_),
      chooser_(request_, EndTokens(request_, *vocabulary_), choice),
      text_(stem.text_),
      id_(stem.id_ + static_cast<uint64_t>(choice)),
      base_(stem.base_),
      position_(stem.position_),
      // Its prompt was read for choice 0.
      cached_tokens_(stem.prompt_end() + (pending_ == Pending::kDecoded ? 1 : 0)),
      last_token_(stem.last_token_),
      history_hash_(stem.history_hash_),
      submitted_(stem.submitted_),
      admitted_(stem.admitted_) {}

std::vector<std::unique_ptr<Sequence>> Sequence::Fork() {
  std::vector<std::unique_ptr<Sequence>> forks;
  if (group_->forked) return forks;
  group_->forked = true;
  for (int64_t choice = 1; choice < choices(); ++choice) {
    forks.push_back(std::unique_ptr<Sequence>(new Sequence(*this, static_cast<int32_t>(choice))));
  }
  return forks;
}

void Sequence::Push(TokenDelta delta) {
  delta.choice = choice_;
  stream_->Push(std::move(delta));
}

int64_t Sequence::max_tokens() const {
  if (!request_.scores()) return request_.max_tokens;
  return static_cast<int64_t>(request_.continuations[static_cast<size_t>(choice_)].size());
}

std::optional<Sequence::Clock::time_point> Sequence::time_limit() const {
  std::optional<Clock::time_point> limit = request_.scheduling.deadline;
  if (request_.scheduling.max_time.count() > 0) {
    const Clock::time_point end = submitted_ + request_.scheduling.max_time;
    if (!limit.has_value() || end < *limit) limit = end;
  }
  return limit;
}

std::optional<Ending> Sequence::OutOfTime(Clock::time_point now) const {
  const SchedulingParams& params = request_.scheduling;
  if (params.deadline.has_value() && *params.deadline <= now) {
    return Ending{FinishReason::kError,
                  absl::DeadlineExceededError(admitted_.has_value()
                                                  ? "the deadline passed while the request ran"
                                                  : "the deadline passed while the request waited; "
                                                    "nothing was computed")};
  }
  if (params.max_time.count() > 0 && submitted_ + params.max_time <= now) {
    return Ending{FinishReason::kTime, absl::OkStatus()};
  }
  return std::nullopt;
}

void Sequence::NoteStall(Clock::time_point now) {
  if (!stalled()) {
    stalled_since_.reset();
  } else if (!stalled_since_.has_value()) {
    stalled_since_ = now;
  }
}

void Sequence::SwapOut(std::shared_ptr<const StateImage> image) {
  swapped_ = std::move(image);
  slot_ = -1;
}

std::shared_ptr<const StateImage> Sequence::SwapIn(int32_t slot) {
  slot_ = slot;
  had_slot_ = had_slot_ || slot >= 0;
  return std::move(swapped_);
}

RunningSequence Sequence::schedule_view() const {
  return {.id = id_,
          .position = position_,
          .prompt_remaining = std::max<int64_t>(prompt_end() - position_, 0),
          .next_cut = prefix_.cuts.empty() ? 0 : prefix_.cuts.front(),
          .stalled = stalled()};
}

WaitingPrompt Sequence::waiting_view() const {
  const StateImage* image = prefix_.image.get();
  const int64_t start = image != nullptr ? image->position : position_;
  return {.id = id_,
          .prompt_tokens = std::max<int64_t>(prompt_end() - start, 0),
          .position = start,
          .next_cut = prefix_.cuts.empty() ? 0 : prefix_.cuts.front()};
}

void Sequence::AddCut(int64_t position) {
  const auto place = std::lower_bound(prefix_.cuts.begin(), prefix_.cuts.end(), position);
  if (place == prefix_.cuts.end() || *place != position) prefix_.cuts.insert(place, position);
}

void Sequence::SkipTo(int64_t position) {
  position_ = position;
  cached_tokens_ = position;
  if (request_.state.resume == nullptr) return;
  // The slot has it now: its memory goes, what is told of it stays.
  auto rest = std::make_shared<SequenceSnapshot>(*request_.state.resume);
  rest->image = nullptr;
  group_->request.state.resume = std::move(rest);
}

void Sequence::Admit(int32_t slot, Clock::time_point now) {
  slot_ = slot;
  had_slot_ = true;
  admitted_ = now;
}

absl::Span<const int32_t> Sequence::InputTokens(int64_t count) const {
  if (prefilled()) return {&last_token_, 1};
  return absl::MakeConstSpan(request_.prompt)
      .subspan(static_cast<size_t>(position_ - base_), static_cast<size_t>(count));
}

void Sequence::Advance(int64_t count) {
  const bool prefilling = !prefilled();
  position_ += count;
  if (!prefilling) history_hash_ = ExtendHistory(history_hash_, last_token_);
  if (prefilling && request_.want_prefill_progress) {
    stream_->Push(PrefillProgress{position_, prompt_end()});
  }
}

void Sequence::EmitPrompt() {
  TokenDelta echo;
  // A resumed state's pending token stands first, and was told by the request that left it.
  const ptrdiff_t told = pending_ == Pending::kInPrompt ? 1 : 0;
  echo.token_ids.assign(request_.prompt.begin() + told, request_.prompt.end());
  if (text_.has_value()) {
    TextStream prompt({}, /*strip_leading_space=*/vocabulary_->restarts_text != nullptr);
    for (const int32_t id : echo.token_ids) {
      echo.text += prompt.Append(vocabulary_->token_bytes(id));
    }
    echo.text += prompt.Flush();
  }
  Push(std::move(echo));
}

void Sequence::ChooseToken(absl::Span<const float> logits, Sampler* sampler) {
  // Only the state was wanted.
  if (max_tokens() == 0) return;
  // Rows beyond the tokenizer's vocabulary are padding of the matrix.
  chosen_ = chooser_.Choose(logits.first(static_cast<size_t>(vocabulary_->size)), sampler);
}

std::optional<Ending> Sequence::TakeToken(Clock::time_point now) {
  if (max_tokens() == 0) return Ending{FinishReason::kLength, absl::OkStatus()};
  absl::StatusOr<TokenChooser::Choice>& choice = chosen_;
  if (!choice.ok()) return Ending{FinishReason::kError, choice.status()};

  if (!first_token_.has_value()) {
    first_token_ = now;
    if (request_.echo) EmitPrompt();
  }
  last_token_time_ = now;
  last_token_ = choice->token;
  at_end_token_ = chooser_.IsEndToken(choice->token);
  if (at_end_token_) return Ending{FinishReason::kStop, absl::OkStatus()};

  generated_.push_back(choice->token);
  TokenDelta delta;
  delta.token_ids.push_back(choice->token);
  if (choice->logprob.has_value()) delta.logprobs.push_back(*std::move(choice->logprob));
  if (text_.has_value()) {
    delta.text = text_->Append(vocabulary_->token_bytes(choice->token),
                               chooser_.chosen() >= request_.min_tokens);
  }
  Push(std::move(delta));
  if (text_.has_value() && text_->matched_stop().has_value()) {
    return Ending{FinishReason::kStopString, absl::OkStatus()};
  }
  if (choice->complete) return Ending{FinishReason::kStop, absl::OkStatus()};
  if (chooser_.chosen() >= max_tokens()) {
    return Ending{FinishReason::kLength, absl::OkStatus()};
  }
  return std::nullopt;
}

GenerationTimings Sequence::Timings(Clock::time_point now) const {
  GenerationTimings timings;
  timings.queue = admitted_.value_or(now) - submitted_;
  if (admitted_.has_value()) timings.prefill = first_token_.value_or(now) - *admitted_;
  if (first_token_.has_value()) {
    timings.decode = now - *first_token_;
    timings.time_to_first_token = *first_token_ - submitted_;
  }
  return timings;
}

bool Sequence::leaves_state(FinishReason reason) const {
  if (reason == FinishReason::kDrained) return has_sampled() && !request_.scores();
  return wants_state() && prefilled() && reason != FinishReason::kCancelled &&
         reason != FinishReason::kError;
}

void Sequence::LeaveState(std::shared_ptr<const StateImage> image) {
  SequenceSnapshot left;
  left.image = std::move(image);
  left.seed = request_.sampling.seed;
  left.random_index = chooser_.next_draw().index;
  left.random_choice = chooser_.next_draw().choice;
  left.history_hash = history_hash_;
  // A stop token is no part of the answer and not in the state: going on samples it again.
  if (at_end_token_) {
    --left.random_index;
  } else if (has_sampled() || (pending_ == Pending::kDecoded && position_ == base_)) {
    left.pending_token = last_token_;
  }
  std::vector<int32_t>& recent = left.recent_tokens;
  const SequenceSnapshot* from = request_.state.resume.get();
  if (from != nullptr) {
    recent = from->recent_tokens;
    // It is in the prompt here too.
    if (pending_ == Pending::kInPrompt && !recent.empty()) recent.pop_back();
  }
  recent.insert(recent.end(), request_.prompt.begin(), request_.prompt.end());
  recent.insert(recent.end(), generated_.begin(), generated_.end());
  left.recent_completion = generated_.size();
  // Without a prompt between, it is one completion.
  if (from != nullptr && request_.prompt.empty()) {
    left.recent_completion += from->recent_completion;
  }
  if (recent.size() > kSnapshotRecentTokens) {
    recent.erase(recent.begin(), recent.end() - static_cast<ptrdiff_t>(kSnapshotRecentTokens));
  }
  if (text_.has_value()) left.text = text_->tail();
  left.recent_completion = std::min<uint64_t>(left.recent_completion, recent.size());
  left.open_role = request_.state.open_role;
  if (left.recent_completion > 0) left.constraint_state = chooser_.constraint_state();
  left_state_ = std::make_shared<const SequenceSnapshot>(std::move(left));
}

bool Sequence::Finish(const Ending& ending, Clock::time_point now) {
  GenerationFinished finished;
  if (text_.has_value()) {
    TokenDelta held;
    held.text = text_->Flush();
    if (!held.text.empty()) Push(std::move(held));
    finished.matched_stop_string = text_->matched_stop().value_or("");
  }
  finished.reason = ending.reason;
  finished.status = ending.status;
  finished.prompt_tokens = prompt_end() + (pending_ == Pending::kDecoded ? 1 : 0);
  finished.state = std::move(left_state_);
  finished.cached_tokens = cached_tokens_;
  finished.completion_tokens = chooser_.chosen();
  finished.timings = Timings(now);
  finished.choice = choice_;
  const int64_t ended = group_->forked ? 1 : choices();
  for (int64_t i = 0; i < ended; ++i) {
    finished.last = --group_->unfinished == 0;
    stream_->Push(finished);
    ++finished.choice;
    finished.cached_tokens = finished.prompt_tokens;  // not read for it
  }
  return group_->unfinished == 0;
}

}  // namespace osdn
