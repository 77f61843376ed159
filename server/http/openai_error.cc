#include "server/http/openai_error.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "google/rpc/error_details.pb.h"
#include "server/http/json_fields.h"

namespace osdn {
namespace {

constexpr char kModelNotFound[] = "osdn.http/model_not_found";

// What the status carries of this kind.
template <class Detail>
std::optional<Detail> DetailOf(const absl::Status& status) {
  const absl::optional<absl::Cord> payload =
      status.GetPayload(absl::StrCat("type.googleapis.com/", Detail::descriptor()->full_name()));
  Detail detail;
  if (!payload.has_value() || !detail.ParseFromString(std::string(*payload))) return std::nullopt;
  return detail;
}

const char* TypeOf(int code) {
  switch (code) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 429:
      return "rate_limit_error";
    default:
      return code < 500 ? "invalid_request_error" : "server_error";
  }
}

// "RESOURCE_EXHAUSTED" -> "resource_exhausted"
std::string CodeOf(const absl::Status& status) {
  if (status.GetPayload(kModelNotFound).has_value()) return "model_not_found";
  std::string code = absl::StatusCodeToString(status.code());
  std::transform(code.begin(), code.end(), code.begin(),
                 [](unsigned char c) { return tolower(c); });
  return code;
}

Json ErrorObject(int code, absl::string_view message) {
  return Json{{"message", std::string(message)},
              {"type", TypeOf(code)},
              {"param", nullptr},
              {"code", nullptr}};
}

}  // namespace

absl::Status ModelNotFoundError(absl::string_view asked, absl::string_view served) {
  absl::Status status = absl::NotFoundError(absl::StrCat(
      "model: \"", asked, "\" is not served here; this server's model is \"", served, "\""));
  status.SetPayload(kModelNotFound, absl::Cord());
  return status;
}

std::vector<FieldViolation> ViolationsOf(const absl::Status& status) {
  std::vector<FieldViolation> violations;
  const auto detail = DetailOf<google::rpc::BadRequest>(status);
  if (!detail.has_value()) return violations;
  for (const auto& violation : detail->field_violations()) {
    violations.push_back({violation.field(), violation.description()});
  }
  return violations;
}

int HttpCode(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return 200;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
    // Not 409 or 412: clients try those again, and the same request fails the same way.
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kDataLoss:
      return 400;
    case absl::StatusCode::kUnauthenticated:
      return 401;
    case absl::StatusCode::kPermissionDenied:
      return 403;
    case absl::StatusCode::kNotFound:
      return 404;
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kAborted:
      return 409;
    case absl::StatusCode::kResourceExhausted:
      return 429;
    case absl::StatusCode::kCancelled:
      return 499;  // nobody is there to read it
    case absl::StatusCode::kUnimplemented:
      return 501;
    case absl::StatusCode::kUnavailable:
      return 503;
    case absl::StatusCode::kDeadlineExceeded:
      return 504;
    default:
      return 500;
  }
}

std::string ErrorBody(const absl::Status& status) {
  Json error = ErrorObject(HttpCode(status), status.message());
  error["code"] = CodeOf(status);
  const std::vector<FieldViolation> violations = ViolationsOf(status);
  if (!violations.empty()) {
    error["param"] = violations.front().field;
    for (const FieldViolation& violation : violations) {
      error["violations"].push_back(
          {{"field", violation.field}, {"description", violation.description}});
    }
  } else if (error["code"] == "model_not_found") {
    error["param"] = "model";
  }
  return JsonText({{"error", std::move(error)}});
}

HttpResponse ErrorResponse(const absl::Status& status) {
  HttpResponse response;
  response.status = HttpCode(status);
  response.body = ErrorBody(status);
  if (const auto retry = DetailOf<google::rpc::RetryInfo>(status); retry.has_value()) {
    const int64_t seconds = retry->retry_delay().seconds();
    const bool more = retry->retry_delay().nanos() > 0;
    response.headers.emplace_back("Retry-After", absl::StrCat(seconds + (more ? 1 : 0)));
  } else if (response.status == 503) {
    response.headers.emplace_back("Retry-After", "1");
  } else if (response.status == 429) {
    // Waiting does not help, so clients shall not try by themselves.
    response.headers.emplace_back("x-should-retry", "false");
  }
  return response;
}

HttpResponse ErrorPage(int code, absl::string_view message) {
  HttpResponse response;
  response.status = code;
  response.body = JsonText({{"error", ErrorObject(code, message)}});
  return response;
}

}  // namespace osdn
