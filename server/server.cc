#include "server/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>

#include <chrono>
#include <fstream>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "engine/state_store_redis.h"
#include "server/call_metrics.h"
#include "server/http/gateway.h"
#include "server/model_info.h"
#include "server/tls.h"

namespace osdn {
namespace {

// Clients may ping this often, also between calls; a client that pings more is disconnected.
constexpr int kMinClientPingMs = 10'000;
constexpr int kKeepaliveTimeoutMs = 20'000;
// Streams that the engine ended still have their states to save and their last frame to write.
constexpr std::chrono::seconds kFlushTime{10};

void SetTransport(const ServerOptions& options, grpc::ServerBuilder* builder) {
  builder->SetMaxReceiveMessageSize(static_cast<int>(options.max_message_bytes));
  // With SO_REUSEPORT a second server on the same port would start and take half of the calls.
  builder->AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS,
                              static_cast<int>(absl::ToInt64Milliseconds(options.keepalive_time)));
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                              kMinClientPingMs);
  // Reflection is the only service that needs threads of its own.
  builder->SetSyncServerOption(grpc::ServerBuilder::NUM_CQS, 1);
  builder->SetSyncServerOption(grpc::ServerBuilder::MIN_POLLERS, 1);
  builder->SetSyncServerOption(grpc::ServerBuilder::MAX_POLLERS, 2);
}

EngineOptions ToEngineOptions(const ServerOptions& options) {
  EngineOptions engine;
  engine.model_dir = options.model_dir;
  engine.backend.name = options.backend;
  engine.backend.threads = static_cast<int>(options.threads);
  engine.backend.cpu_isa = options.cpu_isa;
  engine.max_slots = static_cast<int32_t>(options.max_slots);
  engine.max_prefill_tokens = options.max_prefill_tokens;
  engine.max_queued_requests = options.max_queued_requests;
  engine.max_queued_tokens = options.max_queued_tokens;
  engine.max_swapped = options.max_swapped;
  engine.swap_after = absl::ToChronoMilliseconds(options.swap_after);
  engine.ageing = absl::ToChronoMilliseconds(options.ageing);
  engine.prefix_cache_bytes = static_cast<size_t>(options.prefix_cache_bytes);
  engine.prefix_cache_interval = options.prefix_cache_interval;
  engine.verify_checksums = options.verify_checksums;
  return engine;
}

// One line of a file.
absl::StatusOr<std::string> ReadPassword(const std::string& path) {
  std::ifstream file(path);
  std::string password;
  if (!std::getline(file, password) || password.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("state.redis.password_file: ", path, " has no first line that can be read"));
  }
  return password;
}

std::string MebiBytes(size_t bytes) {
  return absl::StrFormat("%.1f MiB", static_cast<double>(bytes) / (1 << 20));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Listen(const ServerOptions& options,
                                                       std::shared_ptr<spdlog::logger> logger) {
  std::unique_ptr<ApiKeys> keys;
  if (options.auth_keys_file != kOptionNone) {
    absl::StatusOr<std::unique_ptr<ApiKeys>> opened =
        ApiKeys::Open(options.auth_keys_file, absl::Now);
    if (!opened.ok()) return opened.status();
    keys = *std::move(opened);
  }
  std::unique_ptr<Server> server(new Server(options, std::move(keys), std::move(logger)));
  if (absl::Status s = server->Start(); !s.ok()) return s;
  return server;
}

Server::Server(const ServerOptions& options, std::unique_ptr<ApiKeys> keys,
               std::shared_ptr<spdlog::logger> logger)
    : options_(options),
      logger_(std::move(logger)),
      keys_(std::move(keys)),
      service_(options_, keys_.get(), &metrics_, logger_),
      state_service_(
          [this](grpc::CallbackServerContext* context, Scope scope, absl::string_view what) {
            return service_.Admit(context, scope, what);
          }) {
  metrics_.SetSource([this] { return ReadMetrics(); });
}

Server::~Server() {
  if (engine_ != nullptr) engine_->Drain(std::chrono::milliseconds(0));
  if (gateway_ != nullptr) gateway_->Stop(absl::FromChrono(kFlushTime));
  if (grpc_server_ != nullptr) {
    grpc_server_->Shutdown(std::chrono::system_clock::now() + kFlushTime);
    grpc_server_->Wait();
  }
}

absl::Status Server::Start() {
  absl::StatusOr<Address> address = ParseAddress(options_.grpc_address);
  if (!address.ok()) return address.status();
  address_ = *std::move(address);
  if (absl::Status s = CheckCanBind(address_); !s.ok()) return s;

  std::shared_ptr<grpc::ServerCredentials> credentials = grpc::InsecureServerCredentials();
  if (options_.tls()) {
    absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> tls = TlsCredentials(
        {.cert = options_.tls_cert_file,
         .key = options_.tls_key_file,
         .client_ca =
             options_.tls_client_ca_file == kOptionNone ? "" : options_.tls_client_ca_file});
    if (!tls.ok()) return tls.status();
    credentials = *std::move(tls);
  }

  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(address_.ToString(), credentials, &port);
  builder.RegisterService(&service_);
  builder.RegisterService(&state_service_);
  SetTransport(options_, &builder);
  std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> interceptors;
  interceptors.push_back(CountCalls(&metrics_));
  builder.experimental().SetInterceptorCreators(std::move(interceptors));
  grpc_server_ = builder.BuildAndStart();
  if (grpc_server_ == nullptr || port == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("cannot listen on ", address_.ToString(), ": gRPC's own message is above"));
  }
  address_.port = static_cast<uint16_t>(port);
  SetServing(false);
  const char* security = "plaintext";
  if (options_.tls()) security = options_.tls_client_ca_file == kOptionNone ? "TLS" : "mutual TLS";
  logger_->info("listening on {} (gRPC, {}, {})", address_.ToString(), security,
                keys_ == nullptr ? "no API keys" : absl::StrCat(keys_->size(), " API keys"));
  return StartHttp(security);
}

absl::Status Server::StartHttp(const char* security) {
  if (options_.http_address == kOptionNone) return absl::OkStatus();
  GatewayHooks hooks;
  hooks.admit = [this](const Caller& caller, Scope scope, absl::string_view what) {
    return service_.Admit(caller, scope, what);
  };
  hooks.health = [this] { return Serving(); };
  hooks.metrics = [this] { return metrics_.Text(); };
  hooks.count = [this](absl::string_view route, int status, absl::Duration duration) {
    metrics_.CallDone(route, absl::StrCat(status), duration);
  };
  absl::StatusOr<std::unique_ptr<Gateway>> gateway = Gateway::Listen(options_, std::move(hooks));
  if (!gateway.ok()) return gateway.status();
  gateway_ = *std::move(gateway);
  logger_->info("{}://{} (OpenAI API, chat page; {})", options_.tls() ? "https" : "http",
                gateway_->address().ToString(), security);
  return absl::OkStatus();
}

const Address* Server::http_address() const {
  return gateway_ == nullptr ? nullptr : &gateway_->address();
}

absl::Status Server::Serving() const {
  if (!healthy_.load()) return absl::UnavailableError("the device failed: the log says how");
  if (draining_.load()) return absl::UnavailableError("draining: the server is about to end");
  if (!loaded_.load()) return absl::UnavailableError("the model is loading");
  return absl::OkStatus();
}

void Server::SetServing(bool serving) {
  grpc::HealthCheckServiceInterface* health = grpc_server_->GetHealthCheckService();
  health->SetServingStatus("", serving);
  health->SetServingStatus(v1::InferenceService::service_full_name(), serving);
  health->SetServingStatus(v1::StateService::service_full_name(), serving);
}

absl::Status Server::Load() {
  logger_->info("loading {}", options_.model_dir);
  const absl::Time start = absl::Now();
  EngineOptions engine_options = ToEngineOptions(options_);
  engine_options.observer = &metrics_;
  absl::StatusOr<std::unique_ptr<Engine>> engine = Engine::Create(engine_options);
  if (!engine.ok()) return engine.status();
  engine_ = *std::move(engine);
  LogModel();
  if (absl::Status s = OpenStates(); !s.ok()) return s;
  service_.Serve(engine_.get(), states_.get());
  loaded_.store(true);
  SetServing(true);
  logger_->info("serving on {}, loaded in {}", address_.ToString(),
                absl::FormatDuration(absl::Trunc(absl::Now() - start, absl::Milliseconds(1))));
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<StateStore>> Server::OpenStore() const {
  const StateStore::Options options{.max_bytes = options_.state_max_bytes,
                                    .max_states = options_.state_max_count,
                                    .ttl = options_.state_ttl};
  const auto report = [logger = logger_](const std::string& problem) {
    logger->warn("states: {}", problem);
  };
  if (options_.state_redis_address == kOptionNone) {
    std::unique_ptr<StateStorage> storage = MakeMemoryStorage();
    if (options_.state_dir != kStatesInMemory) {
      absl::StatusOr<std::unique_ptr<StateStorage>> disk = MakeDiskStorage(options_.state_dir);
      if (!disk.ok()) return disk.status();
      storage = *std::move(disk);
    }
    return LocalStateStore::Create(options, std::move(storage), absl::Now, report);
  }
  const absl::StatusOr<Address> address = ParseAddress(options_.state_redis_address);
  if (!address.ok()) return address.status();
  RedisClient::Options redis{
      .host = address->host, .port = address->port, .timeout = options_.state_redis_timeout};
  if (options_.state_redis_password_file != kOptionNone) {
    absl::StatusOr<std::string> password = ReadPassword(options_.state_redis_password_file);
    if (!password.ok()) return password.status();
    redis.user = options_.state_redis_user;
    redis.password = *std::move(password);
  }
  return OpenRedisStore(options, redis, options_.state_redis_prefix, absl::Now, report);
}

absl::Status Server::OpenStates() {
  std::string key;
  if (options_.state_key_file != kOptionNone) {
    absl::StatusOr<std::string> read = ReadStateKey(options_.state_key_file);
    if (!read.ok()) return read.status();
    key = *std::move(read);
  }
  absl::StatusOr<std::unique_ptr<StateStore>> store = OpenStore();
  if (!store.ok()) return store.status();
  const StateStore::Usage usage = (*store)->usage();
  const bool redis = options_.state_redis_address != kOptionNone;
  logger_->info(
      "states: {} in {}, {}, {}", usage.states,
      redis ? absl::StrCat("Redis at ", options_.state_redis_address) : options_.state_dir,
      MebiBytes(static_cast<size_t>(usage.bytes)), key.empty() ? "unsigned" : "signed");
  states_ = std::make_unique<StateAccess>(IdentityOf(engine_->config()), std::move(key),
                                          *std::move(store), options_.state_max_transit_bytes);
  return absl::OkStatus();
}

void Server::ReloadKeys() {
  if (keys_ == nullptr) return;
  const absl::StatusOr<bool> reloaded = keys_->ReloadIfChanged();
  const std::string problem = reloaded.ok() ? "" : std::string(reloaded.status().message());
  // A file that is gone would be told of at every look.
  if (!problem.empty() && problem != keys_problem_) {
    logger_->error("API keys stay as they were: {}", problem);
  }
  keys_problem_ = problem;
  if (reloaded.ok() && *reloaded) logger_->info("API keys read again: {}", keys_->size());
}

std::optional<Metrics::Reading> Server::ReadMetrics() {
  const std::optional<CallEnvironment> environment = service_.Environment();
  if (!environment.has_value()) return std::nullopt;
  const EngineInfo& info = environment->engine->info();
  return Metrics::Reading{.engine = environment->engine->stats(),
                          .slots = info.slots,
                          .slot_bytes = static_cast<int64_t>(info.state_bytes_per_slot),
                          .store = environment->states->store().usage(),
                          .transit_bytes = environment->states->transit().used(),
                          .model = environment->engine->config().name,
                          .backend = info.backend};
}

void Server::SweepStates() {
  const std::optional<CallEnvironment> environment = service_.Environment();
  if (!environment.has_value()) return;
  environment->storage->Post([states = environment->states] { states->store().Sweep(); });
}

bool Server::CheckHealth() {
  if (engine_ == nullptr || !healthy_) return healthy_;
  const absl::Status health = engine_->health();
  if (health.ok()) return true;
  healthy_ = false;
  SetServing(false);
  logger_->error("no longer serving: {}", std::string(health.message()));
  return false;
}

void Server::LogModel() const {
  const ModelConfig& config = engine_->config();
  const EngineInfo& info = engine_->info();
  logger_->info("model {}: {}, {} parameters, {}, weights {}, tokenizer {}, chat template {}",
                config.name, std::string(ArchitectureType(config.arch)),
                ParameterCount(config.arch), std::string(kernels::DTypeName(config.dtype)),
                MebiBytes(info.weight_bytes), engine_->tokenizer() != nullptr ? "yes" : "no",
                config.chat.has_value() ? "yes" : "no");
  logger_->info("model id {}", config.model_id());
  logger_->info("backend {}: {} ({})", info.backend, info.backend_detail, info.backend_reason);
  logger_->info("state: {} slots x {} bytes = {}", info.slots, info.state_bytes_per_slot,
                MebiBytes(static_cast<size_t>(info.slots) * info.state_bytes_per_slot));
}

void Server::Drain(absl::Duration propagation, absl::Duration timeout) {
  draining_.store(true);
  SetServing(false);
  if (propagation > absl::ZeroDuration()) {
    logger_->info("draining: health is NOT_SERVING, new calls are refused in {}",
                  absl::FormatDuration(propagation));
    absl::SleepFor(propagation);
  }
  if (engine_ != nullptr) {
    const EngineStats stats = engine_->stats();
    logger_->info("draining: {} running and {} queued requests may finish within {}", stats.running,
                  stats.queued, absl::FormatDuration(timeout));
    engine_->Drain(std::chrono::milliseconds(absl::ToInt64Milliseconds(timeout)));
  }
  if (gateway_ != nullptr) gateway_->Stop(absl::FromChrono(kFlushTime));
  grpc_server_->Shutdown(std::chrono::system_clock::now() + kFlushTime);
  logger_->info("drained");
}

}  // namespace osdn
