#include "server/request_mapping.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/chat_template.h"
#include "server/state_access.h"

namespace osdn {
namespace {

constexpr size_t kMaxToldIds = 16;

class RequestReader {
 public:
  RequestReader(const v1::GenerateRequest& request, const RequestContext& context,
                std::vector<FieldViolation>* violations)
      : request_(request), context_(context), violations_(violations) {}

  GenerationRequest Read() {
    ReadState(request_.state());
    ReadScheduling(request_.scheduling());
    // Stop conditions first: a messages prompt adds its stop tokens to them.
    ReadStop(request_.stop());
    ReadSampling(request_.sampling());
    ReadPrompt(request_.prompt());
    result_.cache.salt = request_.cache().salt();
    result_.cache.skip = request_.cache().skip();
    ReadOutput(request_.output());
    ReadConstraint(request_.constraint());
    return std::move(result_);
  }

 private:
  void Add(absl::string_view field, absl::string_view description) {
    violations_->push_back({std::string(field), std::string(description)});
  }

  void ReadScheduling(const v1::SchedulingOptions& scheduling) {
    result_.scheduling.max_time = std::chrono::milliseconds(scheduling.max_time_ms());
    switch (scheduling.priority()) {
      case v1::PRIORITY_UNSPECIFIED:
      case v1::PRIORITY_NORMAL:
        return;
      case v1::PRIORITY_HIGH:
        result_.scheduling.priority = Priority::kHigh;
        return;
      case v1::PRIORITY_LOW:
        result_.scheduling.priority = Priority::kLow;
        return;
      default:
        return Add("scheduling.priority",
                   absl::StrCat(scheduling.priority(), " is not one of HIGH, NORMAL, LOW"));
    }
  }

  void ReadState(const v1::StateOptions& state) {
    result_.state.resume = context_.resume;
    result_.state.want_state =
        state.return_state() || state.has_save_state_as() || context_.prompt_only;
    if (context_.resume != nullptr && request_.prompt().content_case() == 0) {
      result_.state.open_role = context_.resume->open_role;
    }
    if (state.save_state_as().size() > kMaxStateLabelBytes) {
      Add("state.save_state_as",
          absl::StrCat(state.save_state_as().size(), " bytes: at most ", kMaxStateLabelBytes));
    }
    if (state.replace() && request_.sampling().n() > 1) {
      Add("state.replace", absl::StrCat("true, but sampling.n is ", request_.sampling().n(),
                                        ": a state of many successors has none to replace it"));
    }
    if (state.replace() && !(state.has_state_id() && state.has_save_state_as())) {
      Add("state.replace", "true, which needs state_id and save_state_as");
    }
    if (state.ttl_seconds() > 0 && !state.has_save_state_as()) {
      Add("state.ttl_seconds",
          absl::StrCat(state.ttl_seconds(), ", but save_state_as is not set: nothing is saved"));
    }
  }

  void ReadPrompt(const v1::Prompt& prompt) {
    switch (prompt.content_case()) {
      case v1::Prompt::kText:
        return ReadText(prompt.text());
      case v1::Prompt::kTokens:
        if (prompt.tokens().ids().empty()) {
          return Add("prompt.tokens.ids", "no ids: at least 1 is needed");
        }
        result_.prompt = ToTokenIds(prompt.tokens().ids(), "prompt.tokens.ids",
                                    context_.config->arch.vocab_size, violations_);
        return;
      case v1::Prompt::kMessages:
        return ReadMessages(prompt.messages());
      case v1::Prompt::CONTENT_NOT_SET:
        if (context_.resume != nullptr) return;
        return Add("prompt", "not set: one of text, tokens, messages is needed");
    }
    Add("prompt", "of a kind this server does not know: use text, tokens or messages");
  }

  void ReadText(const std::string& text) {
    if (context_.tokenizer == nullptr) return AddNoTokenizer("prompt.text");
    if (text.empty()) return Add("prompt.text", "empty: at least 1 byte is needed");
    const ModelConfig& config = *context_.config;
    // Only at the beginning of a text.
    const bool begins = context_.resume == nullptr;
    if (begins && config.add_bos && config.bos_id.has_value())
      result_.prompt.push_back(*config.bos_id);
    const std::vector<int32_t> ids = context_.tokenizer->Encode(text);
    result_.prompt.insert(result_.prompt.end(), ids.begin(), ids.end());
  }

  void ReadMessages(const v1::Messages& messages) {
    if (context_.tokenizer == nullptr) return AddNoTokenizer("prompt.messages");
    const ModelConfig& config = *context_.config;
    if (!config.chat.has_value()) {
      return Add("prompt.messages",
                 absl::StrCat("model ", config.name, " has no chat template: use prompt.text"));
    }
    std::vector<ChatMessage> chat;
    chat.reserve(static_cast<size_t>(messages.messages_size()));
    for (const v1::Message& message : messages.messages()) {
      chat.push_back({message.role(), message.content()});
    }
    std::vector<int64_t> ends;
    ChatTemplate rules = *config.chat;
    // What is saved without an answer is closed: the next thing may be any message.
    if (context_.prompt_only) {
      rules.generation_prompt.clear();
    } else {
      result_.state.open_role = GenerationRole(rules);
    }
    absl::StatusOr<std::vector<int32_t>> ids =
        context_.resume == nullptr
            ? RenderChat(rules, *context_.tokenizer, config.bos_id, chat, &ends)
            : RenderChatTurn(rules, *context_.tokenizer, context_.resume->open_role, chat);
    if (!ids.ok()) return Add("prompt.messages", ids.status().message());
    result_.prompt = *std::move(ids);
    // What other requests are likeliest to begin with: the first message, often a system prompt,
    // and everything before the newest one.
    if (!ends.empty()) result_.cache.borders = {ends.front()};
    if (ends.size() > 2) result_.cache.borders.push_back(ends[ends.size() - 2]);

    absl::StatusOr<std::vector<int32_t>> stop = ChatStopIds(*config.chat, *context_.tokenizer);
    if (!stop.ok()) return Add("prompt.messages", stop.status().message());
    for (int32_t id : *stop) {
      if (std::find(result_.stop_token_ids.begin(), result_.stop_token_ids.end(), id) ==
          result_.stop_token_ids.end()) {
        result_.stop_token_ids.push_back(id);
      }
    }
  }

  void AddNoTokenizer(absl::string_view field) {
    Add(field, absl::StrCat("model ", context_.config->name,
                            " has no tokenizer: send token ids in prompt.tokens"));
  }

  void ReadSampling(const v1::SamplingParams& sampling) {
    SamplingParams& out = result_.sampling;
    constexpr uint32_t kMaxInt = std::numeric_limits<int32_t>::max();
    if (sampling.has_n()) result_.choices = std::min(sampling.n(), kMaxInt);
    if (sampling.has_temperature()) out.temperature = sampling.temperature();
    if (sampling.has_top_p()) out.top_p = sampling.top_p();
    if (sampling.has_min_p()) out.min_p = sampling.min_p();
    out.seed = sampling.has_seed() ? sampling.seed() : context_.drawn_seed;
    // A resumed state goes on with its own random numbers.
    if (!sampling.has_seed() && context_.resume != nullptr) out.seed = context_.resume->seed;
    if (sampling.has_typical_p()) out.typical_p = sampling.typical_p();
    if (sampling.has_repetition_penalty()) out.repetition_penalty = sampling.repetition_penalty();
    if (sampling.has_presence_penalty()) out.presence_penalty = sampling.presence_penalty();
    if (sampling.has_frequency_penalty()) out.frequency_penalty = sampling.frequency_penalty();
    if (sampling.has_penalty_window()) out.penalty_window = sampling.penalty_window();
    ReadLogitBias(sampling);
    constexpr uint32_t kMaxTopK = std::numeric_limits<int32_t>::max();
    if (sampling.top_k() > kMaxTopK) {
      return Add("sampling.top_k",
                 absl::StrCat(sampling.top_k(), " is outside [0, ", kMaxTopK, "] (0 is off)"));
    }
    out.top_k = static_cast<int32_t>(sampling.top_k());
  }

  void ReadLogitBias(const v1::SamplingParams& sampling) {
    const auto count = static_cast<size_t>(sampling.logit_bias_size());
    if (count > kMaxLogitBiases) {
      return Add("sampling.logit_bias", absl::StrCat(count, " tokens: at most ", kMaxLogitBiases));
    }
    for (const v1::LogitBias& bias : sampling.logit_bias()) {
      // Ids that do not fit are no tokens either: the engine says so, with the largest id it knows.
      constexpr uint32_t kMaxId = std::numeric_limits<int32_t>::max();
      result_.sampling.logit_bias.push_back(
          {static_cast<int32_t>(std::min(bias.token_id(), kMaxId)), bias.bias()});
    }
  }

  void ReadConstraint(const v1::Constraint& constraint) {
    using Kind = ConstraintSpec::Kind;
    switch (constraint.kind_case()) {
      case v1::Constraint::kJsonSchema:
        result_.constraint_spec = {Kind::kJsonSchema, constraint.json_schema()};
        break;
      case v1::Constraint::kRegex:
        result_.constraint_spec = {Kind::kRegex, constraint.regex()};
        break;
      case v1::Constraint::kGbnf:
        result_.constraint_spec = {Kind::kGbnf, constraint.gbnf()};
        break;
      case v1::Constraint::KIND_NOT_SET:
        if (request_.has_constraint()) Add("constraint", "empty: set json_schema, regex or gbnf");
        return;
    }
    if (context_.tokenizer == nullptr) AddNoTokenizer("constraint");
  }

  void ReadOutput(const v1::OutputOptions& output) {
    result_.want_prefill_progress = output.prefill_progress();
    result_.logprobs = output.logprobs();
    constexpr uint32_t kMax = std::numeric_limits<int32_t>::max();
    result_.top_logprobs = static_cast<int32_t>(std::min(output.top_logprobs(), kMax));
    result_.echo = output.echo();
  }

  void ReadStop(const v1::StopConditions& stop) {
    result_.max_tokens = std::min(context_.max_tokens_default, context_.max_tokens_limit);
    if (stop.has_max_tokens()) {
      result_.max_tokens = stop.max_tokens();
      if (stop.max_tokens() < 1 || stop.max_tokens() > context_.max_tokens_limit) {
        Add("stop.max_tokens",
            absl::StrCat(stop.max_tokens(), " is outside [1, ", context_.max_tokens_limit, "]"));
      }
    }
    if (context_.prompt_only) result_.max_tokens = 0;
    result_.min_tokens = stop.min_tokens();
    result_.ignore_eos = stop.ignore_eos();
    result_.stop_strings.assign(stop.stop_strings().begin(), stop.stop_strings().end());
    result_.stop_token_ids = ToTokenIds(stop.stop_token_ids(), "stop.stop_token_ids",
                                        context_.config->arch.vocab_size, violations_);
  }

  const v1::GenerateRequest& request_;
  const RequestContext& context_;
  std::vector<FieldViolation>* const violations_;
  GenerationRequest result_;
};

// "stop.stop_strings[2]" -> "stop.stop_strings"; everything about the prompt is one field.
absl::string_view FieldGroup(absl::string_view field) {
  if (absl::StartsWith(field, "prompt")) return "prompt";
  return field.substr(0, field.find('['));
}

double ToMilliseconds(std::chrono::nanoseconds time) {
  return std::chrono::duration<double, std::milli>(time).count();
}

void SetConstraint(const ConstraintSpec& spec, v1::ResolvedParams* params) {
  switch (spec.kind) {
    case ConstraintSpec::Kind::kJsonSchema:
      return params->mutable_constraint()->set_json_schema(spec.source);
    case ConstraintSpec::Kind::kRegex:
      return params->mutable_constraint()->set_regex(spec.source);
    case ConstraintSpec::Kind::kGbnf:
      return params->mutable_constraint()->set_gbnf(spec.source);
    case ConstraintSpec::Kind::kNone:
      return;
  }
}

}  // namespace

GenerationRequest ToGenerationRequest(const v1::GenerateRequest& request,
                                      const RequestContext& context,
                                      std::vector<FieldViolation>* violations) {
  return RequestReader(request, context, violations).Read();
}

void MergeViolations(std::vector<FieldViolation> more, std::vector<FieldViolation>* violations) {
  const size_t known = violations->size();
  for (FieldViolation& violation : more) {
    const bool spoken_of =
        std::any_of(violations->begin(), violations->begin() + static_cast<ptrdiff_t>(known),
                    [&violation](const FieldViolation& other) {
                      return FieldGroup(other.field) == FieldGroup(violation.field);
                    });
    if (!spoken_of) violations->push_back(std::move(violation));
  }
}

std::vector<int32_t> ToTokenIds(absl::Span<const uint32_t> ids, absl::string_view field,
                                int64_t vocab_size, std::vector<FieldViolation>* violations) {
  std::vector<int32_t> result;
  result.reserve(ids.size());
  size_t told = 0;
  for (size_t i = 0; i < ids.size() && told < kMaxToldIds; ++i) {
    if (ids[i] < vocab_size) {
      result.push_back(static_cast<int32_t>(ids[i]));
      continue;
    }
    violations->push_back(
        {absl::StrCat(field, "[", i, "]"),
         absl::StrCat(ids[i], " is outside the vocabulary [0, ", vocab_size - 1, "]")});
    ++told;
  }
  return result;
}

v1::FinishReason ToProto(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return v1::FINISH_REASON_STOP;
    case FinishReason::kStopString:
      return v1::FINISH_REASON_STOP_STRING;
    case FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    case FinishReason::kTime:
      return v1::FINISH_REASON_TIME;
    case FinishReason::kCancelled:
      return v1::FINISH_REASON_CANCELLED;
    case FinishReason::kDrained:
      return v1::FINISH_REASON_DRAINED;
    case FinishReason::kError:
      return v1::FINISH_REASON_ERROR;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

v1::TokenLogprob ToProto(const TokenLogprob& logprob, const Tokenizer* tokenizer) {
  const auto bytes = [tokenizer](int32_t token) {
    return tokenizer == nullptr ? std::string() : std::string(tokenizer->TokenBytes(token));
  };
  v1::TokenLogprob result;
  result.set_token_id(static_cast<uint32_t>(logprob.token));
  result.set_token_bytes(bytes(logprob.token));
  result.set_logprob(logprob.logprob);
  for (const TopLogprob& likely : logprob.top) {
    v1::TopLogprob* top = result.add_top();
    top->set_token_id(static_cast<uint32_t>(likely.token));
    top->set_token_bytes(bytes(likely.token));
    top->set_logprob(likely.logprob);
  }
  return result;
}

v1::Usage ToUsage(const GenerationFinished& finished) {
  v1::Usage usage;
  usage.set_prompt_tokens(static_cast<uint64_t>(finished.prompt_tokens));
  usage.set_cached_tokens(static_cast<uint64_t>(finished.cached_tokens));
  usage.set_completion_tokens(static_cast<uint64_t>(finished.completion_tokens));
  return usage;
}

v1::Timings ToTimings(const GenerationTimings& timings) {
  v1::Timings result;
  result.set_queue_ms(ToMilliseconds(timings.queue));
  result.set_prefill_ms(ToMilliseconds(timings.prefill));
  result.set_decode_ms(ToMilliseconds(timings.decode));
  result.set_time_to_first_token_ms(ToMilliseconds(timings.time_to_first_token));
  return result;
}

v1::ResolvedParams ToResolvedParams(const GenerationRequest& request) {
  v1::ResolvedParams params;
  v1::SamplingParams* sampling = params.mutable_sampling();
  sampling->set_temperature(request.sampling.temperature);
  sampling->set_top_k(static_cast<uint32_t>(request.sampling.top_k));
  sampling->set_top_p(request.sampling.top_p);
  sampling->set_min_p(request.sampling.min_p);
  sampling->set_seed(request.sampling.seed);
  sampling->set_typical_p(request.sampling.typical_p);
  sampling->set_repetition_penalty(request.sampling.repetition_penalty);
  sampling->set_presence_penalty(request.sampling.presence_penalty);
  sampling->set_frequency_penalty(request.sampling.frequency_penalty);
  sampling->set_penalty_window(static_cast<uint32_t>(request.sampling.penalty_window));
  for (const LogitBias& bias : request.sampling.logit_bias) {
    v1::LogitBias* added = sampling->add_logit_bias();
    added->set_token_id(static_cast<uint32_t>(bias.token));
    added->set_bias(bias.bias);
  }
  sampling->set_n(static_cast<uint32_t>(request.choices));
  v1::StopConditions* stop = params.mutable_stop();
  stop->set_max_tokens(static_cast<uint32_t>(request.max_tokens));
  stop->set_min_tokens(static_cast<uint32_t>(request.min_tokens));
  stop->mutable_stop_strings()->Assign(request.stop_strings.begin(), request.stop_strings.end());
  stop->mutable_stop_token_ids()->Assign(request.stop_token_ids.begin(),
                                         request.stop_token_ids.end());
  stop->set_ignore_eos(request.ignore_eos);
  SetConstraint(request.constraint_spec, &params);
  v1::OutputOptions* output = params.mutable_output();
  output->set_prefill_progress(request.want_prefill_progress);
  output->set_logprobs(request.logprobs);
  output->set_top_logprobs(static_cast<uint32_t>(request.top_logprobs));
  output->set_echo(request.echo);
  return params;
}

}  // namespace osdn
