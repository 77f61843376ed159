#include "tools/local_server.h"

#include <grpcpp/server_builder.h>
#include <grpcpp/support/channel_arguments.h>
#include <spdlog/logger.h>
#include <spdlog/sinks/null_sink.h>

#include <cstdint>
#include <limits>
#include <utility>

namespace osdn::tools {
namespace {

// The caller reports what goes wrong; a log would say it twice.
std::shared_ptr<spdlog::logger> SilentLogger() {
  return std::make_shared<spdlog::logger>("osdn-tools",
                                          std::make_shared<spdlog::sinks::null_sink_mt>());
}

// There is one client, and it may take its time.
ServerOptions Unlimited() {
  ServerOptions options;
  options.max_tokens_limit = std::numeric_limits<int32_t>::max();
  return options;
}

}  // namespace

absl::StatusOr<std::unique_ptr<LocalServer>> LocalServer::Start(const EngineOptions& options) {
  EngineOptions single = options;
  single.max_slots = 1;
  absl::StatusOr<std::unique_ptr<Engine>> engine = Engine::Create(single);
  if (!engine.ok()) return engine.status();
  std::unique_ptr<LocalServer> local(new LocalServer(*std::move(engine)));
  if (local->server_ == nullptr) return absl::InternalError("cannot start gRPC in this process");
  return local;
}

LocalServer::LocalServer(std::unique_ptr<Engine> engine)
    : engine_(std::move(engine)),
      states_(StateAccess::InMemory(IdentityOf(engine_->config()))),
      service_(Unlimited(), /*keys=*/nullptr, &metrics_, SilentLogger()),
      state_service_(
          [this](grpc::CallbackServerContext* context, Scope scope, absl::string_view what) {
            return service_.Admit(context, scope, what);
          }) {
  service_.Serve(engine_.get(), states_.get());
  grpc::ServerBuilder builder;
  builder.RegisterService(&service_);
  builder.RegisterService(&state_service_);
  builder.SetMaxReceiveMessageSize(-1);
  server_ = builder.BuildAndStart();
}

LocalServer::~LocalServer() {
  if (server_ == nullptr) return;
  server_->Shutdown();
  server_->Wait();
}

std::shared_ptr<grpc::Channel> LocalServer::channel() const {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);  // states are as large as the model makes them
  return server_->InProcessChannel(arguments);
}

}  // namespace osdn::tools
