// The HTTP side of the server: OpenAI's API, states, health, metrics and the chat page.
#ifndef OSDN_SERVER_HTTP_GATEWAY_H_
#define OSDN_SERVER_HTTP_GATEWAY_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/address.h"
#include "server/call_environment.h"
#include "server/options.h"

namespace osdn {

// What the gateway asks of the process. All are thread-safe and outlive it.
struct GatewayHooks {
  // The one place where a request's right to be served is checked, before its body is read:
  // InferenceService::Admit.
  std::function<absl::StatusOr<CallEnvironment>(const Caller& caller, Scope scope,
                                                absl::string_view what)>
      admit;
  // OK while requests are served; else what /health says: loading, draining, failed.
  std::function<absl::Status()> health;
  // Prometheus' text.
  std::function<std::string()> metrics;
  // A request to `route` ("POST /v1/completions") has been answered, to the last byte.
  std::function<void(absl::string_view route, int status, absl::Duration duration)> count;
};

class Gateway {
 public:
  // Binds options.http_address and serves. FAILED_PRECONDITION naming address and cause.
  static absl::StatusOr<std::unique_ptr<Gateway>> Listen(const ServerOptions& options,
                                                         GatewayHooks hooks);
  virtual ~Gateway() = default;

  // HttpServer::Stop. Once the engine has drained, `grace` is for writing what is left.
  virtual void Stop(absl::Duration grace) = 0;
  // With the port it got.
  virtual const Address& address() const = 0;
};

}  // namespace osdn

#endif  // OSDN_SERVER_HTTP_GATEWAY_H_
