// Errors in OpenAI's shape, and the one way from absl::Status to an HTTP response.
#ifndef OSDN_SERVER_HTTP_OPENAI_ERROR_H_
#define OSDN_SERVER_HTTP_OPENAI_ERROR_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "engine/sampling_params.h"
#include "server/http/http_message.h"

namespace osdn {

absl::Status ModelNotFoundError(absl::string_view asked, absl::string_view served);

// Those that InvalidRequestError was given, as far as they fit into it.
std::vector<FieldViolation> ViolationsOf(const absl::Status& status);

int HttpCode(const absl::Status& status);
// {"error": {message, type, param, code, violations}}; `param` is the first violation's field.
std::string ErrorBody(const absl::Status& status);
// With Retry-After where waiting helps. `status` is not OK.
HttpResponse ErrorResponse(const absl::Status& status);
// An error of the protocol rather than of a request.
HttpResponse ErrorPage(int code, absl::string_view message);

}  // namespace osdn

#endif  // OSDN_SERVER_HTTP_OPENAI_ERROR_H_
