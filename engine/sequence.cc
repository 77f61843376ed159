#include "engine/sequence.h"

#include <algorithm>
#include <utility>

namespace osdn {
namespace {

// What ends a completion of `request`.
std::vector<int32_t> EndTokens(const GenerationRequest& request, const VocabularyView& vocabulary) {
  std::vector<int32_t> ids = request.stop_token_ids;
  if (!request.ignore_eos) {
    ids.insert(ids.end(), vocabulary.eos_ids.begin(), vocabulary.eos_ids.end());
  }
  return ids;
}

}  // namespace

Sequence::Sequence(GenerationRequest request, std::shared_ptr<TokenStream> stream,
                   const VocabularyView* vocabulary, Clock::time_point submitted)
    : request_(std::move(request)),
      stream_(std::move(stream)),
      vocabulary_(vocabulary),
      chooser_(request_, EndTokens(request_, *vocabulary)),
      submitted_(submitted) {
  if (vocabulary_->token_bytes) {
    const bool restarts =
        vocabulary_->restarts_text && vocabulary_->restarts_text(request_.prompt.back());
    text_.emplace(request_.stop_strings, restarts);
  }
}

RunningSequence Sequence::schedule_view() const {
  return {.id = id_,
          .position = position_,
          .prompt_remaining = std::max<int64_t>(prompt_tokens() - position_, 0),
          .next_cut = prefix_.cuts.empty() ? 0 : prefix_.cuts.front(),
          .stalled = stalled()};
}

WaitingPrompt Sequence::waiting_view() const {
  const int64_t start = prefix_.image != nullptr ? prefix_.image->position : position_;
  return {.id = id_,
          .prompt_tokens = prompt_tokens() - start,
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
}

void Sequence::Admit(int32_t slot, Clock::time_point now) {
  slot_ = slot;
  admitted_ = now;
}

absl::Span<const int32_t> Sequence::InputTokens(int64_t count) const {
  if (prefilled()) return {&last_token_, 1};
  return absl::MakeConstSpan(request_.prompt)
      .subspan(static_cast<size_t>(position_), static_cast<size_t>(count));
}

void Sequence::Advance(int64_t count) {
  const bool prefilling = !prefilled();
  position_ += count;
  if (prefilling && request_.want_prefill_progress) {
    stream_->Push(PrefillProgress{position_, prompt_tokens()});
  }
}

void Sequence::EmitPrompt() {
  TokenDelta echo;
  echo.token_ids = request_.prompt;
  if (text_.has_value()) {
    TextStream prompt({}, /*strip_leading_space=*/vocabulary_->restarts_text != nullptr);
    for (const int32_t id : request_.prompt) {
      echo.text += prompt.Append(vocabulary_->token_bytes(id));
    }
    echo.text += prompt.Flush();
  }
  stream_->Push(std::move(echo));
}

std::optional<Ending> Sequence::TakeLogits(absl::Span<const float> logits, Sampler* sampler,
                                           Clock::time_point now) {
  // Rows beyond the tokenizer's vocabulary are padding of the matrix.
  logits = logits.first(static_cast<size_t>(vocabulary_->size));
  absl::StatusOr<TokenChooser::Choice> choice = chooser_.Choose(logits, sampler);
  if (!choice.ok()) return Ending{FinishReason::kError, choice.status()};

  if (!first_token_.has_value()) {
    first_token_ = now;
    if (request_.echo) EmitPrompt();
  }
  last_token_ = choice->token;
  if (chooser_.IsEndToken(choice->token)) return Ending{FinishReason::kStop, absl::OkStatus()};

  TokenDelta delta;
  delta.token_ids.push_back(choice->token);
  if (choice->logprob.has_value()) delta.logprobs.push_back(*std::move(choice->logprob));
  if (text_.has_value()) {
    delta.text = text_->Append(vocabulary_->token_bytes(choice->token),
                               chooser_.chosen() >= request_.min_tokens);
  }
  stream_->Push(std::move(delta));
  if (text_.has_value() && text_->matched_stop().has_value()) {
    return Ending{FinishReason::kStopString, absl::OkStatus()};
  }
  if (chooser_.chosen() >= request_.max_tokens) {
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

void Sequence::Finish(const Ending& ending, Clock::time_point now) {
  GenerationFinished finished;
  if (text_.has_value()) {
    TokenDelta held;
    held.text = text_->Flush();
    if (!held.text.empty()) stream_->Push(std::move(held));
    finished.matched_stop_string = text_->matched_stop().value_or("");
  }
  finished.reason = ending.reason;
  finished.status = ending.status;
  finished.prompt_tokens = prompt_tokens();
  finished.cached_tokens = cached_tokens_;
  finished.completion_tokens = chooser_.chosen();
  finished.timings = Timings(now);
  stream_->Push(std::move(finished));
}

}  // namespace osdn
