// What a call has of the server.
#ifndef OSDN_SERVER_CALL_ENVIRONMENT_H_
#define OSDN_SERVER_CALL_ENVIRONMENT_H_

#include <spdlog/logger.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "engine/engine.h"
#include "server/api_keys.h"
#include "server/executor.h"
#include "server/metrics.h"
#include "server/state_access.h"

namespace osdn {

// Who calls, as the transport tells it.
struct Caller {
  absl::string_view token;   // of "authorization: Bearer TOKEN"
  absl::string_view client;  // whom its tokens count for where there are no keys
  absl::string_view request_id{};
  absl::string_view traceparent{};
  std::optional<std::chrono::steady_clock::time_point> deadline{};
};

// What every call needs; outlives all of them.
struct CallEnvironment {
  Engine* engine = nullptr;
  Executor* workers = nullptr;  // reading requests: tokenizing a long prompt takes a while
  Executor* writers = nullptr;  // passing on events
  Executor* storage = nullptr;  // saved states: may wait for the disk
  StateAccess* states = nullptr;
  spdlog::logger* logger = nullptr;
  Metrics* metrics = nullptr;
  // Of this call.
  std::string client{};  // whom its tokens count for
  std::optional<std::chrono::steady_clock::time_point> deadline{};
  int64_t max_tokens_default = 0;
  int64_t max_tokens_limit = 0;
  std::shared_ptr<ApiKeys::Use> key{};  // as long as the call runs; null where there are no keys
  std::string request_id{};             // the client's x-request-id, or one that was made
  std::string traceparent{};            // W3C trace context, as it came; or empty

  // Whose saved states the call may see and makes.
  std::string owner() const { return key == nullptr ? std::string() : key->name(); }
};

}  // namespace osdn

#endif  // OSDN_SERVER_CALL_ENVIRONMENT_H_
