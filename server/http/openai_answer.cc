#include "server/http/openai_answer.h"

#include <array>
#include <nlohmann/json.hpp>
#include <random>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/utf8_decoder.h"

namespace osdn {
namespace {

// A token's bytes as OpenAI tells them where they are not whole characters.
std::string TokenText(const std::string& bytes) {
  Utf8Decoder decoder;
  std::string text = decoder.Append(bytes);
  const bool whole = decoder.Flush().empty() && text == bytes;
  if (whole) return bytes;
  std::string escaped = "bytes:";
  for (unsigned char c : bytes) absl::StrAppendFormat(&escaped, "\\x%02x", c);
  return escaped;
}

Json BytesJson(const std::string& bytes) {
  Json result = Json::array();
  for (unsigned char c : bytes) result.push_back(c);
  return result;
}

template <class Logprob>
Json ChatLogprob(const Logprob& logprob) {
  return {{"token", TokenText(logprob.token_bytes())},
          {"logprob", logprob.logprob()},
          {"bytes", BytesJson(logprob.token_bytes())}};
}

Json NoChatLogprobs() { return {{"content", Json::array()}, {"refusal", nullptr}}; }

Json NoTextLogprobs() {
  return {{"text_offset", Json::array()},
          {"token_logprobs", Json::array()},
          {"tokens", Json::array()},
          {"top_logprobs", Json::array()}};
}

const char* FinishName(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_LENGTH:
    case v1::FINISH_REASON_TIME:
    case v1::FINISH_REASON_DRAINED:
      return "length";
    default:
      return "stop";
  }
}

Json UsageJson(const v1::Usage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens()},
          {"completion_tokens", usage.completion_tokens()},
          {"total_tokens", usage.prompt_tokens() + usage.completion_tokens()},
          {"prompt_tokens_details", {{"cached_tokens", usage.cached_tokens()}}}};
}

}  // namespace

std::string NewId(absl::string_view prefix) {
  std::random_device device;
  std::string id(prefix);
  for (int i = 0; i < 4; ++i) absl::StrAppendFormat(&id, "%08x", device());
  return id;
}

struct OpenAiAnswer::Choice {
  size_t index = 0;
  std::string text;
  Json token_ids = Json::array();
  Json logprobs;
  Json finish_reason;
  Json extension;
  size_t logprob_bytes = 0;  // where the next token begins in the completion
  bool role_told = false;

  void Append(const Json& more_logprobs) {
    for (const auto& [name, values] : more_logprobs.items()) {
      if (!values.is_array()) continue;
      Json& all = logprobs[name];
      all.insert(all.end(), values.begin(), values.end());
    }
  }
};

struct OpenAiAnswer::State {
  AnswerStyle style;
  AnswerIdentity identity;
  v1::Usage usage;
  std::vector<Choice> choices;

  Json Head() const {
    const char* object = style.chat ? (style.stream ? "chat.completion.chunk" : "chat.completion")
                                    : "text_completion";
    return {{"id", identity.id},
            {"object", object},
            {"created", identity.created},
            {"model", identity.model}};
  }

  // Of one delta.
  Json Logprobs(const v1::Delta& delta, Choice* choice) const {
    Json result = style.chat ? NoChatLogprobs() : NoTextLogprobs();
    for (const v1::TokenLogprob& logprob : delta.logprobs()) {
      if (style.chat) {
        Json entry = ChatLogprob(logprob);
        Json& top = entry["top_logprobs"] = Json::array();
        for (const v1::TopLogprob& other : logprob.top()) top.push_back(ChatLogprob(other));
        result["content"].push_back(std::move(entry));
        continue;
      }
      Json top = Json::object();
      for (const v1::TopLogprob& other : logprob.top()) {
        top[TokenText(other.token_bytes())] = other.logprob();
      }
      result["text_offset"].push_back(choice->logprob_bytes);
      result["token_logprobs"].push_back(logprob.logprob());
      result["tokens"].push_back(TokenText(logprob.token_bytes()));
      result["top_logprobs"].push_back(std::move(top));
      choice->logprob_bytes += logprob.token_bytes().size();
    }
    return result;
  }

  // The choice of a chunk.
  Json Piece(const std::string& text, Choice* choice) const {
    Json piece = {{"index", choice->index}};
    if (style.chat) {
      Json delta = Json::object();
      if (!choice->role_told) delta["role"] = "assistant";
      if (!choice->role_told || !text.empty()) delta["content"] = text;
      choice->role_told = true;
      piece["delta"] = std::move(delta);
    } else {
      piece["text"] = text;
    }
    piece["logprobs"] = nullptr;
    piece["finish_reason"] = nullptr;
    return piece;
  }
};

OpenAiAnswer::OpenAiAnswer(const AnswerStyle& style, AnswerIdentity identity, size_t prompts)
    : state_(std::make_unique<State>()) {
  state_->style = style;
  state_->identity = std::move(identity);
  state_->choices.resize(prompts * style.choices);
  for (size_t i = 0; i < state_->choices.size(); ++i) {
    state_->choices[i].index = i;
    if (style.logprobs)
      state_->choices[i].logprobs = style.chat ? NoChatLogprobs() : NoTextLogprobs();
  }
}

OpenAiAnswer::~OpenAiAnswer() = default;

OpenAiAnswer::Choice* OpenAiAnswer::At(size_t generation, uint32_t index) {
  return &state_->choices[generation * state_->style.choices + index];
}

std::string OpenAiAnswer::Event(const Json& choice) const {
  Json chunk = state_->Head();
  chunk["choices"] = Json::array({choice});
  if (state_->style.include_usage) chunk["usage"] = nullptr;
  return absl::StrCat("data: ", JsonText(chunk), "\n\n");
}

std::string OpenAiAnswer::Events(const GenerationReader::Item& item) {
  const AnswerStyle& style = state_->style;
  if (item.frame.has_delta()) {
    const v1::Delta& delta = item.frame.delta();
    Choice* choice = At(item.generation, delta.index());
    // What is held back, and what a client did not ask for, is not worth a chunk.
    const bool tells = !delta.text().empty() || style.logprobs || style.return_token_ids;
    if (!tells && choice->role_told) return "";
    Json piece = state_->Piece(delta.text(), choice);
    if (style.logprobs) piece["logprobs"] = state_->Logprobs(delta, choice);
    if (style.return_token_ids) piece["token_ids"] = delta.token_ids();
    return Event(piece);
  }
  if (!item.frame.has_finished()) return "";
  const v1::Finished& finished = item.frame.finished();
  AddUsage(finished, &state_->usage);
  Json piece = state_->Piece("", At(item.generation, finished.index()));
  piece["finish_reason"] = FinishName(finished.finish_reason());
  piece["osdn"] = ExtensionJson(finished);
  return Event(piece);
}

std::string OpenAiAnswer::End() const {
  std::string events;
  if (state_->style.include_usage) {
    Json chunk = state_->Head();
    chunk["choices"] = Json::array();
    chunk["usage"] = UsageJson(state_->usage);
    absl::StrAppend(&events, "data: ", JsonText(chunk), "\n\n");
  }
  absl::StrAppend(&events, "data: [DONE]\n\n");
  return events;
}

void OpenAiAnswer::AddPrompt(size_t generation, const v1::Delta& prompt) {
  for (uint32_t i = 0; i < state_->style.choices; ++i) {
    Choice* choice = At(generation, i);
    Json told = state_->Logprobs(prompt, choice);
    told["token_logprobs"][0] = nullptr;
    told["top_logprobs"][0] = nullptr;
    choice->Append(told);
  }
}

void OpenAiAnswer::EndWithPrompt(size_t generation, const v1::Delta& prompt) {
  AddPrompt(generation, prompt);
  for (uint32_t i = 0; i < state_->style.choices; ++i) {
    GenerationReader::Item item{generation, {}};
    v1::Delta* delta = item.frame.mutable_delta();
    delta->set_index(i);
    delta->set_text(prompt.text());
    *delta->mutable_token_ids() = prompt.token_ids();
    Add(item);
    v1::Finished* finished = item.frame.mutable_finished();
    finished->set_index(i);
    finished->set_finish_reason(v1::FINISH_REASON_LENGTH);
    finished->mutable_usage()->set_prompt_tokens(static_cast<uint64_t>(prompt.token_ids_size()));
    Add(item);
  }
}

void OpenAiAnswer::Add(const GenerationReader::Item& item) {
  if (item.frame.has_delta()) {
    const v1::Delta& delta = item.frame.delta();
    Choice* choice = At(item.generation, delta.index());
    choice->text += delta.text();
    for (uint32_t id : delta.token_ids()) choice->token_ids.push_back(id);
    if (state_->style.logprobs) choice->Append(state_->Logprobs(delta, choice));
  } else if (item.frame.has_finished()) {
    const v1::Finished& finished = item.frame.finished();
    Choice* choice = At(item.generation, finished.index());
    choice->finish_reason = FinishName(finished.finish_reason());
    choice->extension = ExtensionJson(finished);
    AddUsage(finished, &state_->usage);
  }
}

std::string OpenAiAnswer::Body() const {
  Json body = state_->Head();
  Json& choices = body["choices"] = Json::array();
  for (const Choice& choice : state_->choices) {
    Json told = {{"index", choice.index}};
    if (state_->style.chat) {
      told["message"] = {{"role", "assistant"}, {"content", choice.text}, {"refusal", nullptr}};
    } else {
      told["text"] = choice.text;
    }
    told["logprobs"] = choice.logprobs;
    told["finish_reason"] = choice.finish_reason;
    if (state_->style.return_token_ids) told["token_ids"] = choice.token_ids;
    told["osdn"] = choice.extension;
    choices.push_back(std::move(told));
  }
  body["usage"] = UsageJson(state_->usage);
  return JsonText(body);
}

Json StateJson(const v1::StateInfo& state) {
  return {{"state_id", state.state_id()},
          {"label", state.label()},
          {"parent_id", state.parent_id().empty() ? Json() : Json(state.parent_id())},
          {"model_id", state.model_id()},
          {"position", state.position()},
          {"bytes", state.bytes()},
          {"created_unix_ms", state.created_unix_ms()},
          {"expires_unix_ms", state.expires_unix_ms()}};
}

Json ExtensionJson(const v1::Finished& finished) {
  const v1::Timings& timings = finished.timings();
  // "FINISH_REASON_STOP_STRING" -> "STOP_STRING"
  constexpr size_t kPrefix = sizeof("FINISH_REASON_") - 1;
  Json result = {{"finish_reason", v1::FinishReason_Name(finished.finish_reason()).substr(kPrefix)},
                 {"seed", finished.params().sampling().seed()},
                 {"timings",
                  {{"queue_ms", timings.queue_ms()},
                   {"prefill_ms", timings.prefill_ms()},
                   {"decode_ms", timings.decode_ms()},
                   {"time_to_first_token_ms", timings.time_to_first_token_ms()}}}};
  if (!finished.stop_string().empty()) result["stop_string"] = finished.stop_string();
  if (finished.has_state()) result["state"] = StateJson(finished.state());
  if (!finished.state_blob().empty()) {
    result["state_blob"] = absl::Base64Escape(finished.state_blob());
  }
  return result;
}

void AddUsage(const v1::Finished& finished, v1::Usage* total) {
  const v1::Usage& own = finished.usage();
  total->set_completion_tokens(total->completion_tokens() + own.completion_tokens());
  if (finished.index() != 0) return;  // the prompt is choice 0's
  total->set_prompt_tokens(total->prompt_tokens() + own.prompt_tokens());
  total->set_cached_tokens(total->cached_tokens() + own.cached_tokens());
}

}  // namespace osdn
