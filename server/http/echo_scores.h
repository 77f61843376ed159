// echo with logprobs: how likely a prompt's own tokens are.
#ifndef OSDN_SERVER_HTTP_ECHO_SCORES_H_
#define OSDN_SERVER_HTTP_ECHO_SCORES_H_

#include <vector>

#include "absl/status/statusor.h"
#include "osdn/v1/inference.pb.h"
#include "server/http/handlers.h"
#include "server/http/openai_request.h"

namespace osdn {

// For each prompt its tokens, as the delta that would echo it, with the logprob of each but the
// first, which follows nothing. Scored as Score does, token by token, so that they are what
// generating them would tell. InvalidRequestError in the HTTP request's words; Score's errors.
absl::StatusOr<std::vector<v1::Delta>> ScorePrompts(const HandlerContext& context, int socket,
                                                    const OpenAiRequest& request);

}  // namespace osdn

#endif  // OSDN_SERVER_HTTP_ECHO_SCORES_H_
