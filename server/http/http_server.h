// An HTTP/1.1 server: sockets, threads, limits. cpp-httplib reads requests and writes responses.
#ifndef OSDN_SERVER_HTTP_HTTP_SERVER_H_
#define OSDN_SERVER_HTTP_HTTP_SERVER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/address.h"
#include "server/http/http_message.h"
#include "server/tls_files.h"

namespace osdn {

struct HttpServerOptions {
  Address address;
  int64_t max_connections = 0;  // each has a thread; beyond, idle ones give way, else 503
  int64_t max_body_bytes = 0;
  absl::Duration read_timeout;   // for a whole request, from its first byte
  absl::Duration idle_timeout;   // between requests
  absl::Duration write_timeout;  // for a client that does not read
  TlsFiles tls;                  // no certificate: plaintext
};

class HttpServer {
 public:
  // Head of a request -> a response without reading the body, or nullopt to go on.
  using Admit = std::function<std::optional<HttpResponse>(HttpRequest*)>;
  using Handler = std::function<HttpResponse(const HttpRequest&)>;
  // What the server itself has to say, e.g. 413: status and message -> response.
  using ErrorPage = std::function<HttpResponse(int status, const char* message)>;

  struct Callbacks {
    Admit admit;
    Handler handle;
    ErrorPage error;
  };

  // Binds and serves. Callbacks run on many threads. FAILED_PRECONDITION naming address and cause.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Listen(const HttpServerOptions& options,
                                                            Callbacks callbacks);
  virtual ~HttpServer() = default;

  // Takes no more connections; those without a request are closed. Running requests get `grace`,
  // then their connections are cut. Waits for all handlers. Once.
  virtual void Stop(absl::Duration grace) = 0;

  // With the port it got.
  virtual const Address& address() const = 0;
};

}  // namespace osdn

#endif  // OSDN_SERVER_HTTP_HTTP_SERVER_H_
