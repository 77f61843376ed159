#include "server/http/gateway.h"

#include <algorithm>
#include <array>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "server/api_keys.h"
#include "server/call_environment.h"
#include "server/http/chat_page.h"
#include "server/http/connection_watch.h"
#include "server/http/handlers.h"
#include "server/http/http_server.h"
#include "server/http/openai_error.h"

namespace osdn {
namespace {

constexpr char kClientHeader[] = "osdn-client-id";  // as gRPC's metadata
constexpr char kRequestId[] = "X-Request-Id";
constexpr size_t kMaxClientBytes = 128;

using ApiHandler = HttpResponse (*)(const HandlerContext&, const HttpRequest&);

struct Route {
  const char* method = nullptr;
  absl::string_view path;  // with '*' at its end: and all that begin so
  Scope scope = Scope::kGenerate;
  ApiHandler handle = nullptr;
};

constexpr std::array<Route, 11> kApiRoutes = {{
    {"GET", "/v1/models", Scope::kGenerate, ListModels},
    {"GET", "/v1/models/*", Scope::kGenerate, GetModel},
    {"POST", "/v1/completions", Scope::kGenerate, CreateCompletion},
    {"POST", "/v1/chat/completions", Scope::kGenerate, CreateChatCompletion},
    {"POST", "/v1/responses", Scope::kGenerate, CreateResponse},
    {"DELETE", "/v1/responses/*", Scope::kState, DeleteResponse},
    {"GET", "/osdn/v1/states", Scope::kState, ListStates},
    {"POST", "/osdn/v1/states", Scope::kState, SaveState},
    {"GET", "/osdn/v1/states/*", Scope::kState, GetState},
    {"DELETE", "/osdn/v1/states/*", Scope::kState, DeleteState},
    {"POST", "/osdn/v1/states/*", Scope::kState, ForkState},
}};
constexpr std::array<absl::string_view, 3> kOwnPaths = {"/", "/health", "/metrics"};

bool Matches(absl::string_view pattern, absl::string_view path) {
  if (!absl::ConsumeSuffix(&pattern, "*")) return pattern == path;
  return absl::StartsWith(path, pattern) && path.size() > pattern.size();
}

// A HEAD is a GET without its body.
absl::string_view MethodOf(const HttpRequest& request) {
  return request.method == "HEAD" ? "GET" : absl::string_view(request.method);
}

HttpResponse Text(std::string text) {
  HttpResponse response;
  response.content_type = "text/plain; charset=utf-8";
  response.body = std::move(text);
  return response;
}

class GatewayOverHttp final : public Gateway {
 public:
  GatewayOverHttp(const ServerOptions& options, GatewayHooks hooks) : hooks_(std::move(hooks)) {
    if (options.http_cors_origins != kOptionNone) {
      const std::vector<std::string> origins = absl::StrSplit(options.http_cors_origins, ',');
      origins_.insert(origins.begin(), origins.end());
    }
  }
  absl::Status Listen(const ServerOptions& options) {
    absl::StatusOr<std::unique_ptr<ConnectionWatch>> watch = ConnectionWatch::Create();
    if (!watch.ok()) return watch.status();
    watch_ = *std::move(watch);
    absl::StatusOr<Address> address = ParseAddress(options.http_address);
    if (!address.ok()) return address.status();
    HttpServerOptions http;
    http.address = *std::move(address);
    http.max_connections = options.http_max_connections;
    http.max_body_bytes = options.http_max_body_bytes;
    http.read_timeout = options.http_read_timeout;
    http.idle_timeout = options.http_idle_timeout;
    http.write_timeout = options.http_write_timeout;
    if (options.tls()) {
      const bool known = options.tls_client_ca_file != kOptionNone;
      http.tls = {.cert = options.tls_cert_file,
                  .key = options.tls_key_file,
                  .client_ca = known ? options.tls_client_ca_file : ""};
    }
    absl::StatusOr<std::unique_ptr<HttpServer>> server = HttpServer::Listen(
        http,
        {.admit = [this](HttpRequest* request) { return Admit(request); },
         .handle = [this](const HttpRequest& request) { return Handle(request); },
         .error = [](int status, const char* message) { return ErrorPage(status, message); }});
    if (!server.ok()) return server.status();
    server_ = *std::move(server);
    return absl::OkStatus();
  }

  void Stop(absl::Duration grace) override { server_->Stop(grace); }
  const Address& address() const override { return server_->address(); }

 private:
  // Every request passes here before its body is read.
  std::optional<HttpResponse> Admit(HttpRequest* request) const {
    if (request->method == "OPTIONS") return WithCors(*request, Preflight(*request));
    if (std::optional<HttpResponse> refusal = CheckRoute(*request); refusal.has_value()) {
      return WithCors(*request, *std::move(refusal));
    }
    if (const Route* route = FindRoute(*request); route != nullptr) {
      if (std::optional<HttpResponse> refusal = AdmitTo(*route, request); refusal.has_value()) {
        hooks_.count(NameOf(*route), refusal->status, absl::ZeroDuration());
        return WithCors(*request, *std::move(refusal));
      }
    }
    // Not a form: browsers send those from any page, without asking first.
    if (request->method == "POST" &&
        !absl::StartsWithIgnoreCase(request->header("Content-Type"), "application/json")) {
      return WithCors(*request, ErrorPage(415, "Content-Type: application/json is wanted"));
    }
    return std::nullopt;
  }

  static std::optional<HttpResponse> CheckRoute(const HttpRequest& request) {
    std::vector<absl::string_view> methods;
    for (const Route& route : kApiRoutes) {
      if (Matches(route.path, request.path)) methods.emplace_back(route.method);
    }
    for (absl::string_view path : kOwnPaths) {
      if (path == request.path) methods.emplace_back("GET");
    }
    if (methods.empty()) return ErrorPage(404, absl::StrCat("no such path: ", request.path));
    if (std::find(methods.begin(), methods.end(), MethodOf(request)) != methods.end()) {
      return std::nullopt;
    }
    HttpResponse refusal = ErrorPage(
        405, absl::StrCat(request.path, " takes ", absl::StrJoin(methods, ", "), " only"));
    refusal.headers.emplace_back("Allow", absl::StrJoin(methods, ", "));
    return refusal;
  }

  static const Route* FindRoute(const HttpRequest& request) {
    for (const Route& route : kApiRoutes) {
      if (Matches(route.path, request.path) && route.method == MethodOf(request)) return &route;
    }
    return nullptr;
  }

  static std::string NameOf(const Route& route) {
    return absl::StrCat(route.method, " ", route.path);
  }

  std::optional<HttpResponse> AdmitTo(const Route& route, HttpRequest* request) const {
    const std::string id = request->header(kClientHeader);
    // As gRPC spells its peers: a machine is one client, whatever it speaks.
    const std::string client =
        !id.empty() ? absl::StrCat("id:", id.substr(0, kMaxClientBytes))
                    : absl::StrCat(absl::StrContains(request->peer, ':') ? "ipv6:" : "ipv4:",
                                   request->peer);
    const std::string authorization = request->header("Authorization");
    const std::string request_id = request->header(kRequestId).substr(0, kMaxClientBytes);
    const std::string traceparent = request->header("traceparent").substr(0, kMaxClientBytes);
    absl::StatusOr<CallEnvironment> environment =
        hooks_.admit(Caller{.token = BearerToken(authorization),
                            .client = client,
                            .request_id = request_id,
                            .traceparent = traceparent},
                     route.scope, NameOf(route));
    if (!environment.ok()) return ErrorResponse(environment.status());
    request->environment = std::make_shared<const CallEnvironment>(*std::move(environment));
    return std::nullopt;
  }

  HttpResponse Handle(const HttpRequest& request) const {
    const Route* route = FindRoute(request);
    if (route == nullptr) return WithCors(request, OwnPath(request));
    const absl::Time start = absl::Now();
    HttpResponse response = WithCors(
        request, route->handle(HandlerContext{*request.environment, watch_.get()}, request));
    response.headers.emplace_back(kRequestId, request.environment->request_id);
    const auto count = [this, route, start, status = response.status,
                        key = request.environment->key] {
      if (key != nullptr) key->Done();
      hooks_.count(NameOf(*route), status, absl::Now() - start);
    };
    if (response.stream == nullptr) {
      count();
    } else {
      response.stream = [stream = std::move(response.stream), count](const HttpWriter& writer) {
        const bool whole = stream(writer);
        count();
        return whole;
      };
    }
    return response;
  }

  HttpResponse OwnPath(const HttpRequest& request) const {
    if (request.path == "/") return Page();
    if (request.path == "/health") return Health();
    if (request.path == "/metrics") return Metrics();
    return ErrorPage(404, absl::StrCat("no such path: ", request.path));  // Admit said so before
  }

  static HttpResponse Page() {
    HttpResponse response;
    response.content_type = "text/html; charset=utf-8";
    response.body = ChatPage();
    response.headers = {{"Content-Security-Policy", ChatPagePolicy()},
                        {"Cache-Control", "no-cache"},
                        {"Referrer-Policy", "no-referrer"},
                        {"X-Frame-Options", "DENY"}};
    return response;
  }

  HttpResponse Health() const {
    const absl::Status health = hooks_.health();
    if (!health.ok()) return ErrorResponse(health);
    HttpResponse response;
    response.body = R"({"status":"ok"})";
    return response;
  }

  HttpResponse Metrics() const {
    HttpResponse response = Text(hooks_.metrics());
    response.content_type = "text/plain; version=0.0.4; charset=utf-8";
    return response;
  }

  bool OriginAllowed(const std::string& origin) const {
    return !origin.empty() && (origins_.count(origin) > 0 || origins_.count("*") > 0);
  }

  HttpResponse Preflight(const HttpRequest& request) const {
    if (!OriginAllowed(request.header("Origin"))) {
      return ErrorPage(403, "this origin is not in the server's option http.cors_origins");
    }
    HttpResponse response;
    response.status = 204;
    response.content_type = "text/plain";
    response.headers = {{"Access-Control-Allow-Methods", "GET, POST, DELETE"},
                        {"Access-Control-Allow-Headers",
                         "Authorization, Content-Type, OpenAI-Organization, OpenAI-Project"},
                        {"Access-Control-Max-Age", "600"}};
    return response;
  }

  HttpResponse WithCors(const HttpRequest& request, HttpResponse response) const {
    response.headers.emplace_back("X-Content-Type-Options", "nosniff");
    if (origins_.empty()) return response;
    const std::string origin = request.header("Origin");
    if (OriginAllowed(origin)) {
      response.headers.emplace_back("Access-Control-Allow-Origin", origin);
    }
    response.headers.emplace_back("Vary", "Origin");
    return response;
  }

  const GatewayHooks hooks_;
  std::set<std::string> origins_;
  std::unique_ptr<ConnectionWatch> watch_;
  std::unique_ptr<HttpServer> server_;  // ends first
};

}  // namespace

absl::StatusOr<std::unique_ptr<Gateway>> Gateway::Listen(const ServerOptions& options,
                                                         GatewayHooks hooks) {
  auto gateway = std::make_unique<GatewayOverHttp>(options, std::move(hooks));
  if (absl::Status s = gateway->Listen(options); !s.ok()) return s;
  return gateway;
}

}  // namespace osdn
