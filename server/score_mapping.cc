#include "server/score_mapping.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace osdn {
namespace {

class ContinuationReader {
 public:
  ContinuationReader(const v1::ScoreRequest& score, const RequestContext& context,
                     GenerationRequest* request, std::vector<FieldViolation>* violations)
      : score_(score), context_(context), request_(request), violations_(violations) {}

  void Read() {
    CheckState(score_.state());
    request_->top_logprobs =
        static_cast<int32_t>(std::min(score_.top_logprobs(), uint32_t{kMaxTopLogprobs}));
    if (score_.top_logprobs() > kMaxTopLogprobs) {
      Add("top_logprobs",
          absl::StrCat(score_.top_logprobs(), " is outside [0, ", kMaxTopLogprobs, "]"));
    }
    const int count = score_.continuations_size();
    if (count == 0) return Add("continuations", "none: at least 1 is needed");
    if (count > kMaxContinuations) {
      return Add("continuations",
                 absl::StrCat(count, " continuations: at most ", kMaxContinuations));
    }
    if (!ReadPrompt()) return;
    for (int i = 0; i < count; ++i) {
      request_->continuations.push_back(ReadOne(i, score_.continuations(i)));
    }
  }

 private:
  void Add(absl::string_view field, absl::string_view description) {
    violations_->push_back({std::string(field), std::string(description)});
  }

  void CheckState(const v1::StateOptions& state) {
    constexpr absl::string_view kNone = "set, but a Score leaves no state";
    if (state.has_save_state_as()) Add("state.save_state_as", kNone);
    if (state.return_state()) Add("state.return_state", kNone);
    if (state.ttl_seconds() > 0) Add("state.ttl_seconds", kNone);
    if (state.replace()) Add("state.replace", kNone);
  }

  // The prompt's text and its tokens, where texts follow it as one; false where that is too much.
  bool ReadPrompt() {
    if (context_.tokenizer == nullptr || score_.prompt().content_case() != v1::Prompt::kText) {
      return true;
    }
    const std::string& text = score_.prompt().text();
    size_t bytes = 0;
    for (const v1::Continuation& continuation : score_.continuations()) {
      if (continuation.has_text()) bytes += text.size() + continuation.text().size();
    }
    if (bytes > kMaxScoredBytes) {
      Add("continuations", absl::StrCat("the prompt's text with that of each is ", bytes,
                                        " bytes to be tokenized: at most ", kMaxScoredBytes,
                                        "; send tokens or fewer continuations"));
      return false;
    }
    prompt_text_ = &text;
    prompt_ids_ = context_.tokenizer->Encode(text);
    return true;
  }

  std::vector<int32_t> ReadOne(int index, const v1::Continuation& continuation) {
    const std::string field = absl::StrCat("continuations[", index, "]");
    std::vector<int32_t> ids;
    switch (continuation.content_case()) {
      case v1::Continuation::kText:
        ids = ReadText(absl::StrCat(field, ".text"), continuation.text());
        break;
      case v1::Continuation::kTokens:
        ids = ToTokenIds(continuation.tokens().ids(), absl::StrCat(field, ".tokens.ids"),
                         context_.config->arch.vocab_size, violations_);
        if (continuation.tokens().ids().empty()) {
          Add(absl::StrCat(field, ".tokens.ids"), "no ids: at least 1 is needed");
        }
        break;
      case v1::Continuation::CONTENT_NOT_SET:
        Add(field, "not set: one of text, tokens is needed");
        break;
    }
    if (static_cast<int64_t>(ids.size()) > context_.max_tokens_limit) {
      Add(field, absl::StrCat(ids.size(), " tokens: at most ", context_.max_tokens_limit));
    }
    return ids;
  }

  std::vector<int32_t> ReadText(const std::string& field, const std::string& text) {
    if (context_.tokenizer == nullptr) {
      Add(field, absl::StrCat("model ", context_.config->name, " has no tokenizer: send tokens"));
      return {};
    }
    if (text.empty()) {
      Add(field, "empty: at least 1 byte is needed");
      return {};
    }
    if (prompt_text_ == nullptr) return context_.tokenizer->Encode(text);
    std::vector<int32_t> whole = context_.tokenizer->Encode(absl::StrCat(*prompt_text_, text));
    if (whole.size() <= prompt_ids_.size() ||
        !std::equal(prompt_ids_.begin(), prompt_ids_.end(), whole.begin())) {
      Add(field,
          "joins the prompt's last token: together the two are tokenized otherwise than the prompt "
          "alone; let the continuation begin with the space between them, or send tokens");
      return {};
    }
    return {whole.begin() + static_cast<ptrdiff_t>(prompt_ids_.size()), whole.end()};
  }

  const v1::ScoreRequest& score_;
  const RequestContext& context_;
  GenerationRequest* const request_;
  std::vector<FieldViolation>* const violations_;
  const std::string* prompt_text_ = nullptr;
  std::vector<int32_t> prompt_ids_;
};

}  // namespace

v1::GenerateRequest ToGenerateRequest(const v1::ScoreRequest& score) {
  v1::GenerateRequest request;
  if (score.has_prompt()) *request.mutable_prompt() = score.prompt();
  if (score.has_cache()) *request.mutable_cache() = score.cache();
  if (score.has_scheduling()) *request.mutable_scheduling() = score.scheduling();
  if (score.state().has_state_id()) {
    request.mutable_state()->set_state_id(score.state().state_id());
  } else if (score.state().has_state_blob()) {
    request.mutable_state()->set_state_blob(score.state().state_blob());
  }
  return request;
}

void ReadContinuations(const v1::ScoreRequest& score, const RequestContext& context,
                       GenerationRequest* request, std::vector<FieldViolation>* violations) {
  ContinuationReader(score, context, request, violations).Read();
}

void AddToScore(const TokenDelta& delta, const Tokenizer* tokenizer, v1::ContinuationScore* score) {
  if (score->tokens().empty()) score->set_is_greedy(true);
  for (const TokenLogprob& token : delta.logprobs) {
    *score->add_tokens() = ToProto(token, tokenizer);
    score->set_logprob(score->logprob() + static_cast<double>(token.logprob));
    score->set_is_greedy(score->is_greedy() && token.greedy);
  }
}

}  // namespace osdn
