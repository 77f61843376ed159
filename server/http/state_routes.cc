// /osdn/v1/states: saved states, as StateService has them.
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "server/http/handlers.h"
#include "server/http/openai_answer.h"
#include "server/http/openai_error.h"
#include "server/http/openai_request.h"
#include "server/http/run.h"
#include "server/status.h"

namespace osdn {
namespace {

constexpr uint32_t kDefaultPage = 100;
constexpr uint32_t kMaxPage = 1000;

HttpResponse JsonResponse(const Json& body) {
  HttpResponse response;
  response.body = JsonText(body);
  return response;
}

HttpResponse StateResponse(const absl::StatusOr<v1::StateInfo>& info) {
  return info.ok() ? JsonResponse(StateJson(*info)) : ErrorResponse(info.status());
}

absl::string_view IdOf(const HttpRequest& request) {
  return absl::StripPrefix(request.path, "/osdn/v1/states/");
}

// Label and life of what is made.
struct Naming {
  std::string label;
  absl::Duration ttl;
};

Naming ReadNaming(JsonFields* fields) {
  Naming naming;
  naming.label = fields->Text("label").value_or("");
  if (absl::Status s = CheckLabel("label", naming.label); !s.ok()) {
    fields->Add("label", absl::StrCat("more than ", kMaxStateLabelBytes, " bytes"));
  }
  naming.ttl = ToTtl(fields->Whole("ttl_seconds").value_or(0));
  return naming;
}

}  // namespace

HttpResponse ListStates(const HandlerContext& context, const HttpRequest& request) {
  uint32_t size = kDefaultPage;
  if (const auto limit = request.query.find("limit"); limit != request.query.end()) {
    if (!absl::SimpleAtoi(limit->second, &size) || size < 1 || size > kMaxPage) {
      const FieldViolation violation{"limit", absl::StrCat("not in [1, ", kMaxPage, "]")};
      return ErrorResponse(InvalidRequestError({violation}));
    }
  }
  const auto after = request.query.find("after");
  absl::StatusOr<std::vector<StateRecord>> found = context.environment.states->store().List(
      context.environment.owner(), after == request.query.end() ? "" : after->second,
      size_t{size} + 1);
  if (!found.ok()) return ErrorResponse(found.status());
  std::vector<StateRecord>& records = *found;
  const bool more = records.size() > size;
  if (more) records.pop_back();
  Json data = Json::array();
  for (const StateRecord& record : records) data.push_back(StateJson(ToStateInfo(record)));
  Json body = {{"object", "list"}, {"data", std::move(data)}, {"has_more", more}};
  if (more) body["last_id"] = records.back().id;
  return JsonResponse(body);
}

HttpResponse GetState(const HandlerContext& context, const HttpRequest& request) {
  const absl::StatusOr<StateRecord> record =
      context.environment.states->store().Find(context.environment.owner(), IdOf(request));
  if (!record.ok()) return ErrorResponse(record.status());
  return JsonResponse(StateJson(ToStateInfo(*record)));
}

HttpResponse DeleteState(const HandlerContext& context, const HttpRequest& request) {
  const absl::Status deleted =
      context.environment.states->store().Delete(context.environment.owner(), IdOf(request));
  if (!deleted.ok()) return ErrorResponse(deleted);
  return JsonResponse({{"state_id", std::string(IdOf(request))}, {"deleted", true}});
}

HttpResponse ForkState(const HandlerContext& context, const HttpRequest& request) {
  absl::string_view id = IdOf(request);
  if (!absl::ConsumeSuffix(&id, "/fork")) {
    return ErrorPage(404, absl::StrCat("no such path: ", request.path));
  }
  const absl::StatusOr<Json> json = ParseJsonObject(request.body.empty() ? "{}" : request.body);
  if (!json.ok()) return ErrorResponse(json.status());
  std::vector<FieldViolation> violations;
  JsonFields fields(*json, "", &violations);
  const Naming naming = ReadNaming(&fields);
  fields.RefuseOthers();
  if (!violations.empty()) return ErrorResponse(InvalidRequestError(violations));
  return StateResponse(context.environment.states->Fork(context.environment.owner(),
                                                        std::string(id), naming.label, naming.ttl));
}

HttpResponse SaveState(const HandlerContext& context, const HttpRequest& request) {
  const absl::StatusOr<Json> json = ParseJsonObject(request.body);
  if (!json.ok()) return ErrorResponse(json.status());
  std::vector<FieldViolation> violations;
  JsonFields fields(*json, "", &violations);
  const Naming naming = ReadNaming(&fields);
  const auto generate = std::make_shared<v1::GenerateRequest>();
  v1::StateOptions* state = generate->mutable_state();
  state->set_save_state_as(naming.label);
  state->set_ttl_seconds(static_cast<uint64_t>(absl::ToInt64Seconds(naming.ttl)));
  if (auto from = fields.Text("state_id")) state->set_state_id(*from);
  const Json* messages = fields.Array("messages");
  if (messages != nullptr) {
    ReadMessages(*messages, "messages", generate->mutable_prompt()->mutable_messages(),
                 &violations);
  } else if (auto prompt = fields.Text("prompt")) {
    generate->mutable_prompt()->set_text(*prompt);
  }
  fields.RefuseOthers();
  Run run(context, request.socket,
          {{{.method = "/osdn/v1/states",
             .prompt_only = true,
             .chat = messages != nullptr,
             .violations = &violations},
            generate}});
  while (true) {
    absl::StatusOr<std::optional<GenerationReader::Item>> item = run.Next();
    if (!item.ok()) return ErrorResponse(InTermsOf({}, item.status()));
    if (!item->has_value()) return ErrorPage(500, "nothing was saved");
    if ((*item)->frame.has_finished()) return StateResponse((*item)->frame.finished().state());
  }
}

}  // namespace osdn
