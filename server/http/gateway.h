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
  // What calls need; nullopt while the model loads.
  std::function<std::optional<CallEnvironment>()> environment;
  // OK while requests are served; else what /health says: loading, draining, failed.
  std::function<absl::Status()> health;
  // Prometheus text; empty: there are no metrics.
  std::function<std::string()> metrics;
  // The one place where a request's right to be served is checked, before its body is read:
  // method, path and the token of "Authorization: Bearer" ("" without one) -> whom it counts for
  // ("": by its address). Empty: everybody may.
  std::function<absl::StatusOr<std::string>(const std::string& method, const std::string& path,
                                            const std::string& token)>
      authorize;
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
