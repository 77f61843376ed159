// osdn.v1.StateService: saved states over gRPC.
#ifndef OSDN_SERVER_STATE_SERVICE_H_
#define OSDN_SERVER_STATE_SERVICE_H_

#include <functional>
#include <optional>

#include "osdn/v1/session.grpc.pb.h"
#include "server/call_environment.h"

namespace osdn {

// Thread-safe. Everything runs on the environment's storage threads. Must outlive the grpc::Server
// it is registered with.
class StateService final : public v1::StateService::CallbackService {
 public:
  // `environment` gives nullopt while the model loads.
  using Environment =
      std::function<std::optional<CallEnvironment>(const grpc::CallbackServerContext*)>;
  explicit StateService(Environment environment) : environment_(std::move(environment)) {}

  grpc::ServerUnaryReactor* SaveState(grpc::CallbackServerContext* context,
                                      const v1::SaveStateRequest* request,
                                      v1::SaveStateResponse* response) override;
  grpc::ServerUnaryReactor* ForkState(grpc::CallbackServerContext* context,
                                      const v1::ForkStateRequest* request,
                                      v1::ForkStateResponse* response) override;
  grpc::ServerUnaryReactor* ListStates(grpc::CallbackServerContext* context,
                                       const v1::ListStatesRequest* request,
                                       v1::ListStatesResponse* response) override;
  grpc::ServerUnaryReactor* GetState(grpc::CallbackServerContext* context,
                                     const v1::GetStateRequest* request,
                                     v1::GetStateResponse* response) override;
  grpc::ServerUnaryReactor* DeleteState(grpc::CallbackServerContext* context,
                                        const v1::DeleteStateRequest* request,
                                        v1::DeleteStateResponse* response) override;
  grpc::ServerWriteReactor<v1::ExportStateResponse>* ExportState(
      grpc::CallbackServerContext* context, const v1::ExportStateRequest* request) override;
  grpc::ServerReadReactor<v1::ImportStateRequest>* ImportState(
      grpc::CallbackServerContext* context, v1::ImportStateResponse* response) override;

 private:
  // Runs `work` on a storage thread and ends the call with what it says.
  grpc::ServerUnaryReactor* Run(grpc::CallbackServerContext* context,
                                std::function<absl::Status(StateAccess*)> work);

  const Environment environment_;
};

}  // namespace osdn

#endif  // OSDN_SERVER_STATE_SERVICE_H_
