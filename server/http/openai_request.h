// OpenAI's requests in terms of osdn.v1.
#ifndef OSDN_SERVER_HTTP_OPENAI_REQUEST_H_
#define OSDN_SERVER_HTTP_OPENAI_REQUEST_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "osdn/v1/inference.pb.h"
#include "server/http/json_fields.h"

namespace osdn {

// How the answer is to be told.
struct AnswerStyle {
  bool chat = false;
  bool stream = false;
  bool include_usage = false;
  bool return_token_ids = false;
  bool logprobs = false;
  bool scores_prompt = false;  // echo with logprobs
  bool prompt_only = false;    // and nothing after it: max_tokens 0
  uint32_t choices = 1;        // of each prompt
};

struct OpenAiRequest {
  AnswerStyle style;
  std::vector<std::shared_ptr<v1::GenerateRequest>> prompts;  // one for a chat
  // What the fields of osdn.v1 that this request could have are called here, where their last word
  // is not what they are called.
  std::map<std::string, std::string> names;
  // What is wrong with it, in the HTTP request's words. What is left can still be checked.
  std::vector<FieldViolation> violations;
};

// INVALID_ARGUMENT for what is no JSON object; NOT_FOUND for a model that is not `model`.
absl::StatusOr<OpenAiRequest> ReadCompletionRequest(absl::string_view body,
                                                    absl::string_view model);
absl::StatusOr<OpenAiRequest> ReadChatRequest(absl::string_view body, absl::string_view model);

// The parts of the above that /v1/responses has too.
void ReadModel(JsonFields* fields, absl::string_view model, absl::Status* status);
void ReadSampling(JsonFields* fields, v1::SamplingParams* sampling);
void ReadExtensions(JsonFields* fields, OpenAiRequest* request, v1::GenerateRequest* generate);
// `value`: of response_format, or of text.format with `flat`, where name and schema stand beside
// type.
void ReadFormat(const Json& value, absl::string_view name, bool flat, JsonFields* fields,
                v1::Constraint* constraint);
void ReadMessages(const Json& messages, absl::string_view name, v1::Messages* out,
                  std::vector<FieldViolation>* violations);

// Violations of `status` told of the fields of the HTTP request.
absl::Status InTermsOf(const std::map<std::string, std::string>& names, const absl::Status& status);

}  // namespace osdn

#endif  // OSDN_SERVER_HTTP_OPENAI_REQUEST_H_
