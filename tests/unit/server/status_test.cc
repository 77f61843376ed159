#include "server/status.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace osdn {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

google::rpc::Status Details(const grpc::Status& status) {
  google::rpc::Status rich;
  EXPECT_TRUE(rich.ParseFromString(status.error_details()));
  return rich;
}

TEST(StatusTest, CodesAreTheSameOnBothSides) {
  EXPECT_TRUE(ToGrpcStatus(absl::OkStatus()).ok());
  for (int code = 1; code <= 16; ++code) {
    const grpc::Status status =
        ToGrpcStatus(absl::Status(static_cast<absl::StatusCode>(code), "why"));
    EXPECT_EQ(static_cast<int>(status.error_code()), code);
    EXPECT_EQ(status.error_message(), "why");
    EXPECT_EQ(status.error_details(), "");
  }
}

TEST(StatusTest, ViolationsBecomeABadRequest) {
  const std::vector<FieldViolation> violations = {{"sampling.top_p", "2 is outside (0, 1]"},
                                                  {"stop.max_tokens", "0: at least 1"}};
  const grpc::Status status = ToGrpcStatus(InvalidRequestError(violations));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), AllOf(HasSubstr("sampling.top_p: 2 is outside (0, 1]"),
                                            HasSubstr("stop.max_tokens")));

  const google::rpc::Status rich = Details(status);
  EXPECT_EQ(rich.code(), 3);
  EXPECT_EQ(rich.message(), status.error_message());
  ASSERT_EQ(rich.details_size(), 1);
  google::rpc::BadRequest bad_request;
  ASSERT_TRUE(rich.details(0).UnpackTo(&bad_request));
  ASSERT_EQ(bad_request.field_violations_size(), 2);
  EXPECT_EQ(bad_request.field_violations(0).field(), "sampling.top_p");
  EXPECT_EQ(bad_request.field_violations(0).description(), "2 is outside (0, 1]");
  EXPECT_EQ(bad_request.field_violations(1).field(), "stop.max_tokens");
}

TEST(StatusTest, RetryDelayBecomesRetryInfo) {
  const grpc::Status status = ToGrpcStatus(
      WithRetryDelay(absl::ResourceExhaustedError("queue full"), absl::Milliseconds(1250)));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  google::rpc::RetryInfo info;
  ASSERT_EQ(Details(status).details_size(), 1);
  ASSERT_TRUE(Details(status).details(0).UnpackTo(&info));
  EXPECT_EQ(info.retry_delay().seconds(), 1);
  EXPECT_EQ(info.retry_delay().nanos(), 250'000'000);
}

// Percent-encoding of the message and base64 of the details, as gRPC sends them.
size_t WireBytes(const grpc::Status& status) {
  return 3 * status.error_message().size() + (status.error_details().size() + 2) / 3 * 4;
}

TEST(StatusTest, TrailersStayBelowWhatClientsAccept) {
  std::vector<FieldViolation> violations;
  for (int i = 0; i < 1000; ++i) {
    violations.push_back({absl::StrCat("prompt.tokens.ids[", i, "]"), std::string(5000, '\n')});
  }
  const grpc::Status status = ToGrpcStatus(InvalidRequestError(violations));
  EXPECT_LT(WireBytes(status), 8192U - 256U);
  google::rpc::BadRequest bad_request;
  ASSERT_EQ(Details(status).details_size(), 1);
  ASSERT_TRUE(Details(status).details(0).UnpackTo(&bad_request));
  EXPECT_GE(bad_request.field_violations_size(), 4);
  EXPECT_THAT(status.error_message(), HasSubstr("and 996 more"));

  EXPECT_LT(WireBytes(ToGrpcStatus(absl::InternalError(std::string(100'000, '%')))), 8192U);
}

TEST(StatusTest, MessagesAreCutAtCharacters) {
  for (size_t pad = 0; pad < 4; ++pad) {
    std::string text(pad, 'a');
    for (int i = 0; i < 1000; ++i) text += "\u20AC";
    const std::string message = ToGrpcStatus(absl::InternalError(text)).error_message();
    EXPECT_LE(message.size(), 1024U);
    EXPECT_THAT(message, ::testing::EndsWith("\u20AC..."));
    EXPECT_EQ((message.size() - pad - 3) % 3, 0U);
  }
}

TEST(StatusTest, WhatIsNotUtf8IsMadeSo) {
  const FieldViolation violation{"prompt.messages", "role \"\xFF\xFE\" is unknown"};
  const grpc::Status status = ToGrpcStatus(InvalidRequestError({violation}));
  EXPECT_THAT(status.error_message(),
              AllOf(HasSubstr("role \""), HasSubstr("\uFFFD"), Not(HasSubstr("\xFF"))));
  ASSERT_EQ(Details(status).details_size(), 1);  // would not parse otherwise
  EXPECT_THAT(ToGrpcStatus(absl::InternalError("file \xC3( is bad")).error_message(),
              HasSubstr("\uFFFD( is bad"));
}

}  // namespace
}  // namespace osdn
