#include "engine/sequence.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace osdn {
namespace {

bool Contains(absl::Span<const int32_t> ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

}  // namespace

Sequence::Sequence(GenerationRequest request, std::shared_ptr<TokenStream> stream,
                   const VocabularyView* vocabulary, Clock::time_point submitted)
    : request_(std::move(request)),
      stream_(std::move(stream)),
      vocabulary_(vocabulary),
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

bool Sequence::IsStopToken(int32_t token) const {
  return Contains(request_.stop_token_ids, token) ||
         (!request_.ignore_eos && Contains(vocabulary_->eos_ids, token));
}

void Sequence::MaskStopTokens(absl::Span<float> logits) const {
  const auto mask = [logits](absl::Span<const int32_t> ids) {
    for (const int32_t id : ids) {
      if (static_cast<size_t>(id) < logits.size()) {
        logits[static_cast<size_t>(id)] = -std::numeric_limits<float>::infinity();
      }
    }
  };
  mask(request_.stop_token_ids);
  if (!request_.ignore_eos) mask(vocabulary_->eos_ids);
}

std::optional<Ending> Sequence::TakeLogits(absl::Span<float> logits, Sampler* sampler,
                                           Clock::time_point now) {
  // Rows beyond the tokenizer's vocabulary are padding of the matrix.
  logits = logits.first(static_cast<size_t>(vocabulary_->size));
  if (completion_tokens_ < request_.min_tokens) MaskStopTokens(logits);
  absl::StatusOr<int32_t> token =
      sampler->Sample(logits, request_.sampling, static_cast<uint64_t>(completion_tokens_));
  if (!token.ok()) return Ending{FinishReason::kError, token.status()};

  if (!first_token_.has_value()) first_token_ = now;
  last_token_ = *token;
  ++completion_tokens_;
  if (IsStopToken(*token)) return Ending{FinishReason::kStop, absl::OkStatus()};

  TokenDelta delta;
  delta.token_ids.push_back(*token);
  if (text_.has_value()) {
    delta.text =
        text_->Append(vocabulary_->token_bytes(*token), completion_tokens_ >= request_.min_tokens);
  }
  stream_->Push(std::move(delta));
  if (text_.has_value() && text_->matched_stop().has_value()) {
    return Ending{FinishReason::kStopString, absl::OkStatus()};
  }
  if (completion_tokens_ >= request_.max_tokens) {
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
  finished.completion_tokens = completion_tokens_;
  finished.timings = Timings(now);
  stream_->Push(std::move(finished));
}

}  // namespace osdn
