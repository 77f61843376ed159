#include "tools/inference_client.h"

#include <grpcpp/support/sync_stream.h>

#include <chrono>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "grpc/health/v1/health.grpc.pb.h"

namespace osdn::tools {
namespace {

// Of calls that the server answers at once.
constexpr std::chrono::seconds kShortCallTimeout(10);

// "\n  field: description" for every violation in the status details.
std::string FieldViolations(const grpc::Status& status) {
  google::rpc::Status details;
  if (!details.ParseFromString(status.error_details())) return "";
  std::string text;
  for (const google::protobuf::Any& detail : details.details()) {
    google::rpc::BadRequest bad_request;
    if (!detail.UnpackTo(&bad_request)) continue;
    for (const auto& violation : bad_request.field_violations()) {
      absl::StrAppend(&text, "\n  ", violation.field(), ": ", violation.description());
    }
  }
  return text;
}

}  // namespace

InferenceClient::InferenceClient(std::shared_ptr<grpc::Channel> channel, std::string name)
    : name_(std::move(name)),
      channel_(std::move(channel)),
      stub_(v1::InferenceService::NewStub(channel_)) {}

absl::Status InferenceClient::ToStatus(const grpc::Status& status) const {
  if (status.ok()) return absl::OkStatus();
  const auto code = static_cast<absl::StatusCode>(status.error_code());
  if (code == absl::StatusCode::kUnavailable) {
    return absl::UnavailableError(absl::StrCat("server ", name_, ": ", status.error_message()));
  }
  if (code == absl::StatusCode::kDeadlineExceeded) {
    return absl::DeadlineExceededError(absl::StrCat("server ", name_, ": no answer in time"));
  }
  const std::string violations = FieldViolations(status);
  return absl::Status(code, violations.empty()
                                ? status.error_message()
                                : absl::StrCat("the server refused the request:", violations));
}

absl::StatusOr<v1::GetModelResponse> InferenceClient::GetModel() const {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kShortCallTimeout);
  v1::GetModelResponse response;
  const grpc::Status status = stub_->GetModel(&context, v1::GetModelRequest(), &response);
  if (!status.ok()) return ToStatus(status);
  return response;
}

absl::StatusOr<v1::Finished> InferenceClient::Generate(const v1::GenerateRequest& request,
                                                       grpc::ClientContext* context,
                                                       const DeltaCallback& on_delta,
                                                       const FinishedCallback& on_finished) const {
  std::unique_ptr<grpc::ClientReader<v1::GenerateStreamResponse>> reader =
      stub_->GenerateStream(context, request);
  std::optional<v1::Finished> finished;
  v1::GenerateStreamResponse event;
  while (reader->Read(&event)) {
    if (event.has_delta()) on_delta(event.delta());
    if (!event.has_finished()) continue;
    finished = std::move(*event.mutable_finished());
    if (on_finished) on_finished(*finished);
  }
  if (const grpc::Status status = reader->Finish(); !status.ok()) return ToStatus(status);
  if (!finished.has_value()) {
    return absl::InternalError(
        absl::StrCat("server ", name_, ": the stream ended without its last frame"));
  }
  return *std::move(finished);
}

absl::Status InferenceClient::CheckHealth(const std::string& service) const {
  using grpc::health::v1::HealthCheckResponse;
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kShortCallTimeout);
  grpc::health::v1::HealthCheckRequest request;
  request.set_service(service);
  HealthCheckResponse response;
  const auto stub = grpc::health::v1::Health::NewStub(channel_);
  const grpc::Status status = stub->Check(&context, request, &response);
  if (status.error_code() == grpc::StatusCode::NOT_FOUND) {
    return absl::NotFoundError(absl::StrCat("server ", name_, ": no service \"", service, "\""));
  }
  if (!status.ok()) return ToStatus(status);
  if (response.status() == HealthCheckResponse::SERVING) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(
      "server ", name_, ": ", HealthCheckResponse::ServingStatus_Name(response.status())));
}

}  // namespace osdn::tools
