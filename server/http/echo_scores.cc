#include "server/http/echo_scores.h"

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "server/http/run.h"
#include "server/request_mapping.h"
#include "server/score_mapping.h"
#include "server/status.h"

namespace osdn {
namespace {

// A prompt's tokens, a beginning-of-text token included.
std::vector<int32_t> TokensOf(const CallEnvironment& environment,
                              const v1::GenerateRequest& request,
                              std::vector<FieldViolation>* violations) {
  RequestContext context;
  context.config = &environment.engine->config();
  context.tokenizer = environment.engine->tokenizer();
  context.max_tokens_default = environment.max_tokens_default;
  context.max_tokens_limit = environment.max_tokens_limit;
  return ToGenerationRequest(request, context, violations).prompt;
}

void AddToken(const Tokenizer* tokenizer, int32_t id, v1::Delta* told) {
  told->add_token_ids(static_cast<uint32_t>(id));
  v1::TokenLogprob* logprob = told->add_logprobs();
  logprob->set_token_id(static_cast<uint32_t>(id));
  if (tokenizer != nullptr) logprob->set_token_bytes(std::string(tokenizer->TokenBytes(id)));
}

}  // namespace

absl::StatusOr<std::vector<v1::Delta>> ScorePrompts(const HandlerContext& context, int socket,
                                                    const OpenAiRequest& request) {
  const CallEnvironment& environment = context.environment;
  const Tokenizer* tokenizer = environment.engine->tokenizer();
  std::vector<FieldViolation> violations = request.violations;
  std::vector<v1::Delta> told(request.prompts.size());
  std::vector<v1::ScoreRequest> scores(request.prompts.size());
  std::vector<Generation> generations;
  std::vector<size_t> prompt_of;  // of each generation
  for (size_t i = 0; i < request.prompts.size(); ++i) {
    const v1::GenerateRequest& prompt = *request.prompts[i];
    const std::vector<int32_t> ids = TokensOf(environment, prompt, &violations);
    if (!violations.empty()) return InTermsOf(request.names, InvalidRequestError(violations));
    AddToken(tokenizer, ids.front(), &told[i]);
    if (tokenizer != nullptr) told[i].set_text(tokenizer->Decode(ids));
    if (ids.size() == 1) continue;
    v1::ScoreRequest& score = scores[i];
    score.mutable_prompt()->mutable_tokens()->add_ids(static_cast<uint32_t>(ids.front()));
    score.add_continuations()->mutable_tokens()->mutable_ids()->Add(ids.begin() + 1, ids.end());
    score.set_top_logprobs(prompt.output().top_logprobs());
    *score.mutable_cache() = prompt.cache();
    *score.mutable_scheduling() = prompt.scheduling();
    generations.push_back({{.method = "/v1/completions", .score = &score},
                           std::make_shared<v1::GenerateRequest>(ToGenerateRequest(score))});
    prompt_of.push_back(i);
  }
  Run run(context, socket, generations);
  while (true) {
    absl::StatusOr<std::optional<GenerationReader::Item>> item = run.Next();
    if (!item.ok()) return InTermsOf(request.names, item.status());
    if (!item->has_value()) return told;
    const v1::Delta& delta = (*item)->frame.delta();
    v1::Delta& all = told[prompt_of[(*item)->generation]];
    for (const v1::TokenLogprob& logprob : delta.logprobs()) {
      all.add_token_ids(logprob.token_id());
      *all.add_logprobs() = logprob;
    }
  }
}

}  // namespace osdn
