// One completion on its way: from the queue through prefill and decode to its last event.
#ifndef OSDN_ENGINE_SEQUENCE_H_
#define OSDN_ENGINE_SEQUENCE_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/generation.h"
#include "engine/owned_slots.h"
#include "engine/prefix_reuse.h"
#include "engine/sampler.h"
#include "engine/scheduler.h"
#include "engine/text_stream.h"
#include "engine/token_chooser.h"
#include "engine/token_stream.h"

namespace osdn {

// What sequences need to know of the vocabulary. Immutable once the loop runs.
struct VocabularyView {
  int64_t size = 0;  // ids [0, size) may be sampled
  std::vector<int32_t> eos_ids;
  // Bytes a token adds to running text; empty function: no tokenizer, no text.
  std::function<std::string_view(int32_t)> token_bytes;
  // Whether the text after this prompt token begins anew, so that a leading space is
  // SentencePiece's.
  std::function<bool(int32_t)> restarts_text;
};

// Why and how a generation ends. `status` is not OK exactly with kError.
struct Ending {
  FinishReason reason = FinishReason::kStop;
  absl::Status status{};
};

// Used by one thread at a time: the submitting one, then the loop. Knows nothing of the model:
// tokens go out, logits come in.
class Sequence {
 public:
  using Clock = std::chrono::steady_clock;

  // Choice 0, which reads the prompt. `request` is valid; `vocabulary` outlives the sequence.
  Sequence(GenerationRequest request, std::shared_ptr<TokenStream> stream,
           const VocabularyView* vocabulary, Clock::time_point submitted);

  // The other choices, at the moment when the first token is due (the next thing is ChooseToken
  // of each); none for a request of one choice, or later. They have no slot: its content is to be
  // copied from this sequence's.
  std::vector<std::unique_ptr<Sequence>> Fork();

  // Ids ascend in order of arrival; a request has choices() of them, in the order of its choices.
  uint64_t id() const { return id_; }
  void set_id(uint64_t id) { id_ = id; }
  int64_t choices() const { return request_.choice_count(); }
  int32_t slot() const { return slot_; }
  SlotRef slot_ref() const { return {slot_, id_}; }
  int64_t position() const { return position_; }
  int64_t queued_tokens() const { return request_.input_tokens(); }
  // Input to be read, beside what a resumed state holds.
  int64_t prompt_tokens() const { return static_cast<int64_t>(request_.prompt.size()); }
  absl::Span<const int32_t> prompt() const { return request_.prompt; }
  bool cancelled() const { return stream_->cancelled(); }
  // Its reader is slow: it takes no part until that one caught up.
  bool stalled() const { return stream_->full(); }
  const SchedulingParams& scheduling() const { return request_.scheduling; }
  Clock::time_point submitted() const { return submitted_; }
  // The ending if its deadline or its time is up.
  std::optional<Ending> OutOfTime(Clock::time_point now) const;
  // When that may be, at the earliest; nullopt: never.
  std::optional<Clock::time_point> time_limit() const;
  // Keeps account of how long its reader has been slow.
  void NoteStall(Clock::time_point now);
  std::optional<Clock::time_point> stalled_since() const { return stalled_since_; }
  // Without a slot until SwapIn: what it held is in `image`.
  void SwapOut(std::shared_ptr<const StateImage> image);
  std::shared_ptr<const StateImage> SwapIn(int32_t slot);
  bool swapped() const { return swapped_ != nullptr; }
  // False for a fork that waits for its first one.
  bool had_slot() const { return had_slot_; }
  RunningSequence schedule_view() const;
  WaitingPrompt waiting_view() const;

  // Its prompt's states may be shared with other requests.
  bool cacheable() const { return !request_.cache.skip && request_.state.resume == nullptr; }
  const PrefixCacheParams& cache_params() const { return request_.cache; }
  PrefixPlan& prefix() { return prefix_; }
  const PrefixPlan& prefix() const { return prefix_; }
  // Prefill pauses at `position` of the prompt.
  void AddCut(int64_t position);

  void Admit(int32_t slot, Clock::time_point now);
  // The slot holds the state after the first `position` tokens of the prompt. Lets go of the state
  // it resumed.
  void SkipTo(int64_t position);
  // The next `count` input tokens: of the prompt, or the one sampled last.
  absl::Span<const int32_t> InputTokens(int64_t count) const;
  // `count` input tokens are in the state now. Tells progress where asked for.
  void Advance(int64_t count);
  // The position behind the prompt's last token: beyond prompt_tokens() where a state was resumed.
  int64_t prompt_end() const { return base_ + prompt_tokens(); }
  // All of the prompt is in the state: the next thing is ChooseToken.
  bool prefilled() const { return position_ >= prompt_end(); }
  // Chooses the next token from the logits after the last input token, for TakeToken. May run on
  // any thread, beside those of other sequences.
  void ChooseToken(absl::Span<const float> logits, Sampler* sampler);
  // Takes what was chosen into the completion and emits what became showable. The ending if the
  // sequence is done.
  std::optional<Ending> TakeToken(Clock::time_point now);
  // When the newest token was taken.
  std::optional<Clock::time_point> last_token_time() const { return last_token_time_; }
  // Whether an end for this reason leaves a state, and the logits of every step are needed for it.
  bool wants_state() const { return request_.state.want_state; }
  bool leaves_state(FinishReason reason) const;
  bool has_sampled() const { return chooser_.chosen() > 0; }
  // What is left begins with sampling, from the logits after the last token in the state: nothing
  // was sampled, or a stop token that is no part of the answer.
  bool goes_on_from_logits() const { return at_end_token_ || !has_sampled(); }
  // What Finish tells as the state that is left, around `image` of the slot. Without a pending
  // token the image has the logits after its last one.
  void LeaveState(std::shared_ptr<const StateImage> image);
  // Flushes held text and emits GenerationFinished; where it never came to Fork, for every choice.
  // Last call. True: the request has no other choice left.
  bool Finish(const Ending& ending, Clock::time_point now);

 private:
  // A resumed state's pending token: with a prompt it is read with it; alone it is a decode step,
  // as it would have been without the stop, to the bit.
  enum class Pending : uint8_t { kNone, kInPrompt, kDecoded };
  // What the choices of a request share; the loop's thread's.
  struct Group {
    GenerationRequest request;
    std::shared_ptr<TokenStream> stream;
    Pending pending = Pending::kNone;
    bool forked = false;
    int64_t unfinished = 0;  // choices
  };

  static std::shared_ptr<Group> MakeGroup(GenerationRequest request,
                                          std::shared_ptr<TokenStream> stream);
  // A choice of `stem`'s request.
  Sequence(const Sequence& stem, int32_t choice);
  void EmitPrompt();
  void Resume();
  void Push(TokenDelta delta);
  // Tokens of this choice, at most.
  int64_t max_tokens() const;
  GenerationTimings Timings(Clock::time_point now) const;

  const std::shared_ptr<Group> group_;
  const GenerationRequest& request_;
  TokenStream* const stream_;
  const Pending pending_;
  const int32_t choice_;
  const VocabularyView* vocabulary_;
  TokenChooser chooser_;
  absl::StatusOr<TokenChooser::Choice> chosen_{TokenChooser::Choice{}};  // for TakeToken
  std::optional<TextStream> text_;                                       // none without a tokenizer
  uint64_t id_ = 0;
  int32_t slot_ = -1;
  int64_t base_ = 0;           // tokens in the state it resumed
  int64_t position_ = 0;       // tokens in the state
  int64_t cached_tokens_ = 0;  // of them, not computed for this choice
  bool had_slot_ = false;
  PrefixPlan prefix_;
  int32_t last_token_ = -1;
  bool at_end_token_ = false;       // it is one
  uint64_t history_hash_ = 0;       // of the prompt, then of every token that was fed
  std::vector<int32_t> generated_;  // the completion
  std::shared_ptr<const SequenceSnapshot> left_state_;
  std::shared_ptr<const StateImage> swapped_;
  std::optional<Clock::time_point> stalled_since_;
  Clock::time_point submitted_;
  std::optional<Clock::time_point> admitted_;
  std::optional<Clock::time_point> first_token_;
  std::optional<Clock::time_point> last_token_time_;
};

}  // namespace osdn

#endif  // OSDN_ENGINE_SEQUENCE_H_
