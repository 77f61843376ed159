#include "server/http/openai_request.h"

#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "google/rpc/error_details.pb.h"
#include "server/http/openai_error.h"
#include "server/status.h"

namespace osdn {
namespace {

constexpr size_t kMaxPrompts = 128;
constexpr size_t kMaxToldElements = 16;

std::string Element(absl::string_view name, size_t index) {
  return absl::StrCat(name, "[", index, "]");
}

void ReadLogitBias(JsonFields* fields, v1::SamplingParams* sampling) {
  const Json* biases = fields->Object("logit_bias");
  if (biases == nullptr) return;
  for (const auto& [token, bias] : biases->items()) {
    uint32_t id = 0;
    if (!absl::SimpleAtoi(token, &id) || !bias.is_number()) {
      return fields->Add("logit_bias", "a map of token ids to numbers is wanted");
    }
    v1::LogitBias* added = sampling->add_logit_bias();
    added->set_token_id(id);
    added->set_bias(bias.get<float>());
  }
}

// A string or an array of strings.
void ReadStopStrings(JsonFields* fields, v1::StopConditions* stop) {
  const Json* value = fields->Find("stop");
  if (value == nullptr) return;
  if (value->is_string()) return stop->add_stop_strings(value->get<std::string>());
  if (!value->is_array()) {
    return fields->Add(
        "stop", absl::StrCat(value->type_name(), ": a string or an array of strings is wanted"));
  }
  size_t told = 0;
  for (size_t i = 0; i < value->size() && told < kMaxToldElements; ++i) {
    const Json& element = (*value)[i];
    if (element.is_string()) {
      stop->add_stop_strings(element.get<std::string>());
    } else {
      fields->Add(Element("stop", i), absl::StrCat(element.type_name(), ": a string is wanted"));
      ++told;
    }
  }
}

// Token ids of an array; false, with a violation, where it has anything else.
bool ReadIds(const Json& array, absl::string_view name, JsonFields* fields,
             google::protobuf::RepeatedField<uint32_t>* ids) {
  ids->Reserve(static_cast<int>(array.size()));
  for (size_t i = 0; i < array.size(); ++i) {
    const Json& id = array[i];
    if (!id.is_number_unsigned() || id.get<uint64_t>() > std::numeric_limits<uint32_t>::max()) {
      fields->Add(Element(name, i), absl::StrCat(JsonText(id).substr(0, 32), " is no token id"));
      return false;
    }
    ids->Add(id.get<uint32_t>());
  }
  return true;
}

void ReadSeed(JsonFields* fields, v1::SamplingParams* sampling) {
  const Json* seed = fields->Find("seed");
  if (seed == nullptr) return;
  if (!seed->is_number_integer()) {
    return fields->Add("seed", absl::StrCat(seed->type_name(), ": a whole number is wanted"));
  }
  // Negative ones too, as OpenAI's: any 64 bits.
  sampling->set_seed(seed->is_number_unsigned() ? seed->get<uint64_t>()
                                                : static_cast<uint64_t>(seed->get<int64_t>()));
}

// Leaves the request without StateOptions where it asks nothing of them: they need a scope.
void ReadState(JsonFields* fields, v1::GenerateRequest* generate) {
  v1::StateOptions given;
  v1::StateOptions* state = &given;
  if (auto id = fields->Text("state_id")) state->set_state_id(*id);
  if (auto blob = fields->Text("state_blob")) {
    std::string bytes;
    if (state->has_state_id()) {
      fields->Add("state_blob", "beside state_id: one of them says where to start");
    } else if (absl::Base64Unescape(*blob, &bytes)) {
      state->set_state_blob(std::move(bytes));
    } else {
      fields->Add("state_blob", "not base64");
    }
  }
  if (auto label = fields->Text("save_state_as")) state->set_save_state_as(*label);
  state->set_return_state(fields->Flag("return_state"));
  if (auto ttl = fields->Whole("state_ttl_seconds")) state->set_ttl_seconds(*ttl);
  state->set_replace(fields->Flag("replace_state"));
  if (given.ByteSizeLong() > 0) *generate->mutable_state() = std::move(given);
}

void ReadScheduling(JsonFields* fields, v1::SchedulingOptions* scheduling) {
  if (auto time = fields->Whole("max_time_ms")) {
    scheduling->set_max_time_ms(static_cast<uint32_t>(*time));
  }
  const std::optional<std::string> priority = fields->Text("priority");
  if (!priority.has_value()) return;
  if (*priority == "high") return scheduling->set_priority(v1::PRIORITY_HIGH);
  if (*priority == "normal") return scheduling->set_priority(v1::PRIORITY_NORMAL);
  if (*priority == "low") return scheduling->set_priority(v1::PRIORITY_LOW);
  fields->Add("priority", "not one of \"high\", \"normal\", \"low\"");
}

// max_tokens under whichever of its names is given.
void ReadMaxTokens(std::initializer_list<const char*> names, JsonFields* fields,
                   OpenAiRequest* request, v1::StopConditions* stop) {
  for (const char* name : names) {
    const std::optional<uint64_t> value = fields->Whole(name);
    if (!value.has_value()) continue;
    if (stop->has_max_tokens() && stop->max_tokens() != *value) {
      fields->Add(name, absl::StrCat(*value, ", but max_tokens is ", stop->max_tokens()));
    }
    stop->set_max_tokens(static_cast<uint32_t>(*value));
    request->names["stop.max_tokens"] = name;
  }
}

void ReadStream(JsonFields* fields, AnswerStyle* style) {
  style->stream = fields->Flag("stream");
  style->return_token_ids = fields->Flag("return_token_ids");
  const Json* options = fields->Object("stream_options");
  if (options == nullptr) return;
  if (!style->stream) fields->Add("stream_options", "set, but stream is not true");
  std::vector<FieldViolation> violations;
  JsonFields inner(*options, "stream_options.", &violations);
  style->include_usage = inner.Flag("include_usage");
  inner.Ignore({"include_obfuscation"});
  inner.RefuseOthers();
  for (const FieldViolation& violation : violations) {
    fields->Add(violation.field, violation.description);
  }
}

void IgnoreHarmless(JsonFields* fields) {
  fields->Ignore({"user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key",
                  "prompt_cache_retention", "parallel_tool_calls", "store"});
}

constexpr char kNoTools[] = "this server has no tools";
constexpr char kTextOnly[] = "this server reads and writes text only";

void RefuseChatFields(JsonFields* fields) {
  fields->Refuse("tools", kNoTools);
  fields->Refuse("functions", kNoTools);
  for (const char* name : {"tool_choice", "function_call"}) {
    const Json* choice = fields->Find(name);
    if (choice != nullptr && *choice != "none" && *choice != "auto") fields->Add(name, kNoTools);
  }
  const Json* modalities = fields->Find("modalities");
  if (modalities != nullptr && *modalities != Json::array({"text"})) {
    fields->Add("modalities", kTextOnly);
  }
  fields->Refuse("audio", kTextOnly);
  fields->Refuse("prediction", "predicted outputs are not supported");
  fields->Refuse("web_search_options", kNoTools);
  fields->Refuse("reasoning_effort", "this model has no separate reasoning");
  fields->Refuse("verbosity", "not supported: say it in a message");
}

void ReadConstraint(JsonFields* fields, OpenAiRequest* request, v1::GenerateRequest* generate) {
  std::vector<std::string> given;
  if (const Json* format = fields->Object("response_format"); format != nullptr) {
    v1::Constraint constraint;
    ReadFormat(*format, "response_format", false, fields, &constraint);
    if (constraint.kind_case() != v1::Constraint::KIND_NOT_SET) {
      *generate->mutable_constraint() = std::move(constraint);
      given.emplace_back("response_format");
    }
  }
  if (auto regex = fields->Text("regex")) {
    generate->mutable_constraint()->set_regex(*regex);
    given.emplace_back("regex");
  }
  if (auto gbnf = fields->Text("gbnf")) {
    generate->mutable_constraint()->set_gbnf(*gbnf);
    given.emplace_back("gbnf");
  }
  if (given.empty()) return;
  request->names["constraint"] = given.back();
  if (given.size() > 1) {
    fields->Add(given.back(), absl::StrCat("beside ", given.front(), ": one constraint at most"));
  }
}

void ReadPrompts(JsonFields* fields, const v1::GenerateRequest& common, OpenAiRequest* request) {
  const auto add = [&]() {
    request->prompts.push_back(std::make_shared<v1::GenerateRequest>(common));
    return request->prompts.back()->mutable_prompt();
  };
  const Json* prompt = fields->Find("prompt");
  if (prompt == nullptr) {
    add();
    request->prompts.back()->clear_prompt();
    return;
  }
  if (prompt->is_string()) return add()->set_text(prompt->get<std::string>());
  constexpr char kWanted[] = "a string, an array of token ids, or an array of either is wanted";
  if (!prompt->is_array() || prompt->empty()) {
    return fields->Add(
        "prompt", absl::StrCat(prompt->is_array() ? "empty" : prompt->type_name(), ": ", kWanted));
  }
  if (prompt->front().is_number()) {
    ReadIds(*prompt, "prompt", fields, add()->mutable_tokens()->mutable_ids());
    return;
  }
  if (prompt->size() > kMaxPrompts) {
    return fields->Add("prompt", absl::StrCat(prompt->size(), " prompts: at most ", kMaxPrompts));
  }
  for (size_t i = 0; i < prompt->size(); ++i) {
    const Json& element = (*prompt)[i];
    const std::string name = Element("prompt", i);
    if (element.is_string()) {
      add()->set_text(element.get<std::string>());
    } else if (element.is_array()) {
      if (!ReadIds(element, name, fields, add()->mutable_tokens()->mutable_ids())) return;
    } else {
      return fields->Add(name, absl::StrCat(element.type_name(), ": ", kWanted));
    }
  }
}

void ReadCommon(JsonFields* fields, OpenAiRequest* request, v1::GenerateRequest* generate) {
  ReadSampling(fields, generate->mutable_sampling());
  ReadExtensions(fields, request, generate);
  ReadConstraint(fields, request, generate);
  ReadStream(fields, &request->style);
  if (auto n = fields->Whole("n", std::numeric_limits<int32_t>::max())) {
    generate->mutable_sampling()->set_n(static_cast<uint32_t>(*n));
    request->style.choices = static_cast<uint32_t>(*n);
  }
  IgnoreHarmless(fields);
}

void ReadCompletionLogprobs(JsonFields* fields, OpenAiRequest* request, v1::OutputOptions* output) {
  output->set_echo(fields->Flag("echo"));
  // true, though OpenAI wants a number, is what some clients send for 0.
  const Json* logprobs = fields->Find("logprobs");
  if (logprobs == nullptr) return;
  if (logprobs->is_boolean()) {
    request->style.logprobs = logprobs->get<bool>();
  } else if (auto top = fields->Whole("logprobs")) {
    request->style.logprobs = true;
    output->set_top_logprobs(static_cast<uint32_t>(*top));
    request->names["output.top_logprobs"] = "logprobs";
  }
  output->set_logprobs(request->style.logprobs);
}

// A message's content: a string, or parts of type text.
std::string ReadContent(const Json& content, absl::string_view name, JsonFields* fields) {
  if (content.is_string()) return content.get<std::string>();
  std::string text;
  if (!content.is_array()) {
    fields->Add("content", absl::StrCat(content.type_name(), ": a string or parts are wanted"));
    return text;
  }
  for (size_t i = 0; i < content.size(); ++i) {
    const Json& part = content[i];
    const std::string place = Element(name, i);
    const auto type = part.is_object() ? part.find("type") : part.end();
    const bool is_text = part.is_object() && type != part.end() &&
                         (*type == "text" || *type == "input_text" || *type == "output_text");
    const auto inner = part.is_object() ? part.find("text") : part.end();
    if (!is_text || inner == part.end() || !inner->is_string()) {
      fields->Add(place, absl::StrCat("not {\"type\": \"text\", \"text\": ...}: ", kTextOnly));
      return text;
    }
    absl::StrAppend(&text, inner->get<std::string>());
  }
  return text;
}

// Where a prefix is left out the last word remains: "sampling.top_p" -> "top_p".
std::string NameOf(const std::map<std::string, std::string>& names, absl::string_view field) {
  const size_t bracket = std::min(field.find('['), field.size());
  const auto it = names.find(std::string(field.substr(0, bracket)));
  if (it != names.end()) return absl::StrCat(it->second, field.substr(bracket));
  if (absl::StartsWith(field, "prompt.")) return "prompt";
  for (const char* prefix :
       {"sampling.", "stop.", "output.", "cache.", "state.", "scheduling.", "constraint."}) {
    if (absl::StartsWith(field, prefix)) return std::string(field.substr(strlen(prefix)));
  }
  return std::string(field);
}

}  // namespace

void ReadModel(JsonFields* fields, absl::string_view model, absl::Status* status) {
  const std::optional<std::string> asked = fields->Text("model");
  if (asked.has_value() && *asked != model) *status = ModelNotFoundError(*asked, model);
}

void ReadSampling(JsonFields* fields, v1::SamplingParams* sampling) {
  const auto read = [fields](const char* name, auto set) {
    if (auto value = fields->Number(name)) set(static_cast<float>(*value));
  };
  read("temperature", [&](float v) { sampling->set_temperature(v); });
  read("top_p", [&](float v) { sampling->set_top_p(v); });
  read("min_p", [&](float v) { sampling->set_min_p(v); });
  read("typical_p", [&](float v) { sampling->set_typical_p(v); });
  read("repetition_penalty", [&](float v) { sampling->set_repetition_penalty(v); });
  read("presence_penalty", [&](float v) { sampling->set_presence_penalty(v); });
  read("frequency_penalty", [&](float v) { sampling->set_frequency_penalty(v); });
  if (auto v = fields->Whole("top_k")) sampling->set_top_k(static_cast<uint32_t>(*v));
  if (auto v = fields->Whole("penalty_window")) {
    sampling->set_penalty_window(static_cast<uint32_t>(*v));
  }
  ReadSeed(fields, sampling);
  ReadLogitBias(fields, sampling);
}

void ReadExtensions(JsonFields* fields, OpenAiRequest* request, v1::GenerateRequest* generate) {
  v1::StopConditions* stop = generate->mutable_stop();
  if (auto v = fields->Whole("min_tokens")) stop->set_min_tokens(static_cast<uint32_t>(*v));
  stop->set_ignore_eos(fields->Flag("ignore_eos"));
  if (const Json* ids = fields->Array("stop_token_ids"); ids != nullptr) {
    ReadIds(*ids, "stop_token_ids", fields, stop->mutable_stop_token_ids());
  }
  ReadStopStrings(fields, stop);
  if (auto salt = fields->Text("cache_salt")) generate->mutable_cache()->set_salt(*salt);
  generate->mutable_cache()->set_skip(fields->Flag("cache_skip"));
  ReadState(fields, generate);
  ReadScheduling(fields, generate->mutable_scheduling());
  request->names.insert({{"stop.stop_strings", "stop"},
                         {"cache.salt", "cache_salt"},
                         {"cache.skip", "cache_skip"},
                         {"state.ttl_seconds", "state_ttl_seconds"},
                         {"state.replace", "replace_state"}});
}

void ReadFormat(const Json& value, absl::string_view name, bool flat, JsonFields* fields,
                v1::Constraint* constraint) {
  const auto type = value.find("type");
  if (type != value.end() && *type == "text") return;
  if (type != value.end() && *type == "json_object") {
    return constraint->set_json_schema(R"({"type":"object"})");
  }
  if (type == value.end() || *type != "json_schema") {
    return fields->Add(absl::StrCat(name, ".type"),
                       "one of \"text\", \"json_object\", \"json_schema\" is wanted");
  }
  const auto outer = flat ? value.end() : value.find("json_schema");
  if (!flat && (outer == value.end() || !outer->is_object())) {
    return fields->Add(absl::StrCat(name, ".json_schema"), "an object with a schema is wanted");
  }
  const Json& holder = flat ? value : *outer;
  const auto schema = holder.find("schema");
  if (schema == holder.end()) {
    return fields->Add(absl::StrCat(name, flat ? ".schema" : ".json_schema.schema"), "missing");
  }
  constraint->set_json_schema(JsonText(*schema));
}

void ReadMessages(const Json& messages, absl::string_view name, v1::Messages* out,
                  std::vector<FieldViolation>* violations) {
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string place = Element(name, i);
    if (!messages[i].is_object()) {
      violations->push_back({place, "an object with role and content is wanted"});
      continue;
    }
    JsonFields fields(messages[i], absl::StrCat(place, "."), violations);
    v1::Message* message = out->add_messages();
    const std::optional<std::string> role = fields.Text("role");
    // OpenAI's newer word for the same thing.
    message->set_role(role == "developer" ? "system" : role.value_or(""));
    if (!role.has_value()) fields.Add("role", "missing");
    if (const Json* content = fields.Find("content"); content != nullptr) {
      message->set_content(ReadContent(*content, "content", &fields));
    } else {
      fields.Add("content", "missing");
    }
    // Of an answer that is sent back as it came.
    fields.Ignore({"type", "id", "status", "phase", "annotations", "refusal", "osdn"});
    fields.Refuse("name", "the chat template has no names");
    fields.Refuse("tool_calls", kNoTools);
    fields.Refuse("function_call", kNoTools);
    fields.Refuse("audio", kTextOnly);
    fields.RefuseOthers();
  }
}

absl::StatusOr<OpenAiRequest> ReadCompletionRequest(absl::string_view body,
                                                    absl::string_view model) {
  const absl::StatusOr<Json> json = ParseJsonObject(body);
  if (!json.ok()) return json.status();
  OpenAiRequest request;
  JsonFields fields(*json, "", &request.violations);
  absl::Status wrong_model;
  ReadModel(&fields, model, &wrong_model);
  if (!wrong_model.ok()) return wrong_model;

  v1::GenerateRequest common;
  ReadCommon(&fields, &request, &common);
  ReadMaxTokens({"max_tokens"}, &fields, &request, common.mutable_stop());
  ReadCompletionLogprobs(&fields, &request, common.mutable_output());
  if (common.output().echo() && common.output().logprobs()) {
    request.style.scores_prompt = true;
    if (request.style.stream) fields.Add("echo", "with logprobs is not streamed");
    if (common.has_state())
      fields.Add("echo", "with logprobs starts from no state and leaves none");
    if (common.stop().has_max_tokens() && common.stop().max_tokens() == 0) {
      request.style.prompt_only = true;
      common.mutable_stop()->clear_max_tokens();
    }
  }
  fields.Refuse("suffix", "this model writes on, it does not fill in");
  const std::optional<uint64_t> best_of = fields.Whole("best_of");
  if (best_of.has_value() && *best_of > request.style.choices) {
    fields.Add("best_of", "more than n is not supported: ask for n choices and take the best");
  }
  ReadPrompts(&fields, common, &request);
  fields.RefuseOthers();
  return request;
}

absl::StatusOr<OpenAiRequest> ReadChatRequest(absl::string_view body, absl::string_view model) {
  const absl::StatusOr<Json> json = ParseJsonObject(body);
  if (!json.ok()) return json.status();
  OpenAiRequest request;
  request.style.chat = true;
  JsonFields fields(*json, "", &request.violations);
  absl::Status wrong_model;
  ReadModel(&fields, model, &wrong_model);
  if (!wrong_model.ok()) return wrong_model;

  auto generate = std::make_shared<v1::GenerateRequest>();
  ReadCommon(&fields, &request, generate.get());
  ReadMaxTokens({"max_tokens", "max_completion_tokens"}, &fields, &request,
                generate->mutable_stop());
  request.style.logprobs = fields.Flag("logprobs");
  generate->mutable_output()->set_logprobs(request.style.logprobs);
  if (auto top = fields.Whole("top_logprobs")) {
    generate->mutable_output()->set_top_logprobs(static_cast<uint32_t>(*top));
  }
  RefuseChatFields(&fields);
  const Json* messages = fields.Array("messages");
  if (messages != nullptr) {
    v1::Messages read;
    ReadMessages(*messages, "messages", &read, &request.violations);
    const bool goes_on =
        read.messages().empty() && generate->state().from_case() != v1::StateOptions::FROM_NOT_SET;
    if (!goes_on) *generate->mutable_prompt()->mutable_messages() = std::move(read);
  }
  fields.RefuseOthers();
  request.prompts.push_back(std::move(generate));
  return request;
}

absl::Status InTermsOf(const std::map<std::string, std::string>& names,
                       const absl::Status& status) {
  const std::vector<FieldViolation> found = ViolationsOf(status);
  if (found.empty()) return status;
  std::vector<FieldViolation> violations;
  violations.reserve(found.size());
  for (const FieldViolation& violation : found) {
    violations.push_back({NameOf(names, violation.field), violation.description});
  }
  return InvalidRequestError(violations);
}

}  // namespace osdn
