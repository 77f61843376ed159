// /v1/models, /v1/completions, /v1/chat/completions.
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "server/http/echo_scores.h"
#include "server/http/handlers.h"
#include "server/http/openai_answer.h"
#include "server/http/openai_error.h"
#include "server/http/openai_request.h"
#include "server/http/run.h"
#include "server/status.h"

namespace osdn {
namespace {

using Item = GenerationReader::Item;

// Since when the model is served, as far as anybody asks: the process's start.
int64_t ModelCreated() {
  static const int64_t created = absl::ToUnixSeconds(absl::Now());
  return created;
}

Json ModelJson(const Engine& engine) {
  const ModelConfig& config = engine.config();
  return {{"id", config.name},
          {"object", "model"},
          {"created", ModelCreated()},
          {"owned_by", "osdn-server"},
          {"osdn",
           {{"model_id", config.model_id()},
            {"has_chat_template", config.chat.has_value()},
            {"state_bytes", engine.info().state_bytes_per_slot},
            {"backend", engine.info().backend}}}};
}

HttpResponse JsonResponse(std::string body) {
  HttpResponse response;
  response.body = std::move(body);
  return response;
}

// What a streamed answer holds until its last byte is written.
struct StreamedAnswer {
  explicit StreamedAnswer(OpenAiRequest read) : request(std::move(read)) {}

  OpenAiRequest request;
  std::unique_ptr<Run> run;  // ends before the request
  std::unique_ptr<OpenAiAnswer> answer;
  Item first;

  bool Write(const HttpWriter& writer) {
    absl::StatusOr<std::optional<Item>> item = std::optional<Item>(std::move(first));
    while (item.ok() && item->has_value()) {
      const std::string events = answer->Events(**item);
      if (!events.empty() && !writer(events)) return false;
      item = run->Next();
    }
    if (item.ok()) return writer(answer->End());
    const absl::Status status = InTermsOf(request.names, item.status());
    return writer(absl::StrCat("data: ", ErrorBody(status), "\n\n"));
  }
};

std::string PromptsAlone(const AnswerStyle& style, const AnswerIdentity& identity,
                         const std::vector<v1::Delta>& prompts) {
  AnswerStyle once = style;
  once.choices = 1;
  OpenAiAnswer answer(once, identity, prompts.size());
  for (size_t i = 0; i < prompts.size(); ++i) answer.EndWithPrompt(i, prompts[i]);
  return answer.Body();
}

HttpResponse Answer(const HandlerContext& context, const HttpRequest& http,
                    absl::StatusOr<OpenAiRequest> read) {
  if (!read.ok()) return ErrorResponse(read.status());
  const auto streamed = std::make_shared<StreamedAnswer>(*std::move(read));
  OpenAiRequest& request = streamed->request;
  const AnswerStyle style = request.style;
  // Of many prompts the first is enough to tell what is wrong with all.
  if (!request.violations.empty() && request.prompts.size() > 1) request.prompts.resize(1);
  if (request.prompts.empty()) return ErrorResponse(InvalidRequestError(request.violations));
  AnswerIdentity identity{NewId(style.chat ? "chatcmpl-" : "cmpl-"),
                          absl::ToUnixSeconds(absl::Now()),
                          context.environment.engine->config().name};
  std::vector<v1::Delta> scored;  // of each prompt, with echo and logprobs
  if (style.scores_prompt) {
    absl::StatusOr<std::vector<v1::Delta>> scores = ScorePrompts(context, http.socket, request);
    if (!scores.ok()) return ErrorResponse(scores.status());
    scored = *std::move(scores);
    if (style.prompt_only) return JsonResponse(PromptsAlone(style, identity, scored));
  }
  std::vector<Generation> generations;
  for (const auto& prompt : request.prompts) {
    generations.push_back({{.method = style.chat ? "/v1/chat/completions" : "/v1/completions",
                            .chat = style.chat,
                            .violations = &request.violations},
                           prompt});
  }
  streamed->run = std::make_unique<Run>(context, http.socket, generations);
  // Before the head is written: what is refused is refused with its own code.
  absl::StatusOr<std::optional<Item>> item = streamed->run->Next();
  if (!item.ok()) return ErrorResponse(InTermsOf(request.names, item.status()));
  streamed->answer = std::make_unique<OpenAiAnswer>(style, std::move(identity), generations.size());
  for (size_t i = 0; i < scored.size(); ++i) streamed->answer->AddPrompt(i, scored[i]);
  if (style.stream && item->has_value()) {
    streamed->first = **std::move(item);
    HttpResponse response;
    response.content_type = kEventStream;
    response.headers.emplace_back("Cache-Control", "no-cache");
    response.stream = [streamed](const HttpWriter& writer) { return streamed->Write(writer); };
    return response;
  }
  while (item.ok() && item->has_value()) {
    streamed->answer->Add(**item);
    item = streamed->run->Next();
  }
  if (!item.ok()) return ErrorResponse(InTermsOf(request.names, item.status()));
  return JsonResponse(streamed->answer->Body());
}

}  // namespace

HttpResponse ListModels(const HandlerContext& context, const HttpRequest&) {
  return JsonResponse(JsonText(
      {{"object", "list"}, {"data", Json::array({ModelJson(*context.environment.engine)})}}));
}

HttpResponse GetModel(const HandlerContext& context, const HttpRequest& request) {
  const std::string& served = context.environment.engine->config().name;
  const absl::string_view asked = absl::StripPrefix(request.path, "/v1/models/");
  if (asked != served) return ErrorResponse(ModelNotFoundError(asked, served));
  return JsonResponse(JsonText(ModelJson(*context.environment.engine)));
}

HttpResponse CreateCompletion(const HandlerContext& context, const HttpRequest& request) {
  return Answer(context, request,
                ReadCompletionRequest(request.body, context.environment.engine->config().name));
}

HttpResponse CreateChatCompletion(const HandlerContext& context, const HttpRequest& request) {
  return Answer(context, request,
                ReadChatRequest(request.body, context.environment.engine->config().name));
}

}  // namespace osdn
