// osdn.v1.InferenceService over one engine.
#ifndef OSDN_SERVER_INFERENCE_SERVICE_H_
#define OSDN_SERVER_INFERENCE_SERVICE_H_

#include <spdlog/logger.h>

#include <atomic>
#include <memory>
#include <optional>

#include "engine/engine.h"
#include "osdn/v1/inference.grpc.pb.h"
#include "server/executor.h"
#include "server/generate_calls.h"
#include "server/options.h"

namespace osdn {

// Thread-safe. No thread waits for a call: gRPC's threads only start and finish them, `workers_`
// read requests, `writers_` pass on events, and the engine's loop does the rest. Must outlive the
// grpc::Server it is registered with.
class InferenceService final : public v1::InferenceService::CallbackService {
 public:
  // `keys` (null: everybody may call) and `metrics` outlive all calls.
  InferenceService(const ServerOptions& options, ApiKeys* keys, Metrics* metrics,
                   std::shared_ptr<spdlog::logger> logger);

  // Until then every call is UNAVAILABLE: the model is loading. `engine` outlives all calls.
  // So do `states`.
  void Serve(Engine* engine, StateAccess* states) {
    states_ = states;
    engine_.store(engine, std::memory_order_release);
  }
  // What work needs that is nobody's call; nullopt while loading.
  std::optional<CallEnvironment> Environment();
  // What a call has that needs `scope`, for `what` (for messages); its key counts it as running as
  // long as that lives. UNAVAILABLE while loading; ApiKeys::Admit's errors.
  absl::StatusOr<CallEnvironment> Admit(const Caller& caller, Scope scope, absl::string_view what);
  absl::StatusOr<CallEnvironment> Admit(grpc::CallbackServerContext* context, Scope scope,
                                        absl::string_view what);

  grpc::ServerUnaryReactor* Generate(grpc::CallbackServerContext* context,
                                     const v1::GenerateRequest* request,
                                     v1::GenerateResponse* response) override;
  grpc::ServerWriteReactor<v1::GenerateStreamResponse>* GenerateStream(
      grpc::CallbackServerContext* context, const v1::GenerateRequest* request) override;
  grpc::ServerUnaryReactor* Chat(grpc::CallbackServerContext* context,
                                 const v1::ChatRequest* request,
                                 v1::GenerateResponse* response) override;
  grpc::ServerWriteReactor<v1::GenerateStreamResponse>* ChatStream(
      grpc::CallbackServerContext* context, const v1::ChatRequest* request) override;
  grpc::ServerUnaryReactor* Score(grpc::CallbackServerContext* context,
                                  const v1::ScoreRequest* request,
                                  v1::ScoreResponse* response) override;
  grpc::ServerUnaryReactor* RenderChat(grpc::CallbackServerContext* context,
                                       const v1::RenderChatRequest* request,
                                       v1::RenderChatResponse* response) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override;
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context,
                                     const v1::GetModelRequest* request,
                                     v1::GetModelResponse* response) override;

  grpc::ServerUnaryReactor* GetCapacity(grpc::CallbackServerContext* context,
                                        const v1::GetCapacityRequest* request,
                                        v1::GetCapacityResponse* response) override;

 private:
  const ServerOptions options_;
  ApiKeys* const keys_;
  Metrics* const metrics_;
  const std::shared_ptr<spdlog::logger> logger_;
  std::atomic<Engine*> engine_{nullptr};
  Executor workers_;
  Executor writers_;
  Executor storage_;
  StateAccess* states_ = nullptr;  // published by engine_
};

}  // namespace osdn

#endif  // OSDN_SERVER_INFERENCE_SERVICE_H_
