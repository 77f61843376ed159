// How one sequence chooses its next token: everything between the model's logits and the token.
#ifndef OSDN_ENGINE_TOKEN_CHOOSER_H_
#define OSDN_ENGINE_TOKEN_CHOOSER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/constraint.h"
#include "engine/generation.h"
#include "engine/logits.h"
#include "engine/sampler.h"

namespace osdn {

// One a sequence, used by the loop's thread.
//
// Order: penalties, logit biases, masks (the constraint's, stop tokens before min_tokens), then the
// sampler's filters and the draw. Logprobs are those of the untouched row.
class TokenChooser {
 public:
  struct Choice {
    int32_t token = -1;
    std::optional<TokenLogprob> logprob{};  // where the request asks for it
    bool complete = false;  // the constraint lets nothing follow: the completion is over
  };

  // Of the request's `choice`. `request` is valid and outlives the chooser. `end_tokens`: what ends
  // this request's completion.
  TokenChooser(const GenerationRequest& request, std::vector<int32_t> end_tokens, int32_t choice);

  // The next token of the completion. `logits` are cut to the vocabulary and stay as they are.
  // Errors as Sampler::Sample, ConstraintMatcher::Mask and Accept.
  absl::StatusOr<Choice> Choose(absl::Span<const float> logits, Sampler* sampler);

  bool IsEndToken(int32_t token) const;
  int64_t chosen() const { return chosen_; }
  // How far the constraint's text has got; empty without a constraint.
  std::string constraint_state() const {
    return constraint_.has_value() ? constraint_->SaveState() : std::string();
  }
  // The random number of the next token.
  DrawPlace next_draw() const {
    return {.index = first_draw_ + static_cast<uint64_t>(chosen_), .choice = draw_choice_};
  }

 private:
  absl::StatusOr<Choice> ChooseGiven(absl::Span<const float> logits);
  bool masks_end_tokens() const { return chosen_ < request_->min_tokens; }

  const GenerationRequest* request_;
  std::vector<int32_t> end_tokens_;  // sorted
  std::optional<PenaltyWindow> penalties_;
  std::optional<ConstraintMatcher> constraint_;
  absl::Span<const int32_t> given_;  // the completion, where it is only scored
  uint64_t first_draw_ = 0;          // goes on where a resumed state ended
  uint32_t draw_choice_ = 0;
  int64_t chosen_ = 0;  // tokens, end token included
};

}  // namespace osdn

#endif  // OSDN_ENGINE_TOKEN_CHOOSER_H_
