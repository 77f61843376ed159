// The process's server: port, services, health, model, drain.
#ifndef OSDN_SERVER_SERVER_H_
#define OSDN_SERVER_SERVER_H_

#include <grpcpp/server.h>
#include <spdlog/logger.h>

#include <atomic>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/engine.h"
#include "server/address.h"
#include "server/api_keys.h"
#include "server/inference_service.h"
#include "server/metrics.h"
#include "server/options.h"
#include "server/state_access.h"
#include "server/state_service.h"

namespace osdn {

class Gateway;

// Listen -> Load -> (serves) -> Drain. Methods are called by one thread, in this order; any of the
// later ones may be left out.
class Server {
 public:
  // Binds first, so that a port in use fails at once and not after a long load. Health is
  // NOT_SERVING and calls are UNAVAILABLE. INVALID_ARGUMENT for the address, FAILED_PRECONDITION
  // naming address and cause when it cannot be bound.
  static absl::StatusOr<std::unique_ptr<Server>> Listen(const ServerOptions& options,
                                                        std::shared_ptr<spdlog::logger> logger);
  // Ends what still runs at once.
  ~Server();

  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // Loads the model and serves it. Engine::Create's errors.
  absl::Status Load();

  // False once the backend failed for good: health is NOT_SERVING from then on and the reason is
  // logged.
  bool CheckHealth();
  // Has expired states removed, in the background.
  void SweepStates();
  // Reads the API keys again if their file changed. What is wrong with it is logged, and the keys
  // stay as they were.
  void ReloadKeys();

  // NOT_SERVING at once; for `propagation`, calls are taken as before; then new ones are
  // UNAVAILABLE and running ones may finish within `timeout`. What is left then ends with
  // UNAVAILABLE.
  void Drain(absl::Duration propagation, absl::Duration timeout);

  // Where it listens, with the port it got.
  const Address& address() const { return address_; }
  // The same of HTTP; null where it is off.
  const Address* http_address() const;

 private:
  Server(const ServerOptions& options, std::unique_ptr<ApiKeys> keys,
         std::shared_ptr<spdlog::logger> logger);

  absl::Status Start();
  std::optional<Metrics::Reading> ReadMetrics();
  // `security` for the log.
  absl::Status StartHttp(const char* security);
  // What /health says. Of any thread.
  absl::Status Serving() const;
  void SetServing(bool serving);
  void LogModel() const;
  absl::StatusOr<std::unique_ptr<StateStore>> OpenStore() const;
  absl::Status OpenStates();

  const ServerOptions options_;
  const std::shared_ptr<spdlog::logger> logger_;
  Address address_;
  std::string keys_problem_;  // that was logged last
  std::atomic<bool> healthy_{true};
  std::atomic<bool> loaded_{false};
  std::atomic<bool> draining_{false};
  // Destroyed in reverse: the RPC server waits for its calls, which need all before it.
  const std::unique_ptr<ApiKeys> keys_;
  Metrics metrics_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<StateAccess> states_;
  InferenceService service_;
  StateService state_service_;
  std::unique_ptr<grpc::Server> grpc_server_;
  std::unique_ptr<Gateway> gateway_;
};

}  // namespace osdn

#endif  // OSDN_SERVER_SERVER_H_
