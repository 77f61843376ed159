// One request's generations, tied to its connection.
#ifndef OSDN_SERVER_HTTP_RUN_H_
#define OSDN_SERVER_HTTP_RUN_H_

#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "server/http/connection_watch.h"
#include "server/http/generation_reader.h"
#include "server/http/handlers.h"

namespace osdn {

inline constexpr char kEventStream[] = "text/event-stream";

// A GenerationReader that is cancelled when the client goes.
class Run {
 public:
  Run(const HandlerContext& context, int socket, const std::vector<Generation>& generations)
      : reader_(context.environment, generations),
        watch_(context.watch, socket, [this] { reader_.Cancel(); }) {}

  absl::StatusOr<std::optional<GenerationReader::Item>> Next() { return reader_.Next(); }

 private:
  GenerationReader reader_;
  ConnectionWatch::Watch watch_;  // ends first
};

}  // namespace osdn

#endif  // OSDN_SERVER_HTTP_RUN_H_
