// The server's log: one line an event, as text or as JSON.
#ifndef OSDN_SERVER_LOG_H_
#define OSDN_SERVER_LOG_H_

#include <spdlog/logger.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/strings/string_view.h"

namespace osdn {

// To stderr: stdout belongs to --help, --version and --check-config. `format` "text": time, level,
// message. "json": an object a line with time (RFC 3339, UTC), level, message and, of requests,
// request.
std::shared_ptr<spdlog::logger> MakeLogger(const std::string& level, const std::string& format);

// What is told of a call that ran on the engine. Never what it holds: no prompt, no text.
struct RequestLog {
  absl::string_view method;
  std::string code;
  double milliseconds = 0;
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  std::string key{};  // the API key's name
  absl::string_view request_id{};
  absl::string_view traceparent{};  // W3C trace context
};

// A line at debug level: "request {...}".
void LogRequest(spdlog::logger* logger, const RequestLog& request);

}  // namespace osdn

#endif  // OSDN_SERVER_LOG_H_
