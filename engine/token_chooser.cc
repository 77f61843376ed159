#include "engine/token_chooser.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "engine/row_math.h"

namespace osdn {

TokenChooser::TokenChooser(const GenerationRequest& request, std::vector<int32_t> end_tokens,
                           int32_t choice)
    : request_(&request),
      end_tokens_(std::move(end_tokens)),
      constraint_(request.constraint),
      draw_choice_(static_cast<uint32_t>(choice)) {
  if (request.scores()) given_ = request.continuations[static_cast<size_t>(choice)];
  std::sort(end_tokens_.begin(), end_tokens_.end());
  const SequenceSnapshot* resumed = request.state.resume.get();
  if (resumed != nullptr) {
    first_draw_ = resumed->random_index;
    draw_choice_ += resumed->random_choice;
  }
  if (request.sampling.has_penalties()) {
    std::vector<int32_t> context;
    std::vector<int32_t> completion;  // what a resumed state has of it
    if (resumed != nullptr) {
      context = resumed->recent_tokens;
      // The pending token is the prompt's first where there is one.
      const bool pending_in_prompt = resumed->pending_token >= 0 && !request.prompt.empty();
      if (pending_in_prompt && !context.empty()) context.pop_back();
      const auto own = request.prompt.empty() ? resumed->recent_completion : 0;
      completion.assign(context.end() - static_cast<ptrdiff_t>(own), context.end());
      context.resize(context.size() - completion.size());
    }
    context.insert(context.end(), request.prompt.begin(), request.prompt.end());
    penalties_.emplace(request.sampling.penalty_window, context);
    for (const int32_t token : completion) penalties_->Add(token);
  }
}

bool TokenChooser::IsEndToken(int32_t token) const {
  return std::binary_search(end_tokens_.begin(), end_tokens_.end(), token);
}

absl::StatusOr<TokenChooser::Choice> TokenChooser::Choose(absl::Span<const float> logits,
                                                          Sampler* sampler) {
  if (!given_.empty()) return ChooseGiven(logits);
  const SamplingParams& params = request_->sampling;
  absl::Span<const float> processed = logits;
  if (penalties_.has_value() || !params.logit_bias.empty() || masks_end_tokens() ||
      constraint_.has_value()) {
    // Before a mask could hide it.
    if (row_math::FindPeak(logits).invalid) {
      return absl::InternalError("logits are not finite: the model's state or weights are not");
    }
    const absl::Span<float> row = sampler->CopyRow(logits);
    if (penalties_.has_value()) penalties_->Apply(params, row);
    ApplyLogitBias(params.logit_bias, row);
    if (constraint_.has_value()) {
      if (absl::Status s = constraint_->Mask(end_tokens_, row); !s.ok()) return s;
    }
    if (masks_end_tokens()) MaskTokens(end_tokens_, row);
    processed = row;
  }
  const absl::StatusOr<int32_t> token = sampler->Sample(processed, params, next_draw());
  if (!token.ok()) return token.status();
  Choice choice{.token = *token};
  if (request_->logprobs) choice.logprob = ComputeLogprob(logits, *token, request_->top_logprobs);
  if (penalties_.has_value()) penalties_->Add(*token);
  ++chosen_;
  if (constraint_.has_value() && !IsEndToken(*token)) {
    if (absl::Status s = constraint_->Accept(*token); !s.ok()) return s;
    choice.complete = constraint_->complete();
  }
  return choice;
}

absl::StatusOr<TokenChooser::Choice> TokenChooser::ChooseGiven(absl::Span<const float> logits) {
  if (row_math::FindPeak(logits).invalid) {
    return absl::InternalError("logits are not finite: the model's state or weights are not");
  }
  const int32_t token = given_[static_cast<size_t>(chosen_++)];
  return Choice{.token = token, .logprob = ComputeLogprob(logits, token, request_->top_logprobs)};
}

}  // namespace osdn
