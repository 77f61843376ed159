// The chat client against a scripted service: what it sends, keeps and reports.
#include "tools/chat_session.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "osdn/v1/inference.grpc.pb.h"
#include "tools/inference_client.h"
#include "tools/server_flags.h"

namespace osdn::tools {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// Answers every chat with "echo: LAST MESSAGE" in two pieces; some messages do something else.
class FakeService final : public v1::InferenceService::Service {
 public:
  grpc::Status GetModel(grpc::ServerContext* context, const v1::GetModelRequest* request,
                        v1::GetModelResponse* response) override {
    (void)context;
    (void)request;
    response->set_name("fake");
    response->set_has_chat_template(has_template_);
    for (const std::string& role : roles_) response->add_chat_roles(role);
    return grpc::Status::OK;
  }

  grpc::Status GenerateStream(grpc::ServerContext* context, const v1::GenerateRequest* request,
                              grpc::ServerWriter<v1::GenerateStreamResponse>* writer) override {
    last_ = *request;
    const auto& messages = request->prompt().messages().messages();
    const std::string text = messages.empty() ? "" : messages.rbegin()->content();
    if (text == "fail") return {grpc::StatusCode::RESOURCE_EXHAUSTED, "the queue is full"};
    if (text == "invalid") return Invalid();
    v1::GenerateStreamResponse event;
    event.mutable_prefill_progress()->set_processed_tokens(1);
    writer->Write(event);
    for (const std::string& piece : {std::string("echo: "), text}) {
      event.mutable_delta()->set_text(piece);
      writer->Write(event);
    }
    if (text == "cut") return grpc::Status::OK;
    while (text == "endless" && !context->IsCancelled()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    event.mutable_finished()->set_finish_reason(v1::FINISH_REASON_STOP);
    writer->Write(event);
    return grpc::Status::OK;
  }

  bool has_template_ = true;
  std::vector<std::string> roles_ = {"assistant", "system", "user"};
  v1::GenerateRequest last_;

 private:
  static grpc::Status Invalid() {
    google::rpc::BadRequest bad_request;
    auto* violation = bad_request.add_field_violations();
    violation->set_field("sampling.top_p");
    violation->set_description("2 is not in (0, 1]");
    google::rpc::Status details;
    details.add_details()->PackFrom(bad_request);
    return {grpc::StatusCode::INVALID_ARGUMENT, "bad", details.SerializeAsString()};
  }
};

class ChatSessionTest : public testing::Test {
 protected:
  ChatSessionTest() {
    grpc::ServerBuilder builder;
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    client_ = std::make_unique<InferenceClient>(server_->InProcessChannel(grpc::ChannelArguments()),
                                                "in-process");
    session_ = std::make_unique<ChatSession>(client_.get(), GenerationFlags());
  }

  ~ChatSessionTest() override { server_->Shutdown(); }

  absl::StatusOr<v1::Finished> Ask(const std::string& text) {
    answer_.clear();
    return session_->Ask(text, [this](std::string_view piece) { answer_ += piece; });
  }

  // "role: content" of every message of the conversation.
  std::vector<std::string> Conversation() const {
    std::vector<std::string> lines;
    for (const v1::Message& message : session_->messages().messages()) {
      lines.push_back(message.role() + ": " + message.content());
    }
    return lines;
  }

  FakeService service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<InferenceClient> client_;
  std::unique_ptr<ChatSession> session_;
  std::string answer_;
};

TEST_F(ChatSessionTest, KeepsTheConversation) {
  ASSERT_TRUE(session_->Connect().ok());
  ASSERT_TRUE(session_->SetSystem("be kind").ok());
  ASSERT_TRUE(Ask("hello").ok());
  EXPECT_EQ(answer_, "echo: hello");
  ASSERT_TRUE(Ask("again").ok());
  EXPECT_THAT(Conversation(),
              ElementsAre("system: be kind", "user: hello", "assistant: echo: hello", "user: again",
                          "assistant: echo: again"));
  EXPECT_EQ(service_.last_.prompt().messages().messages_size(), 4);
  session_->Reset();
  EXPECT_THAT(Conversation(), ElementsAre("system: be kind"));
  ASSERT_TRUE(session_->SetSystem("").ok());
  EXPECT_THAT(Conversation(), IsEmpty());
}

TEST_F(ChatSessionTest, AFailedTurnIsForgotten) {
  ASSERT_TRUE(Ask("hello").ok());
  const absl::Status status = Ask("fail").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("the queue is full"));
  EXPECT_THAT(Conversation(), ElementsAre("user: hello", "assistant: echo: hello"));
  EXPECT_FALSE(session_->Cancel());
}

TEST_F(ChatSessionTest, ViolationsAreToldByField) {
  const absl::Status status = Ask("invalid").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("\n  sampling.top_p: 2 is not in (0, 1]"));
}

TEST_F(ChatSessionTest, AStreamWithoutItsEndIsAnError) {
  EXPECT_EQ(Ask("cut").status().code(), absl::StatusCode::kInternal);
}

TEST_F(ChatSessionTest, CancelKeepsWhatWasSaid) {
  std::thread other;
  const absl::StatusOr<v1::Finished> finished =
      session_->Ask("endless", [&](std::string_view piece) {
        answer_ += piece;
        if (piece == "endless") other = std::thread([this] { EXPECT_TRUE(session_->Cancel()); });
      });
  other.join();
  EXPECT_EQ(finished.status().code(), absl::StatusCode::kCancelled);
  EXPECT_THAT(Conversation(), ElementsAre("user: endless", "assistant: echo: endless"));
}

TEST_F(ChatSessionTest, ModelsThatCannotChat) {
  service_.roles_ = {"assistant", "user"};
  ASSERT_TRUE(session_->Connect().ok());
  EXPECT_EQ(session_->SetSystem("x").code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(session_->SetSystem("").ok());
  service_.roles_ = {"user"};
  EXPECT_THAT(std::string(session_->Connect().status().message()), HasSubstr("user and assistant"));
  service_.has_template_ = false;
  EXPECT_THAT(std::string(session_->Connect().status().message()), HasSubstr("no chat template"));
}

TEST(InferenceClientTest, NobodyListens) {
  auto channel = OpenChannel({.address = "127.0.0.1:1"});
  ASSERT_TRUE(channel.ok()) << channel.status();
  const InferenceClient client(*std::move(channel), "127.0.0.1:1");
  const absl::Status status = client.GetModel().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("127.0.0.1:1"));
  EXPECT_EQ(client.CheckHealth("").code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace osdn::tools
