// Calls that run on the engine, as gRPC callback reactors: Generate, Chat, Score, SaveState.
#ifndef OSDN_SERVER_GENERATE_CALLS_H_
#define OSDN_SERVER_GENERATE_CALLS_H_

#include <grpcpp/support/server_callback.h>

#include "osdn/v1/inference.grpc.pb.h"
#include "osdn/v1/session.pb.h"
#include "server/call_environment.h"

namespace osdn {

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
