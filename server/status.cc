#include "server/status.h"

#include <algorithm>
#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/utf8_decoder.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace osdn {
namespace {

// Sizes on the wire: the message is percent-encoded (up to 3x) and stands once more, like all
// details, in base64 (4/3). 3 * 1024 + 4/3 * (1024 + 2048 + framing) stays below 8 KiB.
constexpr size_t kMaxMessageBytes = 1024;
constexpr size_t kMaxDetailsBytes = 2048;
constexpr size_t kMaxViolationBytes = 192;
constexpr size_t kViolationsInMessage = 4;  // with their fields' names they fit into a message

// Valid UTF-8 of at most `max_bytes`, with "..." where something was cut.
std::string Printable(absl::string_view text, size_t max_bytes) {
  constexpr absl::string_view kCut = "...";
  Utf8Decoder decoder;
  std::string valid = decoder.Append(std::string(text.substr(0, max_bytes + 4))) + decoder.Flush();
  if (valid.size() <= max_bytes) return valid;
  size_t end = max_bytes - kCut.size();
  while (end > 0 && (static_cast<unsigned char>(valid[end]) & 0xC0) == 0x80) --end;
  return absl::StrCat(valid.substr(0, end), kCut);
}

template <class Detail>
std::string TypeUrl() {
  return absl::StrCat("type.googleapis.com/", Detail::descriptor()->full_name());
}

template <class Detail>
void AddDetail(const Detail& detail, absl::Status* status) {
  status->SetPayload(TypeUrl<Detail>(), absl::Cord(detail.SerializeAsString()));
}

google::rpc::BadRequest ToBadRequest(absl::Span<const FieldViolation> violations) {
  google::rpc::BadRequest result;
  for (const FieldViolation& violation : violations) {
    google::rpc::BadRequest::FieldViolation* added = result.add_field_violations();
    added->set_field(Printable(violation.field, kMaxViolationBytes));
    added->set_description(Printable(violation.description, kMaxViolationBytes));
    if (result.ByteSizeLong() > kMaxDetailsBytes) {
      result.mutable_field_violations()->RemoveLast();
      break;
    }
  }
  return result;
}

}  // namespace

absl::Status InvalidRequestError(absl::Span<const FieldViolation> violations) {
  std::string message;
  const size_t told = std::min(violations.size(), kViolationsInMessage);
  for (size_t i = 0; i < told; ++i) {
    absl::StrAppend(&message, i == 0 ? "" : "; ", violations[i].field, ": ",
                    Printable(violations[i].description, kMaxViolationBytes));
  }
  if (violations.size() > told) {
    absl::StrAppend(&message, "; and ", violations.size() - told, " more");
  }
  absl::Status status = absl::InvalidArgumentError(message);
  AddDetail(ToBadRequest(violations), &status);
  return status;
}

absl::Status WithRetryDelay(absl::Status status, absl::Duration delay) {
  google::rpc::RetryInfo info;
  const int64_t nanos = absl::ToInt64Nanoseconds(delay);
  info.mutable_retry_delay()->set_seconds(nanos / 1'000'000'000);
  info.mutable_retry_delay()->set_nanos(static_cast<int32_t>(nanos % 1'000'000'000));
  AddDetail(info, &status);
  return status;
}

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const std::string message = Printable(status.message(), kMaxMessageBytes);
  google::rpc::Status rich;
  rich.set_code(static_cast<int32_t>(status.code()));
  rich.set_message(message);
  size_t bytes = 0;
  status.ForEachPayload([&](absl::string_view type_url, const absl::Cord& payload) {
    bytes += payload.size();
    if (bytes > kMaxDetailsBytes) return;
    google::protobuf::Any* detail = rich.add_details();
    detail->set_type_url(std::string(type_url));
    detail->set_value(std::string(payload));
  });
  const auto code = static_cast<grpc::StatusCode>(status.code());
  if (rich.details().empty()) return grpc::Status(code, message);
  return grpc::Status(code, message, rich.SerializeAsString());
}

}  // namespace osdn
