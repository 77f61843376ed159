// Chat requests in terms of Generate's, and what a chat's prompt looks like.
#ifndef OSDN_SERVER_CHAT_MAPPING_H_
#define OSDN_SERVER_CHAT_MAPPING_H_

#include <vector>

#include "absl/status/status.h"
#include "engine/sampling_params.h"
#include "osdn/v1/inference.pb.h"
#include "server/call_environment.h"

namespace osdn {

// The same request to Generate. Without messages and with a state it has no prompt: the generation
// goes on where the state ends.
v1::GenerateRequest ToGenerateRequest(const v1::ChatRequest& chat);

// What is wrong with a Generate request's prompt, told of the ChatRequest's `messages`.
void TellOfMessages(std::vector<FieldViolation>* violations);

// RenderChat. INVALID_ARGUMENT with every violation; StateAccess::Load's errors.
absl::Status RenderMessages(const CallEnvironment& environment,
                            const v1::RenderChatRequest& request, v1::RenderChatResponse* response);

}  // namespace osdn

#endif  // OSDN_SERVER_CHAT_MAPPING_H_
