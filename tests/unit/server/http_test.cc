// The HTTP side without sockets: JSON to osdn.v1 and errors back.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "server/http/chat_page.h"
#include "server/http/json_fields.h"
#include "server/http/openai_error.h"
#include "server/http/openai_request.h"
#include "server/status.h"

namespace osdn {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Key;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;

std::map<std::string, std::string> Violations(const OpenAiRequest& request) {
  std::map<std::string, std::string> result;
  for (const FieldViolation& violation : request.violations) {
    result[violation.field] = violation.description;
  }
  return result;
}

OpenAiRequest Completion(const std::string& body) {
  absl::StatusOr<OpenAiRequest> request = ReadCompletionRequest(body, "m");
  EXPECT_TRUE(request.ok()) << request.status();
  return request.ok() ? *std::move(request) : OpenAiRequest();
}

OpenAiRequest Chat(const std::string& body) {
  absl::StatusOr<OpenAiRequest> request = ReadChatRequest(body, "m");
  EXPECT_TRUE(request.ok()) << request.status();
  return request.ok() ? *std::move(request) : OpenAiRequest();
}

TEST(JsonTest, TakesAnObjectInItsOrder) {
  const absl::StatusOr<Json> json = ParseJsonObject(R"({"z": 1, "a": {"y": [2]}})");
  ASSERT_TRUE(json.ok()) << json.status();
  EXPECT_EQ(JsonText(*json), R"({"z":1,"a":{"y":[2]}})");
}

TEST(JsonTest, SaysWhatIsNoObject) {
  const auto message = [](const std::string& text) {
    return std::string(ParseJsonObject(text).status().message());
  };
  EXPECT_THAT(message(""), HasSubstr("not JSON"));
  EXPECT_THAT(message("{} {}"), HasSubstr("not JSON"));
  EXPECT_THAT(message("[]"), HasSubstr("not an object: array"));
  EXPECT_THAT(message("{\"a\":\"\xc3\x28\"}"), HasSubstr("UTF-8"));
  EXPECT_THAT(message("{\"a\":" + std::string(100'000, '[')), HasSubstr("64 deep"));
}

TEST(JsonTest, DepthAndMembersEndExactlyAtTheirLimits) {
  const auto nested = [](int depth) {
    return absl::StrCat("{\"a\":", std::string(depth - 1, '['), std::string(depth - 1, ']'), "}");
  };
  EXPECT_TRUE(ParseJsonObject(nested(kMaxJsonDepth)).ok());
  EXPECT_FALSE(ParseJsonObject(nested(kMaxJsonDepth + 1)).ok());
  const auto wide = [](size_t members) {
    std::string text = "{";
    for (size_t i = 0; i < members; ++i) absl::StrAppend(&text, i == 0 ? "" : ",", "\"", i, "\":1");
    return text + "}";
  };
  EXPECT_TRUE(ParseJsonObject(wide(kMaxJsonMembers)).ok());
  EXPECT_FALSE(ParseJsonObject(wide(kMaxJsonMembers + 1)).ok());
}

TEST(CompletionRequestTest, EveryFieldArrives) {
  const OpenAiRequest request = Completion(R"({
      "model": "m", "prompt": "a", "temperature": 0.5, "top_p": 0.25, "top_k": 3, "min_p": 0.125,
      "typical_p": 0.75, "repetition_penalty": 1.5, "presence_penalty": 1, "frequency_penalty": -1,
      "penalty_window": 9, "logit_bias": {"7": -100}, "seed": -1, "n": 2, "max_tokens": 5,
      "min_tokens": 1, "stop": ["x", "y"], "stop_token_ids": [4], "ignore_eos": true,
      "logprobs": 4, "echo": false, "stream": true, "stream_options": {"include_usage": true},
      "cache_salt": "s", "cache_skip": true, "state_id": "st-1", "save_state_as": "",
      "return_state": true, "state_ttl_seconds": 60, "priority": "low", "max_time_ms": 10,
      "regex": "a+", "user": "me", "return_token_ids": true})");
  EXPECT_THAT(Violations(request), IsEmpty());
  ASSERT_EQ(request.prompts.size(), 1U);
  const v1::GenerateRequest& generate = *request.prompts[0];
  const v1::SamplingParams& sampling = generate.sampling();
  EXPECT_EQ(generate.prompt().text(), "a");
  EXPECT_EQ(sampling.temperature(), 0.5F);
  EXPECT_EQ(sampling.top_p(), 0.25F);
  EXPECT_EQ(sampling.top_k(), 3U);
  EXPECT_EQ(sampling.min_p(), 0.125F);
  EXPECT_EQ(sampling.typical_p(), 0.75F);
  EXPECT_EQ(sampling.repetition_penalty(), 1.5F);
  EXPECT_EQ(sampling.presence_penalty(), 1.0F);
  EXPECT_EQ(sampling.frequency_penalty(), -1.0F);
  EXPECT_EQ(sampling.penalty_window(), 9U);
  ASSERT_EQ(sampling.logit_bias_size(), 1);
  EXPECT_EQ(sampling.logit_bias(0).token_id(), 7U);
  EXPECT_EQ(sampling.seed(), ~uint64_t{0});
  EXPECT_EQ(sampling.n(), 2U);
  EXPECT_EQ(generate.stop().max_tokens(), 5U);
  EXPECT_EQ(generate.stop().min_tokens(), 1U);
  EXPECT_THAT(generate.stop().stop_strings(), ElementsAre("x", "y"));
  EXPECT_THAT(generate.stop().stop_token_ids(), ElementsAre(4U));
  EXPECT_TRUE(generate.stop().ignore_eos());
  EXPECT_TRUE(generate.output().logprobs());
  EXPECT_EQ(generate.output().top_logprobs(), 4U);
  EXPECT_EQ(generate.cache().salt(), "s");
  EXPECT_TRUE(generate.cache().skip());
  EXPECT_EQ(generate.state().state_id(), "st-1");
  EXPECT_TRUE(generate.state().has_save_state_as());
  EXPECT_TRUE(generate.state().return_state());
  EXPECT_EQ(generate.state().ttl_seconds(), 60U);
  EXPECT_EQ(generate.scheduling().priority(), v1::PRIORITY_LOW);
  EXPECT_EQ(generate.scheduling().max_time_ms(), 10U);
  EXPECT_EQ(generate.constraint().regex(), "a+");
  EXPECT_TRUE(request.style.stream && request.style.include_usage && request.style.logprobs &&
              request.style.return_token_ids);
  EXPECT_EQ(request.style.choices, 2U);
}

TEST(CompletionRequestTest, NullIsAsGoodAsMissing) {
  const OpenAiRequest request = Completion(
      R"({"prompt": [1, 2], "temperature": null, "stop": null, "logprobs": null, "suffix": null,
          "stream_options": null, "response_format": null, "best_of": null})");
  EXPECT_THAT(Violations(request), IsEmpty());
  EXPECT_FALSE(request.prompts[0]->sampling().has_temperature());
  EXPECT_THAT(request.prompts[0]->prompt().tokens().ids(), ElementsAre(1U, 2U));
}

TEST(CompletionRequestTest, EachBadFieldIsNamed) {
  const OpenAiRequest request = Completion(R"({
      "prompt": {"a": 1}, "temperature": "hot", "top_k": 1.5, "seed": "x", "n": -1,
      "logit_bias": {"seven": 1}, "stop": ["a", 1], "stream": "yes", "stop_token_ids": [1, -1],
      "state_id": "a", "state_blob": "AA==", "priority": "urgent", "suffix": "s", "best_of": 5,
      "stream_options": {"bogus": 1}, "bogus": 1, "gbnf": 7,
      "response_format": {"type": "yaml"}})");
  const auto violations = Violations(request);
  for (const char* field :
       {"prompt", "temperature", "top_k", "seed", "n", "logit_bias", "stop[1]", "stream",
        "stop_token_ids[1]", "state_blob", "priority", "suffix", "best_of", "stream_options",
        "stream_options.bogus", "bogus", "gbnf", "response_format.type"}) {
    EXPECT_THAT(violations, Contains(Key(std::string(field))));
  }
  EXPECT_EQ(violations.size(), 18U);
}

TEST(CompletionRequestTest, OneConstraintAtMost) {
  EXPECT_THAT(Violations(Completion(R"({"prompt": "a", "regex": "a", "gbnf": "root ::= \"a\""})")),
              ElementsAre(Pair("gbnf", HasSubstr("beside regex"))));
}

TEST(CompletionRequestTest, AnotherModelIsNotFound) {
  const absl::Status status =
      ReadCompletionRequest(R"({"model": "gpt", "prompt": "a"})", "m").status();
  EXPECT_EQ(HttpCode(status), 404);
  const Json error = Json::parse(ErrorBody(status)).at("error");
  EXPECT_EQ(error.at("code"), "model_not_found");
  EXPECT_EQ(error.at("param"), "model");
}

TEST(ChatRequestTest, MessagesOfEveryKind) {
  const OpenAiRequest request = Chat(R"({"messages": [
      {"role": "developer", "content": "be brief"},
      {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
      {"role": "assistant", "content": "c", "refusal": null, "tool_calls": []}],
      "max_completion_tokens": 3, "tool_choice": "none", "tools": [], "modalities": ["text"],
      "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema":
          {"type": "object", "properties": {"z": {"type": "null"}, "a": {"type": "null"}}}}}})");
  EXPECT_THAT(Violations(request), IsEmpty());
  const v1::GenerateRequest& generate = *request.prompts.at(0);
  const auto& messages = generate.prompt().messages().messages();
  ASSERT_EQ(messages.size(), 3);
  EXPECT_EQ(messages[0].role(), "system");
  EXPECT_EQ(messages[1].content(), "ab");
  EXPECT_EQ(generate.stop().max_tokens(), 3U);
  EXPECT_THAT(generate.constraint().json_schema(), HasSubstr(R"({"z":{"type":"null"},"a")"));
}

TEST(ChatRequestTest, WhatTheServerCannotHeedIsNamed) {
  const OpenAiRequest request = Chat(R"({"messages": [
      {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
      {"role": "assistant", "tool_calls": [{"id": "1"}]}, 7, {"content": "x", "name": "Bob"}],
      "tools": [{"type": "function"}], "tool_choice": "required", "audio": {"voice": "x"},
      "reasoning_effort": "high", "max_tokens": 3, "max_completion_tokens": 4})");
  EXPECT_THAT(Violations(request),
              UnorderedElementsAre(
                  Pair("messages[0].content[0]", HasSubstr("text only")),
                  Pair("messages[1].tool_calls", HasSubstr("no tools")),
                  Pair("messages[1].content", "missing"), Pair("messages[2]", HasSubstr("object")),
                  Pair("messages[3].role", "missing"), Pair("messages[3].name", HasSubstr("names")),
                  Pair("tools", HasSubstr("no tools")), Pair("tool_choice", HasSubstr("no tools")),
                  Pair("audio", HasSubstr("text only")), Pair("reasoning_effort", HasSubstr("")),
                  Pair("max_completion_tokens", HasSubstr("max_tokens is 3"))));
}

TEST(ErrorTest, ViolationsAreToldInTheFieldsOfTheRequest) {
  const OpenAiRequest request =
      Chat(R"({"messages": [], "max_completion_tokens": 1, "regex": "("})");
  const absl::Status status = InTermsOf(
      request.names, InvalidRequestError({FieldViolation{"sampling.top_p", "2 is outside"},
                                          FieldViolation{"stop.max_tokens", "0 is outside"},
                                          FieldViolation{"stop.stop_strings[2]", "empty"},
                                          FieldViolation{"cache.salt", "too long"},
                                          FieldViolation{"prompt.tokens.ids[3]", "not known"},
                                          FieldViolation{"constraint", "unbalanced"}}));
  const Json error = Json::parse(ErrorBody(status)).at("error");
  std::string fields;
  for (const Json& violation : error.at("violations")) {
    absl::StrAppend(&fields, violation.at("field").get<std::string>(), " ");
  }
  EXPECT_EQ(fields, "top_p max_completion_tokens stop[2] cache_salt prompt regex ");
  EXPECT_EQ(error.at("param"), "top_p");
  EXPECT_EQ(error.at("type"), "invalid_request_error");
}

TEST(ErrorTest, CodesAndWhenToComeBack) {
  const HttpResponse full =
      ErrorResponse(WithRetryDelay(absl::ResourceExhaustedError("full"), absl::Milliseconds(1500)));
  EXPECT_EQ(full.status, 429);
  EXPECT_THAT(full.headers, ElementsAre(Pair("Retry-After", "2")));
  const HttpResponse quota = ErrorResponse(absl::ResourceExhaustedError("over the quota"));
  EXPECT_THAT(quota.headers, ElementsAre(Pair("x-should-retry", "false")));
  EXPECT_EQ(ErrorResponse(absl::UnavailableError("loading")).status, 503);
  // Clients repeat a 409 by themselves, and it would fail again.
  EXPECT_EQ(HttpCode(absl::FailedPreconditionError("another model")), 400);
  EXPECT_EQ(HttpCode(absl::InternalError("x")), 500);
}

TEST(ErrorTest, IsJsonWhateverTheMessageHolds) {
  const HttpResponse response = ErrorPage(404, "no such path: /\xff\"\n");
  EXPECT_TRUE(Json::accept(response.body)) << response.body;
}

TEST(ChatPageTest, ItsPolicyAllowsItsOwnScriptAndNothingElse) {
  const std::string page = ChatPage();
  EXPECT_THAT(page, HasSubstr("<!DOCTYPE html>"));
  EXPECT_THAT(page, HasSubstr("</html>"));
  EXPECT_THAT(ChatPagePolicy(), HasSubstr("default-src 'none'; script-src 'sha256-"));
}

}  // namespace
}  // namespace osdn
