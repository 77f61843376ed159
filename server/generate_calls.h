// Calls that run on the engine, as gRPC callback reactors: Generate, Chat, Score, SaveState.
#ifndef OSDN_SERVER_GENERATE_CALLS_H_
#define OSDN_SERVER_GENERATE_CALLS_H_

#include <grpcpp/support/server_callback.h>
#include <spdlog/logger.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "engine/engine.h"
#include "osdn/v1/inference.grpc.pb.h"
#include "osdn/v1/session.pb.h"
#include "server/executor.h"
#include "server/state_access.h"

namespace osdn {

// What every call needs; outlives all of them.
struct CallEnvironment {
  Engine* engine = nullptr;
  Executor* workers = nullptr;  // reading requests: tokenizing a long prompt takes a while
  Executor* writers = nullptr;  // passing on events
  Executor* storage = nullptr;  // saved states: may wait for the disk
  StateAccess* states = nullptr;
  spdlog::logger* logger = nullptr;
  // Of this call.
  std::string client{};  // whom its tokens count for
  std::optional<std::chrono::steady_clock::time_point> deadline{};
  int64_t max_tokens_default = 0;
  int64_t max_tokens_limit = 0;
};

// All own themselves until the call is done. `request` and `response` live as long as the call.
grpc::ServerUnaryReactor* StartGenerateCall(const CallEnvironment& environment,
                                            const v1::GenerateRequest* request,
                                            v1::GenerateResponse* response);
grpc::ServerWriteReactor<v1::GenerateStreamResponse>* StartGenerateStreamCall(
    const CallEnvironment& environment, const v1::GenerateRequest* request);

// The same as Generate's, of the messages.
grpc::ServerUnaryReactor* StartChatCall(const CallEnvironment& environment,
                                        const v1::ChatRequest* request,
                                        v1::GenerateResponse* response);
grpc::ServerWriteReactor<v1::GenerateStreamResponse>* StartChatStreamCall(
    const CallEnvironment& environment, const v1::ChatRequest* request);

grpc::ServerUnaryReactor* StartScoreCall(const CallEnvironment& environment,
                                         const v1::ScoreRequest* request,
                                         v1::ScoreResponse* response);

// Reads a prompt into a state.
grpc::ServerUnaryReactor* StartSaveStateCall(const CallEnvironment& environment,
                                             const v1::SaveStateRequest* request,
                                             v1::SaveStateResponse* response);

}  // namespace osdn

#endif  // OSDN_SERVER_GENERATE_CALLS_H_
