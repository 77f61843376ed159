// The whole server in this process, over real sockets: lifetimes, cancels, back-pressure, drain.
// Written to be run under the address and thread sanitizers too.
#include "server/server.h"

#include <gmock/gmock.h>
#include <google/protobuf/text_format.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>
#include <spdlog/sinks/ostream_sink.h>

#include <filesystem>
#include <future>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "tests/unit/engine/test_support.h"

namespace osdn {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr int64_t kVocab = 512;
constexpr char kEndless[] = "stop { max_tokens: 2000000000 ignore_eos: true } ";
constexpr char kService[] = "osdn.v1.InferenceService";

using Health = grpc::health::v1::HealthCheckResponse;

v1::GenerateRequest Request(const std::string& text_proto) {
  v1::GenerateRequest request;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text_proto, &request)) << text_proto;
  return request;
}

void WriteTinyModel(const std::string& dir) {
  ModelConfig config;
  config.name = "tiny";
  config.arch = testing_support::SmallArchitecture();
  config.arch.vocab_size = kVocab;
  config.has_tokenizer = true;
  config.bos_id = 1;
  config.eos_ids = {2};
  ChatTemplate chat;
  chat.roles["user"] = {{{true, "<|user|>"}}, {{true, "<|end|>"}}};
  chat.generation_prompt = {{true, "<|assistant|>"}};
  chat.stop_tokens = {"<|end|>"};
  config.chat = chat;
  std::filesystem::copy_file(testing_support::TestData("tokenizer/tiny.model"),
                             absl::StrCat(dir, "/", kTokenizerFileName));
  testing_support::WriteModel(config, testing_support::RandomTensors(config.arch, 7), dir);
}

class ServerTest : public ::testing::Test {
 protected:
  ServerTest() {
    WriteTinyModel(dir_.path());
    options_.model_dir = dir_.path();
    options_.backend =
        "reference";  // no threads of its own, which the thread sanitizer cannot see into
    options_.grpc_address = "127.0.0.1:0";
    options_.http_address = kOptionNone;
    options_.max_slots = 4;
    options_.max_tokens_limit = 2'000'000'000;
    logger_ = std::make_shared<spdlog::logger>(
        "test", std::make_shared<spdlog::sinks::ostream_sink_mt>(log_));
    logger_->set_level(spdlog::level::debug);
  }

  void Listen() {
    absl::StatusOr<std::unique_ptr<Server>> server = Server::Listen(options_, logger_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    channel_ =
        grpc::CreateChannel(server_->address().ToString(), grpc::InsecureChannelCredentials());
    stub_ = v1::InferenceService::NewStub(channel_);
  }
  void Start() {
    Listen();
    const absl::Status loaded = server_->Load();
    ASSERT_TRUE(loaded.ok()) << loaded;
  }

  grpc::Status Generate(const std::string& text_proto, v1::GenerateResponse* response) {
    grpc::ClientContext context;
    return stub_->Generate(&context, Request(text_proto), response);
  }

  // Reads a stream to its end: concatenated deltas, and its last frame.
  struct Streamed {
    std::string text;
    std::vector<uint32_t> ids;
    v1::Finished finished;
    int finished_frames = 0;
    std::vector<uint64_t> progress;
    grpc::Status status;
  };
  Streamed Stream(const std::string& text_proto) {
    Streamed result;
    grpc::ClientContext context;
    auto reader = stub_->GenerateStream(&context, Request(text_proto));
    v1::GenerateStreamResponse frame;
    while (reader->Read(&frame)) {
      EXPECT_EQ(result.finished_frames, 0) << "a frame after the last";
      result.text += frame.delta().text();
      result.ids.insert(result.ids.end(), frame.delta().token_ids().begin(),
                        frame.delta().token_ids().end());
      if (frame.has_prefill_progress()) {
        result.progress.push_back(frame.prefill_progress().processed_tokens());
      }
      if (!frame.has_finished()) continue;
      result.finished = frame.finished();
      ++result.finished_frames;
    }
    result.status = reader->Finish();
    return result;
  }

  Health::ServingStatus CheckHealth(const std::string& service) {
    const auto stub = grpc::health::v1::Health::NewStub(channel_);
    grpc::ClientContext context;
    grpc::health::v1::HealthCheckRequest request;
    request.set_service(service);
    grpc::health::v1::HealthCheckResponse response;
    const grpc::Status status = stub->Check(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.status();
  }

  testing_support::TempDir dir_;
  ServerOptions options_;
  std::ostringstream log_;
  std::shared_ptr<spdlog::logger> logger_;
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::InferenceService::Stub> stub_;
};

TEST_F(ServerTest, IsUnavailableUntilTheModelIsLoaded) {
  Listen();
  EXPECT_EQ(CheckHealth(""), Health::NOT_SERVING);
  EXPECT_EQ(CheckHealth(kService), Health::NOT_SERVING);
  v1::GenerateResponse response;
  EXPECT_EQ(Generate("prompt { text: 'a' }", &response).error_code(), grpc::UNAVAILABLE);
  EXPECT_EQ(Stream("prompt { text: 'a' }").status.error_code(), grpc::UNAVAILABLE);
  grpc::ClientContext context;
  v1::GetModelResponse model;
  EXPECT_EQ(stub_->GetModel(&context, {}, &model).error_code(), grpc::UNAVAILABLE);

  ASSERT_TRUE(server_->Load().ok());
  EXPECT_EQ(CheckHealth(""), Health::SERVING);
  EXPECT_EQ(CheckHealth(kService), Health::SERVING);
  EXPECT_TRUE(Generate("prompt { text: 'a' } stop { max_tokens: 1 }", &response).ok());
}

TEST_F(ServerTest, StreamAndUnaryGiveTheSame) {
  Start();
  const std::string request =
      "prompt { text: 'Hello world' } sampling { seed: 11 } stop { max_tokens: 40 ignore_eos: true "
      "}";
  v1::GenerateResponse unary;
  const grpc::Status status = Generate(request, &unary);
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(unary.choices_size(), 1);
  const v1::Choice& choice = unary.choices(0);
  EXPECT_EQ(choice.token_ids_size(), 40);
  EXPECT_EQ(choice.finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(unary.usage().completion_tokens(), 40U);
  EXPECT_EQ(unary.params().sampling().seed(), 11U);
  EXPECT_EQ(unary.model(), "tiny");

  const Streamed streamed = Stream(request);
  ASSERT_TRUE(streamed.status.ok()) << streamed.status.error_message();
  EXPECT_EQ(streamed.finished_frames, 1);
  EXPECT_EQ(streamed.text, choice.text());
  EXPECT_FALSE(streamed.text.empty());
  EXPECT_THAT(streamed.ids, ::testing::ElementsAreArray(choice.token_ids()));
  EXPECT_EQ(streamed.finished.usage().prompt_tokens(), unary.usage().prompt_tokens());
  EXPECT_EQ(streamed.finished.finish_reason(), v1::FINISH_REASON_LENGTH);
}

TEST_F(ServerTest, ADrawnSeedIsEchoedAndRepeatsTheAnswer) {
  Start();
  v1::GenerateResponse first;
  v1::GenerateResponse other;
  v1::GenerateResponse again;
  const std::string request = "prompt { text: 'Hello' } stop { max_tokens: 30 ignore_eos: true } ";
  ASSERT_TRUE(Generate(request, &first).ok());
  ASSERT_TRUE(Generate(request, &other).ok());
  EXPECT_NE(first.params().sampling().seed(), other.params().sampling().seed());
  ASSERT_TRUE(
      Generate(absl::StrCat(request, "sampling { seed: ", first.params().sampling().seed(), " }"),
               &again)
          .ok());
  EXPECT_EQ(again.choices(0).text(), first.choices(0).text());
}

TEST_F(ServerTest, PrefillProgressIsToldWhenAsked) {
  Start();
  std::string ids = "5";
  for (int i = 1; i < 600; ++i) absl::StrAppend(&ids, ", ", i % 500 + 3);
  const std::string request =
      absl::StrCat("prompt { tokens { ids: [", ids, "] } } stop { max_tokens: 1 } ");
  const Streamed asked = Stream(request + "output { prefill_progress: true }");
  ASSERT_TRUE(asked.status.ok()) << asked.status.error_message();
  ASSERT_FALSE(asked.progress.empty());
  EXPECT_TRUE(std::is_sorted(asked.progress.begin(), asked.progress.end()));
  EXPECT_EQ(asked.progress.back(), 600U);
  EXPECT_TRUE(Stream(request).progress.empty());
}

TEST_F(ServerTest, EveryViolationReachesTheClient) {
  Start();
  v1::GenerateResponse response;
  const grpc::Status status =
      Generate("sampling { temperature: nan top_p: 0 } stop { max_tokens: 0 stop_token_ids: 512 }",
               &response);
  EXPECT_EQ(status.error_code(), grpc::INVALID_ARGUMENT);
  google::rpc::Status rich;
  ASSERT_TRUE(rich.ParseFromString(status.error_details()));
  google::rpc::BadRequest bad_request;
  ASSERT_EQ(rich.details_size(), 1);
  ASSERT_TRUE(rich.details(0).UnpackTo(&bad_request));
  std::vector<std::string> fields;
  for (const auto& violation : bad_request.field_violations()) fields.push_back(violation.field());
  EXPECT_THAT(fields,
              ::testing::UnorderedElementsAre("prompt", "sampling.temperature", "sampling.top_p",
                                              "stop.max_tokens", "stop.stop_token_ids[0]"));
  EXPECT_EQ(Stream("").status.error_code(), grpc::INVALID_ARGUMENT);
}

TEST_F(ServerTest, AFullQueueIsRefusedWithARetryDelay) {
  options_.max_slots = 1;
  options_.max_queued_requests = 1;
  options_.max_swapped = 0;  // the first, which is not read, keeps its slot
  Start();
  const std::string request = absl::StrCat("prompt { text: 'a' } ", kEndless);
  grpc::ClientContext running;
  auto first = stub_->GenerateStream(&running, Request(request));
  v1::GenerateStreamResponse frame;
  ASSERT_TRUE(first->Read(&frame));  // has the slot
  grpc::ClientContext queued;
  auto second = stub_->GenerateStream(&queued, Request(request));
  // The second may not be queued yet: at the latest the next but one finds the queue full.
  grpc::Status status;
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateStreamResponse>>> readers;
  while (status.error_code() != grpc::RESOURCE_EXHAUSTED) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(200));
    v1::GenerateResponse response;
    status = stub_->Generate(&context, Request(request), &response);
    ASSERT_THAT(status.error_code(),
                ::testing::AnyOf(grpc::RESOURCE_EXHAUSTED, grpc::DEADLINE_EXCEEDED));
  }
  google::rpc::Status rich;
  ASSERT_TRUE(rich.ParseFromString(status.error_details()));
  google::rpc::RetryInfo retry;
  ASSERT_EQ(rich.details_size(), 1);
  ASSERT_TRUE(rich.details(0).UnpackTo(&retry));
  EXPECT_GT(retry.retry_delay().seconds() + retry.retry_delay().nanos(), 0);

  running.TryCancel();
  queued.TryCancel();
  while (first->Read(&frame)) {
  }
  EXPECT_EQ(first->Finish().error_code(), grpc::CANCELLED);
  while (second->Read(&frame)) {
  }
  EXPECT_EQ(second->Finish().error_code(), grpc::CANCELLED);
}

TEST_F(ServerTest, CancelledCallsGiveTheirSlotBack) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  options_.max_slots = 2;
  Start();
  const std::string request = absl::StrCat("prompt { text: 'Hello' } ", kEndless);
  std::vector<std::thread> clients;
  for (uint64_t client = 0; client < 4; ++client) {
    clients.emplace_back([this, &request, client, seed] {
      std::mt19937_64 random(seed + client);
      for (int call = 0; call < 25; ++call) {
        grpc::ClientContext context;
        auto reader = stub_->GenerateStream(&context, Request(request));
        v1::GenerateStreamResponse frame;
        for (uint64_t reads = random() % 4; reads > 0 && reader->Read(&frame); --reads) {
        }
        context.TryCancel();
        while (reader->Read(&frame)) {
        }
        EXPECT_EQ(reader->Finish().error_code(), grpc::CANCELLED);
      }
    });
  }
  for (std::thread& client : clients) client.join();
  v1::GenerateResponse response;
  EXPECT_TRUE(Generate("prompt { text: 'a' } stop { max_tokens: 2 }", &response).ok());
}

TEST_F(ServerTest, ADeadlineEndsTheCallAndFreesTheSlot) {
  options_.max_slots = 1;
  Start();
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(100));
  v1::GenerateResponse response;
  const grpc::Status status = stub_->Generate(
      &context, Request(absl::StrCat("prompt { text: 'a' } ", kEndless)), &response);
  EXPECT_EQ(status.error_code(), grpc::DEADLINE_EXCEEDED);
  EXPECT_TRUE(Generate("prompt { text: 'a' } stop { max_tokens: 2 }", &response).ok());
}

TEST_F(ServerTest, AReaderWhoDoesNotReadSlowsNobody) {
  Start();
  grpc::ClientContext context;
  auto lazy =
      stub_->GenerateStream(&context, Request(absl::StrCat("prompt { text: 'a' } ", kEndless)));
  v1::GenerateStreamResponse frame;
  ASSERT_TRUE(lazy->Read(&frame));
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(
        Stream("prompt { text: 'b' } stop { max_tokens: 300 ignore_eos: true }").status.ok());
  }
  context.TryCancel();
  while (lazy->Read(&frame)) {
  }
  EXPECT_EQ(lazy->Finish().error_code(), grpc::CANCELLED);
}

TEST_F(ServerTest, DrainRefusesNewCallsAndEndsOldOnes) {
  Start();
  grpc::ClientContext context;
  auto endless =
      stub_->GenerateStream(&context, Request(absl::StrCat("prompt { text: 'a' } ", kEndless)));
  v1::GenerateStreamResponse frame;
  ASSERT_TRUE(endless->Read(&frame));
  std::future<grpc::Status> end = std::async(std::launch::async, [&endless] {
    v1::GenerateStreamResponse ignored;
    while (endless->Read(&ignored)) {
    }
    return endless->Finish();
  });
  server_->Drain(absl::ZeroDuration(), absl::Milliseconds(100));
  EXPECT_EQ(end.get().error_code(), grpc::UNAVAILABLE);
  v1::GenerateResponse response;
  EXPECT_EQ(Generate("prompt { text: 'a' }", &response).error_code(), grpc::UNAVAILABLE);
}

TEST_F(ServerTest, HealthFollowsTheDrain) {
  Start();
  EXPECT_TRUE(server_->CheckHealth());
  std::thread drain([this] { server_->Drain(absl::Milliseconds(500), absl::Seconds(30)); });
  while (CheckHealth("") != Health::NOT_SERVING) std::this_thread::yield();
  EXPECT_EQ(CheckHealth(kService), Health::NOT_SERVING);
  drain.join();
}

TEST_F(ServerTest, RunningCallsFinishWithinTheDrain) {
  Start();
  grpc::ClientContext context;
  auto reader = stub_->GenerateStream(
      &context, Request("prompt { text: 'a' } stop { max_tokens: 500 ignore_eos: true }"));
  v1::GenerateStreamResponse frame;
  ASSERT_TRUE(reader->Read(&frame));
  std::thread drain([this] { server_->Drain(absl::ZeroDuration(), absl::Minutes(2)); });
  v1::FinishReason reason = v1::FINISH_REASON_UNSPECIFIED;
  while (reader->Read(&frame)) {
    if (frame.has_finished()) reason = frame.finished().finish_reason();
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(reason, v1::FINISH_REASON_LENGTH);
  drain.join();
}

TEST_F(ServerTest, DestructionEndsWhatRuns) {
  Start();
  grpc::ClientContext context;
  auto endless =
      stub_->GenerateStream(&context, Request(absl::StrCat("prompt { text: 'a' } ", kEndless)));
  v1::GenerateStreamResponse frame;
  ASSERT_TRUE(endless->Read(&frame));
  std::thread reader([&] {
    while (endless->Read(&frame)) {
    }
    EXPECT_FALSE(endless->Finish().ok());
  });
  server_.reset();
  reader.join();
}

TEST_F(ServerTest, TokenizeAndDetokenizeMirrorEachOther) {
  Start();
  v1::TokenizeRequest request;
  request.set_text("Hello world");
  request.set_add_bos(true);
  v1::TokenizeResponse tokens;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(stub_->Tokenize(&context, request, &tokens).ok());
  }
  ASSERT_GT(tokens.tokens_size(), 2);
  EXPECT_EQ(tokens.tokens(0).id(), 1U);
  EXPECT_EQ(tokens.tokens(0).piece(), "<s>");
  EXPECT_EQ(tokens.tokens(0).bytes(), "");
  v1::DetokenizeRequest back;
  std::string bytes;
  for (const v1::Token& token : tokens.tokens()) {
    back.add_ids(token.id());
    bytes += token.bytes();
  }
  EXPECT_EQ(bytes, " Hello world");
  v1::DetokenizeResponse text;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(stub_->Detokenize(&context, back, &text).ok());
  }
  EXPECT_EQ(text.text(), "Hello world");

  back.add_ids(kVocab);
  grpc::ClientContext context;
  const grpc::Status status = stub_->Detokenize(&context, back, &text);
  EXPECT_EQ(status.error_code(), grpc::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(),
              HasSubstr(absl::StrCat("ids[", tokens.tokens_size(), "]: 512")));
}

TEST_F(ServerTest, GetModelTellsWhatIsServed) {
  options_.max_tokens_default = 17;
  Start();
  grpc::ClientContext context;
  v1::GetModelResponse model;
  ASSERT_TRUE(stub_->GetModel(&context, {}, &model).ok());
  EXPECT_EQ(model.name(), "tiny");
  EXPECT_EQ(model.model_id().size(), 64U);
  EXPECT_EQ(model.architecture().type(), "osdn");
  EXPECT_EQ(model.architecture().vocab_size(), 512U);
  EXPECT_GT(model.architecture().parameters(), 2U * 512 * 24);
  EXPECT_TRUE(model.has_tokenizer());
  EXPECT_TRUE(model.has_chat_template());
  EXPECT_THAT(model.chat_roles(), ::testing::ElementsAre("user"));
  EXPECT_EQ(model.max_running(), 4U);
  EXPECT_GT(model.state_bytes_per_sequence(), 0U);
  EXPECT_EQ(model.max_tokens_default(), 17U);
  EXPECT_EQ(model.backend(), "reference");
}

TEST_F(ServerTest, APortInUseIsAnError) {
  Start();
  options_.grpc_address = server_->address().ToString();
  const absl::StatusOr<std::unique_ptr<Server>> second = Server::Listen(options_, logger_);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(second.status().message()),
              AllOf(HasSubstr(options_.grpc_address), HasSubstr("in use")));
}

TEST_F(ServerTest, BadModelsAreErrorsThatNameTheThing) {
  const std::string weights = dir_.File(kWeightsFileName);
  std::string bytes = testing_support::ReadFile(weights);
  bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
  testing_support::WriteFile(weights, bytes);
  Listen();
  const absl::Status corrupt = server_->Load();
  EXPECT_EQ(corrupt.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(corrupt.message()), HasSubstr(kWeightsFileName));
  EXPECT_EQ(CheckHealth(""), Health::NOT_SERVING);

  options_.model_dir = dir_.File("missing");
  Listen();
  const absl::Status missing = server_->Load();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.message()), HasSubstr("missing"));
}

TEST_F(ServerTest, OversizedMessagesAreRefused) {
  options_.max_message_bytes = 1024;
  Start();
  v1::GenerateResponse response;
  const grpc::Status status =
      Generate(absl::StrCat("prompt { text: '", std::string(2000, 'a'), "' }"), &response);
  EXPECT_EQ(status.error_code(), grpc::RESOURCE_EXHAUSTED);
}

TEST_F(ServerTest, ThirtyTwoStreamsGetWhatEachGetsAlone) {
  options_.max_slots = 8;
  Start();
  const auto request = [](int i) {
    return absl::StrCat("prompt { text: 'Number ", i, "' } sampling { seed: ", i,
                        " } stop { max_tokens: 40 }");
  };
  std::vector<std::future<Streamed>> together;
  for (int i = 0; i < 32; ++i) {
    together.push_back(
        std::async(std::launch::async, [this, text = request(i)] { return Stream(text); }));
  }
  for (int i = 0; i < 32; ++i) {
    const Streamed got = together[static_cast<size_t>(i)].get();
    const Streamed alone = Stream(request(i));
    ASSERT_TRUE(got.status.ok()) << got.status.error_message();
    EXPECT_EQ(got.ids, alone.ids) << "stream " << i;
    EXPECT_EQ(got.text, alone.text) << "stream " << i;
  }
}

TEST_F(ServerTest, TheLogHoldsNoContent) {
  Start();
  v1::GenerateResponse response;
  ASSERT_TRUE(
      Generate("prompt { text: 'very secret words' } stop { max_tokens: 5 }", &response).ok());
  Generate("prompt { messages { messages { role: 'secret role' } } }", &response).ok();
  server_.reset();
  EXPECT_THAT(log_.str(), AllOf(HasSubstr(R"("method":"Generate","code":"OK")"),
                                HasSubstr(R"("completion_tokens":)"),
                                HasSubstr(R"("method":"Generate","code":"INVALID_ARGUMENT")"),
                                Not(HasSubstr("secret"))));
}

}  // namespace
}  // namespace osdn
