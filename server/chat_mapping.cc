#include "server/chat_mapping.h"

#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "engine/chat_template.h"
#include "server/request_mapping.h"
#include "server/status.h"

namespace osdn {

v1::GenerateRequest ToGenerateRequest(const v1::ChatRequest& chat) {
  v1::GenerateRequest request;
  const bool goes_on =
      chat.messages().empty() && chat.state().from_case() != v1::StateOptions::FROM_NOT_SET;
  if (!goes_on) {
    *request.mutable_prompt()->mutable_messages()->mutable_messages() = chat.messages();
  }
  if (chat.has_sampling()) *request.mutable_sampling() = chat.sampling();
  if (chat.has_stop()) *request.mutable_stop() = chat.stop();
  if (chat.has_output()) *request.mutable_output() = chat.output();
  if (chat.has_cache()) *request.mutable_cache() = chat.cache();
  if (chat.has_state()) *request.mutable_state() = chat.state();
  if (chat.has_scheduling()) *request.mutable_scheduling() = chat.scheduling();
  if (chat.has_constraint()) *request.mutable_constraint() = chat.constraint();
  return request;
}

void TellOfMessages(std::vector<FieldViolation>* violations) {
  for (FieldViolation& violation : *violations) {
    if (absl::StartsWith(violation.field, "prompt")) violation.field = "messages";
  }
}

absl::Status RenderMessages(const CallEnvironment& environment,
                            const v1::RenderChatRequest& request,
                            v1::RenderChatResponse* response) {
  const ModelConfig& config = environment.engine->config();
  RequestContext context;
  context.config = &config;
  context.tokenizer = environment.engine->tokenizer();
  context.max_tokens_default = environment.max_tokens_default;
  context.max_tokens_limit = environment.max_tokens_limit;
  v1::GenerateRequest generate;
  *generate.mutable_prompt()->mutable_messages()->mutable_messages() = request.messages();
  if (!request.state_id().empty()) {
    if (environment.key != nullptr) {
      absl::Status s = environment.key->Check(Scope::kState, "state_id");
      if (!s.ok()) return s;
    }
    generate.mutable_state()->set_state_id(request.state_id());
    auto resume = environment.states->Load(environment.owner(), generate.state());
    if (!resume.ok()) return resume.status();
    context.resume = *std::move(resume);
  }
  std::vector<FieldViolation> violations;
  const GenerationRequest rendered = ToGenerationRequest(generate, context, &violations);
  TellOfMessages(&violations);
  if (!violations.empty()) return InvalidRequestError(violations);

  std::vector<ChatMessage> messages;
  for (const v1::Message& message : request.messages()) {
    messages.push_back({message.role(), message.content()});
  }
  const bool begins = context.resume == nullptr;
  const std::string opening =
      begins && config.chat->bos ? std::string(context.tokenizer->Piece(*config.bos_id)) : "";
  response->set_text(
      ChatText(*config.chat, opening, begins ? "" : context.resume->open_role, messages));
  response->mutable_token_ids()->Assign(rendered.prompt.begin(), rendered.prompt.end());
  response->mutable_stop_token_ids()->Assign(rendered.stop_token_ids.begin(),
                                             rendered.stop_token_ids.end());
  return absl::OkStatus();
}

}  // namespace osdn
