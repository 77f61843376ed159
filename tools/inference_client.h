// Client of a running osdn-server.
#ifndef OSDN_TOOLS_INFERENCE_CLIENT_H_
#define OSDN_TOOLS_INFERENCE_CLIENT_H_

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "osdn/v1/inference.grpc.pb.h"

namespace osdn::tools {

// Thread-safe. Errors carry the server's code and message; UNAVAILABLE names the address, and
// INVALID_ARGUMENT has a line for every field that the server found wrong.
class InferenceClient {
 public:
  using DeltaCallback = std::function<void(const v1::Delta&)>;
  using FinishedCallback = std::function<void(const v1::Finished&)>;

  // `name` stands for the address in messages.
  InferenceClient(std::shared_ptr<grpc::Channel> channel, std::string name);

  absl::StatusOr<v1::GetModelResponse> GetModel() const;

  // Blocks until the stream's end, handing each delta to `on_delta` and the end of each choice to
  // `on_finished` (may be empty). The result is the end of the choice that was done last. Another
  // thread may end it with context->TryCancel(): the result is then CANCELLED.
  absl::StatusOr<v1::Finished> Generate(const v1::GenerateRequest& request,
                                        grpc::ClientContext* context, const DeltaCallback& on_delta,
                                        const FinishedCallback& on_finished = {}) const;

  // grpc.health.v1: OK when `service` (empty: the server as a whole) is SERVING.
  absl::Status CheckHealth(const std::string& service) const;

 private:
  absl::Status ToStatus(const grpc::Status& status) const;

  std::string name_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::InferenceService::Stub> stub_;
};

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_INFERENCE_CLIENT_H_
