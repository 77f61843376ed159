// What a call has of the server.
#ifndef OSDN_SERVER_CALL_ENVIRONMENT_H_
#define OSDN_SERVER_CALL_ENVIRONMENT_H_

#include <spdlog/logger.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

#include "engine/engine.h"
#include "server/executor.h"
#include "server/state_access.h"

namespace osdn {

// What every call needs; outlives all of them.
struct CallEnvironment {
  Engine* engine = nullptr;
  Executor* workers = nullptr;  // reading requests: tokenizing a long prompt takes a while
  Executor* writers = nullptr;  // passing on events
  Executor* storage = nullptr;  // saved states: may wait for the disk
  StateAccess* states = nullptr;
  spdlog::logger* logger = nullptr;
  // Of this call.
  std::string client{};  // whom its tokens count for
  std::optional<std::chrono::steady_clock::time_point> deadline{};
  int64_t max_tokens_default = 0;
  int64_t max_tokens_limit = 0;
};

}  // namespace osdn

#endif  // OSDN_SERVER_CALL_ENVIRONMENT_H_
