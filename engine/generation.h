// One generation: what is asked, and what comes back.
#ifndef OSDN_ENGINE_GENERATION_H_
#define OSDN_ENGINE_GENERATION_H_

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "engine/admission.h"
#include "engine/constraint.h"
#include "engine/logits.h"
#include "engine/prefix_reuse.h"
#include "engine/sampling_params.h"
#include "engine/snapshot.h"

namespace osdn {

inline constexpr int64_t kMaxStopStrings = 16;
inline constexpr int64_t kMaxStopStringBytes = 256;
inline constexpr int64_t kMaxStopTokenIds = 64;
inline constexpr int64_t kMaxCacheSaltBytes = 256;
inline constexpr int64_t kMaxChoices = 16;
inline constexpr int64_t kMaxContinuations = 64;

// Where a generation starts from and what it leaves.
struct StateParams {
  // Goes on from here: `prompt` is what is new, and may be empty.
  std::shared_ptr<const SequenceSnapshot> resume{};
  bool want_state = false;  // GenerationFinished::state, unless the prompt was not read to its end
  std::string open_role{};  // SequenceSnapshot::open_role of the state that is left
};

struct GenerationRequest {
  std::vector<int32_t> prompt{};  // token ids, not empty, all in the vocabulary
  // Completions of the one prompt, which is read once: 1..kMaxChoices. What choice i is does not
  // depend on how many there are.
  int64_t choices = 1;
  // Scoring: where there are any, choice i is continuations[i], told with its logprobs, and nothing
  // is sampled; choices, limits and stops do not matter. Ids are those that can be sampled.
  std::vector<std::vector<int32_t>> continuations{};
  SamplingParams sampling{};
  int64_t max_tokens = 0;  // >= 1; with state.want_state 0 reads the prompt only
  int64_t min_tokens = 0;  // 0..max_tokens; before, end-of-text and stop tokens are not
                           // sampled and stop strings are passed over
  bool ignore_eos = false;
  std::vector<std::string> stop_strings{};  // at most 16 of 1 to 256 bytes; need a tokenizer
  std::vector<int32_t> stop_token_ids{};
  ConstraintSpec constraint_spec{};               // what `constraint` was made from, for the record
  std::optional<ConstraintMatcher> constraint{};  // where the completion begins in it
  bool want_prefill_progress = false;
  PrefixCacheParams cache{};
  bool logprobs = false;     // of each token, in the model's own distribution
  int32_t top_logprobs = 0;  // and of so many likeliest ones: 0..kMaxTopLogprobs; needs logprobs
  bool echo = false;         // the prompt's tokens and text come first
  StateParams state{};
  SchedulingParams scheduling{};

  bool scores() const { return !continuations.empty(); }
  int64_t choice_count() const;
  // What it adds to the queue: the prompt's and all continuations' tokens.
  int64_t input_tokens() const;
};

// What an engine can serve, as far as requests must keep to it.
struct GenerationLimits {
  int64_t vocab_size = 0;
  int64_t sampled_vocab_size = 0;  // ids below it can be sampled: rows beyond are padding
  int64_t max_prompt_tokens = 0;   // what the queue holds at most; more can never be accepted
  bool has_tokenizer = false;      // without one there is no text to find stop strings in
};

// Everything wrong with a request, all at once, with field names as in osdn.v1.GenerateRequest. Of
// many bad elements of one list the first 16 are told.
std::vector<FieldViolation> ValidateGeneration(const GenerationRequest& request,
                                               const GenerationLimits& limits);

// Puts the completion of `request` under `constraint`: from its beginning, or where a resumed state
// without a prompt left off in it. FAILED_PRECONDITION where that state's text began under none,
// under another, or is complete.
absl::Status BeginConstraint(std::shared_ptr<const CompiledConstraint> constraint,
                             GenerationRequest* request);
// FAILED_PRECONDITION for a request that would go on with a constrained text without its
// constraint.
absl::Status CheckContinuation(const GenerationRequest& request);

enum class FinishReason : uint8_t {
  kStop,        // end-of-text or a stop token
  kStopString,  // a stop string
  kLength,      // max_tokens
  kTime,        // max_time
  kCancelled,   // by the client
  kDrained,     // by the server, which ends; GenerationFinished::state goes on elsewhere
  kError,       // see GenerationFinished::status
};

struct PrefillProgress {
  int64_t processed_tokens = 0;
  int64_t prompt_tokens = 0;
};

// New tokens and the text that became showable with them (may be empty while characters or stop
// prefixes are held back). A stop token is counted in usage but appears neither here nor in the
// text.
struct TokenDelta {
  std::vector<int32_t> token_ids;
  std::string text;
  std::vector<TokenLogprob> logprobs{};  // of token_ids, where asked for; none for an echo
  int32_t choice = 0;
};

struct GenerationTimings {
  std::chrono::nanoseconds queue{};
  std::chrono::nanoseconds prefill{};
  std::chrono::nanoseconds decode{};
  std::chrono::nanoseconds time_to_first_token{};  // from Submit
};

// One a choice: nothing of that choice follows.
struct GenerationFinished {
  FinishReason reason = FinishReason::kStop;
  absl::Status status{};              // not OK exactly when reason is kError
  std::string matched_stop_string{};  // with kStopString
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;  // of them, not computed for this choice: all of them but for choice 0
  int64_t completion_tokens = 0;
  GenerationTimings timings{};
  std::shared_ptr<const SequenceSnapshot> state{};  // where it was asked for
  int32_t choice = 0;
  bool last = true;  // every choice of the request is finished: the stream's last event
};

using GenerationEvent = std::variant<PrefillProgress, TokenDelta, GenerationFinished>;

}  // namespace osdn

#endif  // OSDN_ENGINE_GENERATION_H_
