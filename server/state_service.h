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
  // What a call that needs this scope has, or why it is not served.
  using Admit = std::function<absl::StatusOr<CallEnvironment>(grpc::CallbackServerContext* context,
                                                              Scope scope, absl::string_view what)>;
  explicit StateService(Admit admit) : admit_(std::move(admit)) {}

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
  using Work = std::function<absl::Status(const CallEnvironment& environment)>;
  // Runs `work` on a storage thread and ends the call with what it says.
  grpc::ServerUnaryReactor* Run(grpc::CallbackServerContext* context, Work work);

  const Admit admit_;
};

}  // namespace osdn

#endif  // OSDN_SERVER_STATE_SERVICE_H_
