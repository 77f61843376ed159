// /v1/responses. A response that is stored leaves a state whose label is the response's id, so that
// previous_response_id goes on from there.
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "server/http/handlers.h"
#include "server/http/openai_answer.h"
#include "server/http/openai_error.h"
#include "server/http/openai_request.h"
#include "server/http/run.h"
#include "server/status.h"

namespace osdn {
namespace {

using Item = GenerationReader::Item;

constexpr char kIdPrefix[] = "resp_";
constexpr size_t kPage = 1000;

// The state that the response left.
absl::StatusOr<std::string> StateOf(const CallEnvironment& environment,
                                    const std::string& response_id) {
  std::string after;
  while (absl::StartsWith(response_id, kIdPrefix)) {
    const absl::StatusOr<std::vector<StateRecord>> records =
        environment.states->store().List(environment.owner(), after, kPage);
    if (!records.ok()) return records.status();
    for (const StateRecord& record : *records) {
      if (record.label == response_id) return record.id;
    }
    if (records->size() < kPage) break;
    after = records->back().id;
  }
  return absl::NotFoundError(absl::StrCat(
      "response ", response_id, ": never was, was not stored, was deleted, or has expired"));
}

struct ResponsesRequest {
  OpenAiRequest common;
  std::shared_ptr<v1::GenerateRequest> generate = std::make_shared<v1::GenerateRequest>();
  std::optional<std::string> previous;
  std::optional<std::string> instructions;
  bool store = true;
  Json format;
  Json metadata = Json::object();
};

void ReadInput(JsonFields* fields, ResponsesRequest* request) {
  v1::Messages messages;
  if (request->instructions.has_value()) {
    v1::Message* message = messages.add_messages();
    message->set_role("system");
    message->set_content(*request->instructions);
    if (request->previous.has_value()) {
      fields->Add("instructions",
                  "beside previous_response_id: the conversation goes on under those that it began "
                  "with");
    }
  }
  const Json* input = fields->Find("input");
  if (input == nullptr) {
    fields->Add("input", "missing: a text or an array of messages is needed");
  } else if (input->is_string()) {
    v1::Message* message = messages.add_messages();
    message->set_role("user");
    message->set_content(input->get<std::string>());
  } else if (input->is_array()) {
    ReadMessages(*input, "input", &messages, &request->common.violations);
  } else {
    fields->Add("input",
                absl::StrCat(input->type_name(), ": a text or an array of messages is wanted"));
  }
  *request->generate->mutable_prompt()->mutable_messages() = std::move(messages);
}

void ReadText(JsonFields* fields, ResponsesRequest* request) {
  request->format = {{"type", "text"}};
  const Json* text = fields->Object("text");
  if (text == nullptr) return;
  JsonFields inner(*text, "text.", &request->common.violations);
  if (const Json* format = inner.Object("format"); format != nullptr) {
    v1::Constraint constraint;
    ReadFormat(*format, "text.format", true, fields, &constraint);
    if (constraint.kind_case() != v1::Constraint::KIND_NOT_SET) {
      *request->generate->mutable_constraint() = std::move(constraint);
      request->common.names["constraint"] = "text.format";
    }
    request->format = *format;
  }
  inner.Refuse("verbosity", "not supported: say it in the instructions");
  inner.RefuseOthers();
}

absl::StatusOr<ResponsesRequest> Read(const HttpRequest& http, const CallEnvironment& environment) {
  const absl::StatusOr<Json> json = ParseJsonObject(http.body);
  if (!json.ok()) return json.status();
  ResponsesRequest request;
  JsonFields fields(*json, "", &request.common.violations);
  absl::Status status;
  ReadModel(&fields, environment.engine->config().name, &status);
  if (!status.ok()) return status;
  v1::GenerateRequest* generate = request.generate.get();
  ReadSampling(&fields, generate->mutable_sampling());
  ReadExtensions(&fields, &request.common, generate);
  for (const char* name : {"state_id", "state_blob", "save_state_as"}) {
    fields.Refuse(name, "this route has previous_response_id and store");
  }
  request.common.style.stream = fields.Flag("stream");
  if (fields.Find("store") != nullptr) {
    request.store = fields.Flag("store");
  } else if (environment.key != nullptr) {
    // What OpenAI does by default, as far as the key may.
    request.store = environment.key->Check(Scope::kState, "store").ok();
  }
  if (auto most = fields.Whole("max_output_tokens")) {
    generate->mutable_stop()->set_max_tokens(static_cast<uint32_t>(*most));
  }
  request.common.names["stop.max_tokens"] = "max_output_tokens";
  request.previous = fields.Text("previous_response_id");
  request.instructions = fields.Text("instructions");
  ReadInput(&fields, &request);
  ReadText(&fields, &request);
  if (const Json* metadata = fields.Object("metadata")) request.metadata = *metadata;
  fields.Ignore({"user", "service_tier", "safety_identifier", "prompt_cache_key",
                 "prompt_cache_retention", "parallel_tool_calls", "stream_options"});
  const Json* truncation = fields.Find("truncation");
  if (truncation != nullptr && *truncation != "disabled" && *truncation != "auto") {
    fields.Add("truncation", "not one of \"auto\", \"disabled\"");  // nothing is ever truncated
  }
  const Json* choice = fields.Find("tool_choice");
  if (choice != nullptr && *choice != "none" && *choice != "auto") {
    fields.Add("tool_choice", "this server has no tools");
  }
  fields.Refuse("tools", "this server has no tools");
  fields.Refuse("include", "there is nothing more to include");
  fields.Refuse("background", "not supported: a response is made while its client waits");
  fields.Refuse("reasoning", "this model has no separate reasoning");
  fields.Refuse("conversation", "not supported: use previous_response_id");
  fields.Refuse("prompt", "prompt templates are not supported");
  fields.Refuse("top_logprobs", "not supported here: /v1/chat/completions has them");
  fields.RefuseOthers();
  if (request.previous.has_value() && request.common.violations.empty()) {
    absl::StatusOr<std::string> state = StateOf(environment, *request.previous);
    if (!state.ok()) return state.status();
    generate->mutable_state()->set_state_id(*std::move(state));
  }
  return request;
}

// One response and its events.
class ResponseAnswer {
 public:
  ResponseAnswer(const HandlerContext& context, const HttpRequest& http, ResponsesRequest request)
      : request_(std::move(request)), model_(context.environment.engine->config().name) {
    if (request_.store) request_.generate->mutable_state()->set_save_state_as(id_);
    run_ = std::make_unique<Run>(
        context, http.socket,
        std::vector<Generation>{
            {{.method = "/v1/responses", .chat = true, .violations = &request_.common.violations},
             request_.generate}});
  }

  const ResponsesRequest& request() const { return request_; }

  absl::StatusOr<std::optional<Item>> Next() {
    absl::StatusOr<std::optional<Item>> item = run_->Next();
    if (!item.ok()) return InTermsOf(request_.common.names, item.status());
    return item;
  }
  void KeepFirst(Item item) { first_ = std::move(item); }

  void Add(const Item& item) {
    if (item.frame.has_delta()) text_ += item.frame.delta().text();
    if (item.frame.has_finished()) finished_ = item.frame.finished();
  }

  // The response as it is: in progress until it has finished.
  Json Body(const absl::Status& failure = absl::OkStatus()) const {
    const v1::FinishReason reason = finished_.finish_reason();
    const bool cut = reason == v1::FINISH_REASON_LENGTH || reason == v1::FINISH_REASON_TIME ||
                     reason == v1::FINISH_REASON_DRAINED;
    Json body = {{"id", id_},
                 {"object", "response"},
                 {"created_at", created_},
                 {"status", !failure.ok()                             ? "failed"
                            : reason == v1::FINISH_REASON_UNSPECIFIED ? "in_progress"
                            : cut                                     ? "incomplete"
                                                                      : "completed"},
                 {"error", nullptr},
                 {"incomplete_details", nullptr}};
    if (!failure.ok()) {
      body["error"] = {{"code", "server_error"}, {"message", std::string(failure.message())}};
    }
    if (cut) body["incomplete_details"] = {{"reason", "max_output_tokens"}};
    const bool done = reason != v1::FINISH_REASON_UNSPECIFIED;
    body["instructions"] = OrNull(request_.instructions);
    body["max_output_tokens"] =
        Setting(request_.generate->stop().has_max_tokens(), request_.generate->stop().max_tokens());
    body["model"] = model_;
    body["output"] =
        done ? Json::array({MessageItem(cut ? "incomplete" : "completed")}) : Json::array();
    body["parallel_tool_calls"] = true;
    body["previous_response_id"] = OrNull(request_.previous);
    body["store"] = request_.store;
    body["temperature"] = Setting(request_.generate->sampling().has_temperature(),
                                  request_.generate->sampling().temperature());
    body["text"] = {{"format", request_.format}};
    body["tool_choice"] = "auto";
    body["tools"] = Json::array();
    body["top_p"] =
        Setting(request_.generate->sampling().has_top_p(), request_.generate->sampling().top_p());
    body["truncation"] = "disabled";
    body["metadata"] = request_.metadata;
    body["usage"] = done ? UsageJson() : Json();
    if (done) body["osdn"] = ExtensionJson(finished_);
    return body;
  }

  bool Write(const HttpWriter& writer) {
    writer_ = &writer;
    Json message = MessageItem("in_progress");
    message["content"] = Json::array();
    bool alive = Send("response.created", {{"response", Body()}}) &&
                 Send("response.in_progress", {{"response", Body()}}) &&
                 Send("response.output_item.added", {{"output_index", 0}, {"item", message}}) &&
                 Send("response.content_part.added", InPart({{"part", Part("")}}));
    absl::StatusOr<std::optional<Item>> item = std::optional<Item>(std::move(first_));
    while (alive && item.ok() && item->has_value()) {
      Add(**item);
      const std::string& text = (*item)->frame.delta().text();
      if (!text.empty()) {
        alive = Send("response.output_text.delta",
                     InPart({{"delta", text}, {"logprobs", Json::array()}}));
      }
      if (alive) item = Next();
    }
    if (!alive) return false;
    if (!item.ok()) return Send("response.failed", {{"response", Body(item.status())}});
    const Json body = Body();
    return Send("response.output_text.done",
                InPart({{"text", text_}, {"logprobs", Json::array()}})) &&
           Send("response.content_part.done", InPart({{"part", Part(text_)}})) &&
           Send("response.output_item.done", {{"output_index", 0}, {"item", body["output"][0]}}) &&
           Send(absl::StrCat("response.", body["status"].get<std::string>()), {{"response", body}});
  }

 private:
  template <class Value>
  static Json Setting(bool given, const Value& value) {
    return given ? Json(value) : Json();
  }
  static Json OrNull(const std::optional<std::string>& text) {
    return text.has_value() ? Json(*text) : Json();
  }
  static Json Part(const std::string& text) {
    return {{"type", "output_text"},
            {"text", text},
            {"annotations", Json::array()},
            {"logprobs", Json::array()}};
  }
  Json MessageItem(const char* status) const {
    return {{"id", message_id_},
            {"type", "message"},
            {"status", status},
            {"role", "assistant"},
            {"content", Json::array({Part(text_)})}};
  }
  Json InPart(Json event) const {
    event["item_id"] = message_id_;
    event["output_index"] = 0;
    event["content_index"] = 0;
    return event;
  }
  Json UsageJson() const {
    const v1::Usage& usage = finished_.usage();
    return {{"input_tokens", usage.prompt_tokens()},
            {"input_tokens_details", {{"cached_tokens", usage.cached_tokens()}}},
            {"output_tokens", usage.completion_tokens()},
            {"output_tokens_details", {{"reasoning_tokens", 0}}},
            {"total_tokens", usage.prompt_tokens() + usage.completion_tokens()}};
  }
  bool Send(const std::string& type, const Json& event) {
    Json told = {{"type", type}, {"sequence_number", sequence_++}};
    told.update(event);
    return (*writer_)(absl::StrCat("event: ", type, "\ndata: ", JsonText(told), "\n\n"));
  }

  ResponsesRequest request_;
  const std::string model_;
  const std::string id_ = NewId(kIdPrefix);
  const std::string message_id_ = NewId("msg_");
  const int64_t created_ = absl::ToUnixSeconds(absl::Now());
  std::unique_ptr<Run> run_;  // ends before the request
  Item first_;
  std::string text_;
  v1::Finished finished_;
  int sequence_ = 0;
  const HttpWriter* writer_ = nullptr;
};

}  // namespace

HttpResponse CreateResponse(const HandlerContext& context, const HttpRequest& http) {
  absl::StatusOr<ResponsesRequest> request = Read(http, context.environment);
  if (!request.ok()) return ErrorResponse(request.status());
  const auto answer = std::make_shared<ResponseAnswer>(context, http, *std::move(request));
  absl::StatusOr<std::optional<Item>> item = answer->Next();
  HttpResponse response;
  if (item.ok() && item->has_value() && answer->request().common.style.stream) {
    answer->KeepFirst(**std::move(item));
    response.content_type = kEventStream;
    response.headers.emplace_back("Cache-Control", "no-cache");
    response.stream = [answer](const HttpWriter& writer) { return answer->Write(writer); };
    return response;
  }
  while (item.ok() && item->has_value()) {
    answer->Add(**item);
    item = answer->Next();
  }
  if (!item.ok()) return ErrorResponse(item.status());
  response.body = JsonText(answer->Body());
  return response;
}

HttpResponse DeleteResponse(const HandlerContext& context, const HttpRequest& request) {
  const std::string id(absl::StripPrefix(request.path, "/v1/responses/"));
  const CallEnvironment& environment = context.environment;
  const absl::StatusOr<std::string> state = StateOf(environment, id);
  if (!state.ok()) return ErrorResponse(state.status());
  absl::Status deleted = environment.states->store().Delete(environment.owner(), *state);
  if (!deleted.ok()) return ErrorResponse(deleted);
  HttpResponse response;
  response.body = JsonText({{"id", id}, {"object", "response"}, {"deleted", true}});
  return response;
}

}  // namespace osdn
