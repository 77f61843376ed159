#include "engine/generation.h"

#include <cstddef>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace osdn {
namespace {

constexpr size_t kMaxToldElements = 16;

// Appends one violation for each id outside [0, vocab_size), up to kMaxToldElements.
void CheckIds(absl::string_view field, absl::Span<const int32_t> ids, int64_t vocab_size,
              std::vector<FieldViolation>* violations) {
  size_t told = 0;
  for (size_t i = 0; i < ids.size() && told < kMaxToldElements; ++i) {
    if (ids[i] >= 0 && ids[i] < vocab_size) continue;
    violations->push_back(
        {absl::StrCat(field, "[", i, "]"),
         absl::StrCat(ids[i], " is outside the vocabulary [0, ", vocab_size - 1, "]")});
    ++told;
  }
}

void CheckPrompt(const GenerationRequest& request, const GenerationLimits& limits,
                 std::vector<FieldViolation>* violations) {
  const auto tokens = static_cast<int64_t>(request.prompt.size());
  if (tokens == 0 && request.state.resume == nullptr)
    violations->push_back({"prompt", "0 tokens: at least 1 is needed"});
  if (tokens > limits.max_prompt_tokens) {
    violations->push_back(
        {"prompt", absl::StrCat(tokens, " tokens: at most ", limits.max_prompt_tokens)});
  }
  CheckIds("prompt.tokens.ids", request.prompt, limits.vocab_size, violations);
}

void CheckChoices(const GenerationRequest& request, std::vector<FieldViolation>* violations) {
  if (request.choices < 1 || request.choices > kMaxChoices) {
    violations->push_back(
        {"sampling.n", absl::StrCat(request.choices, " is outside [1, ", kMaxChoices, "]")});
  } else if (request.choices > 1 && request.max_tokens == 0) {
    violations->push_back(
        {"sampling.n", absl::StrCat(request.choices, ", but only the prompt's state is wanted")});
  }
}

void CheckContinuations(const GenerationRequest& request, const GenerationLimits& limits,
                        std::vector<FieldViolation>* violations) {
  const std::vector<std::vector<int32_t>>& continuations = request.continuations;
  if (static_cast<int64_t>(continuations.size()) > kMaxContinuations) {
    violations->push_back(
        {"continuations",
         absl::StrCat(continuations.size(), " continuations: at most ", kMaxContinuations)});
  }
  for (size_t i = 0; i < continuations.size() && i < kMaxToldElements; ++i) {
    const std::string field = absl::StrCat("continuations[", i, "]");
    if (continuations[i].empty()) {
      violations->push_back({field, "0 tokens: at least 1 is needed"});
    }
    CheckIds(absl::StrCat(field, ".tokens.ids"), continuations[i], limits.sampled_vocab_size,
             violations);
  }
  const int64_t tokens = request.input_tokens();
  if (tokens > limits.max_prompt_tokens &&
      static_cast<int64_t>(request.prompt.size()) <= limits.max_prompt_tokens) {
    violations->push_back(
        {"continuations",
         absl::StrCat(tokens, " tokens with the prompt: at most ", limits.max_prompt_tokens)});
  }
}

void CheckStopStrings(const GenerationRequest& request, const GenerationLimits& limits,
                      std::vector<FieldViolation>* violations) {
  const std::vector<std::string>& strings = request.stop_strings;
  if (strings.empty()) return;
  if (!limits.has_tokenizer) {
    violations->push_back({"stop.stop_strings",
                           "the model has no tokenizer, so there is no text: use stop_token_ids"});
  }
  if (static_cast<int64_t>(strings.size()) > kMaxStopStrings) {
    violations->push_back(
        {"stop.stop_strings", absl::StrCat(strings.size(), " strings: at most ", kMaxStopStrings)});
  }
  for (size_t i = 0; i < strings.size() && i < kMaxToldElements; ++i) {
    const auto bytes = static_cast<int64_t>(strings[i].size());
    if (bytes >= 1 && bytes <= kMaxStopStringBytes) continue;
    violations->push_back({absl::StrCat("stop.stop_strings[", i, "]"),
                           absl::StrCat(bytes, " bytes: outside [1, ", kMaxStopStringBytes, "]")});
  }
}

void CheckOutput(const GenerationRequest& request, std::vector<FieldViolation>* violations) {
  if (request.top_logprobs < 0 || request.top_logprobs > kMaxTopLogprobs) {
    violations->push_back(
        {"output.top_logprobs",
         absl::StrCat(request.top_logprobs, " is outside [0, ", kMaxTopLogprobs, "]")});
  } else if (request.top_logprobs > 0 && !request.logprobs && !request.scores()) {
    violations->push_back({"output.top_logprobs",
                           absl::StrCat(request.top_logprobs, ", but output.logprobs is false")});
  }
}

}  // namespace

int64_t GenerationRequest::choice_count() const {
  return scores() ? static_cast<int64_t>(continuations.size()) : choices;
}

int64_t GenerationRequest::input_tokens() const {
  size_t tokens = prompt.size();
  for (const std::vector<int32_t>& continuation : continuations) tokens += continuation.size();
  return static_cast<int64_t>(tokens);
}

std::vector<FieldViolation> ValidateGeneration(const GenerationRequest& request,
                                               const GenerationLimits& limits) {
  std::vector<FieldViolation> violations;
  CheckPrompt(request, limits, &violations);
  if (request.scores()) {
    CheckContinuations(request, limits, &violations);
  } else {
    CheckChoices(request, &violations);
  }
  for (FieldViolation& violation : ValidateSampling(request.sampling, limits.vocab_size)) {
    violations.push_back(std::move(violation));
  }
  const int64_t least = request.state.want_state ? 0 : 1;
  if (request.max_tokens < least && !request.scores()) {
    violations.push_back(
        {"stop.max_tokens", absl::StrCat(request.max_tokens, ": at least ", least, " is needed")});
  }
  if (request.min_tokens < 0 || request.min_tokens > request.max_tokens) {
    violations.push_back({"stop.min_tokens",
                          absl::StrCat(request.min_tokens,
                                       " is outside [0, max_tokens = ", request.max_tokens, "]")});
  }
  CheckStopStrings(request, limits, &violations);
  if (static_cast<int64_t>(request.stop_token_ids.size()) > kMaxStopTokenIds) {
    violations.push_back({"stop.stop_token_ids", absl::StrCat(request.stop_token_ids.size(),
                                                              " ids: at most ", kMaxStopTokenIds)});
  }
  CheckIds("stop.stop_token_ids", request.stop_token_ids, limits.vocab_size, &violations);
  const auto salt_bytes = static_cast<int64_t>(request.cache.salt.size());
  if (salt_bytes > kMaxCacheSaltBytes) {
    violations.push_back(
        {"cache.salt", absl::StrCat(salt_bytes, " bytes: at most ", kMaxCacheSaltBytes)});
  }
  CheckOutput(request, &violations);
  return violations;
}

absl::Status BeginConstraint(std::shared_ptr<const CompiledConstraint> constraint,
                             GenerationRequest* request) {
  const SequenceSnapshot* from = request->state.resume.get();
  if (from == nullptr || !request->prompt.empty() || from->recent_completion == 0) {
    request->constraint.emplace(std::move(constraint));
    return absl::OkStatus();
  }
  if (from->constraint_state.empty()) {
    return absl::FailedPreconditionError(
        "constraint: the state's text has begun without one: send a prompt to begin a new text");
  }
  absl::StatusOr<ConstraintMatcher> matcher =
      ConstraintMatcher::Resume(std::move(constraint), from->constraint_state);
  if (!matcher.ok()) return matcher.status();
  request->constraint = *std::move(matcher);
  return absl::OkStatus();
}

absl::Status CheckContinuation(const GenerationRequest& request) {
  const SequenceSnapshot* from = request.state.resume.get();
  if (from == nullptr || from->constraint_state.empty() || !request.prompt.empty() ||
      request.constraint.has_value()) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      "constraint: the state was left in a text under one: send the same to go on with the text, "
      "or a prompt to begin a new one");
}

}  // namespace osdn
