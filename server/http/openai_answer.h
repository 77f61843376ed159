// Frames of generations as OpenAI's answers: one object, or server-sent events.
#ifndef OSDN_SERVER_HTTP_OPENAI_ANSWER_H_
#define OSDN_SERVER_HTTP_OPENAI_ANSWER_H_

#include <cstdint>
#include <memory>
#include <string>

#include "server/http/generation_reader.h"
#include "server/http/json_fields.h"
#include "server/http/openai_request.h"

namespace osdn {

struct AnswerIdentity {
  std::string id;
  int64_t created = 0;  // Unix seconds
  std::string model;
};

// "cmpl-", "chatcmpl-", "resp_" + 32 random digits.
std::string NewId(absl::string_view prefix);

// One answer of /v1/completions or /v1/chat/completions. Either Events for each frame and End, or
// Add for each frame and Body.
class OpenAiAnswer {
 public:
  OpenAiAnswer(const AnswerStyle& style, AnswerIdentity identity, size_t prompts);
  ~OpenAiAnswer();

  // As server-sent events; "" for a frame that a client is not told of.
  std::string Events(const GenerationReader::Item& item);
  std::string End() const;

  // Logprobs of a prompt's own tokens, before those of its completions; the first has none.
  void AddPrompt(size_t generation, const v1::Delta& prompt);
  // The prompt is all of the answer: AddPrompt's, with its text.
  void EndWithPrompt(size_t generation, const v1::Delta& prompt);
  void Add(const GenerationReader::Item& item);
  std::string Body() const;

 private:
  struct Choice;
  struct State;

  Choice* At(size_t generation, uint32_t index);
  std::string Event(const Json& choice) const;

  const std::unique_ptr<State> state_;
};

// Parts that /v1/responses and the states' routes share.
Json StateJson(const v1::StateInfo& state);
// What OpenAI's fields do not tell of how a choice ended.
Json ExtensionJson(const v1::Finished& finished);
// Adds a generation's usage to `total`: prompts count once.
void AddUsage(const v1::Finished& finished, v1::Usage* total);

}  // namespace osdn

#endif  // OSDN_SERVER_HTTP_OPENAI_ANSWER_H_
