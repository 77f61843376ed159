// A model served inside this process, without a port: `generate --model` runs the very same service
// that osdn-server offers.
#ifndef OSDN_TOOLS_LOCAL_SERVER_H_
#define OSDN_TOOLS_LOCAL_SERVER_H_

#include <grpcpp/channel.h>
#include <grpcpp/server.h>

#include <memory>

#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "server/inference_service.h"
#include "server/metrics.h"
#include "server/state_access.h"
#include "server/state_service.h"

namespace osdn::tools {

class LocalServer {
 public:
  // Engine::Create's errors.
  static absl::StatusOr<std::unique_ptr<LocalServer>> Start(const EngineOptions& options);
  // Ends the calls that still run. Clients of channel() must be gone.
  ~LocalServer();

  std::shared_ptr<grpc::Channel> channel() const;

 private:
  explicit LocalServer(std::unique_ptr<Engine> engine);

  std::unique_ptr<Engine> engine_;
  std::unique_ptr<StateAccess> states_;
  Metrics metrics_;
  InferenceService service_;
  StateService state_service_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_LOCAL_SERVER_H_
