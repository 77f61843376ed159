#include "server/generate_calls.h"

#include <algorithm>
#include <string>
#include <utility>

#include "server/chat_mapping.h"
#include "server/generation_call.h"
#include "server/request_mapping.h"
#include "server/score_mapping.h"
#include "server/status.h"

namespace osdn {
namespace {

// A message that lives as long as the call, as the calls hold it.
template <class Message>
std::shared_ptr<const Message> Borrow(const Message* message) {
  return {std::shared_ptr<const void>(), message};
}

// The element of `index`, made with all before it where it is not there yet.
template <class Message>
Message* At(google::protobuf::RepeatedPtrField<Message>* messages, int index) {
  while (messages->size() <= index) {
    Message* added = messages->Add();
    added->set_index(static_cast<uint32_t>(messages->size() - 1));
  }
  return messages->Mutable(index);
}

// The parts of usage and timings that choices have in common are told by choice 0, whose prompt was
// read; the rest adds up.
template <class Response>
void AddChoice(const GenerationFinished& finished, Response* response) {
  v1::Usage* usage = response->mutable_usage();
  v1::Timings* timings = response->mutable_timings();
  const v1::Timings own = ToTimings(finished.timings);
  const uint64_t completion_tokens = usage->completion_tokens();
  const double decode_ms = timings->decode_ms();
  if (finished.choice == 0) {
    *usage = ToUsage(finished);
    *timings = own;
    usage->set_completion_tokens(0);
  }
  usage->set_completion_tokens(completion_tokens +
                               static_cast<uint64_t>(finished.completion_tokens));
  timings->set_decode_ms(std::max(decode_ms, own.decode_ms()));
}

class UnaryCall final : public grpc::ServerUnaryReactor, private GenerationCall {
 public:
  UnaryCall(const CallKind& kind, const CallEnvironment& environment,
            std::shared_ptr<const v1::GenerateRequest> request, v1::GenerateResponse* response)
      : GenerationCall(kind, environment, std::move(request)), response_(response) {
    Begin();
  }

  void OnCancel() override { driver().Cancel(); }
  void OnDone() override { delete this; }

 private:
  bool OnDelta(const TokenDelta& delta) override {
    v1::Choice* choice = At(response_->mutable_choices(), delta.choice);
    choice->mutable_token_ids()->Add(delta.token_ids.begin(), delta.token_ids.end());
    choice->mutable_text()->append(delta.text);
    AddLogprobs(delta, choice->mutable_logprobs());
    return true;
  }
  bool OnProgress(const PrefillProgress&) override { return true; }

  bool OnChoice(const GenerationFinished& finished, StateAccess::Left left) override {
    v1::Choice* choice = At(response_->mutable_choices(), finished.choice);
    choice->set_finish_reason(ToProto(finished.reason));
    choice->set_stop_string(finished.matched_stop_string);
    choice->set_role(role());
    *choice->mutable_usage() = ToUsage(finished);
    AddChoice(finished, response_);
    if (params().sampling().n() > 1) {
      TellState(std::move(left), choice);
    } else {
      TellState(std::move(left), response_);
    }
    if (!finished.last) return true;
    *response_->mutable_params() = params();
    response_->set_model(model_name());
    Finish(grpc::Status::OK);
    return true;
  }
  void Fail(const absl::Status& status) override { Finish(ToGrpcStatus(status)); }

  v1::GenerateResponse* const response_;
};

class StreamCall final : public grpc::ServerWriteReactor<v1::GenerateStreamResponse>,
                         private GenerationCall {
 public:
  StreamCall(const CallKind& kind, const CallEnvironment& environment,
             std::shared_ptr<const v1::GenerateRequest> request)
      : GenerationCall(kind, environment, std::move(request)) {
    Begin();
  }

  void OnWriteDone(bool ok) override {
    // A failed write means a dead client. Go on to the stream's end without writing.
    if (!ok) driver().Cancel();
    driver().Resume();
  }
  void OnCancel() override { driver().Cancel(); }
  void OnDone() override { delete this; }

 private:
  bool OnDelta(const TokenDelta& delta) override {
    SetFrame(delta, &frame_);
    return Write();
  }

  bool OnProgress(const PrefillProgress& progress) override {
    SetFrame(progress, &frame_);
    return Write();
  }

  bool Write() {
    if (driver().cancelled()) return true;
    StartWrite(&frame_);
    return false;
  }

  bool OnChoice(const GenerationFinished& finished, StateAccess::Left left) override {
    SetFrame(finished, std::move(left), &frame_);
    ToldStates();
    if (!finished.last) return Write();
    StartWriteAndFinish(&frame_, grpc::WriteOptions(), grpc::Status::OK);
    return true;
  }
  void Fail(const absl::Status& status) override { Finish(ToGrpcStatus(status)); }

  v1::GenerateStreamResponse frame_;
};

class ScoreCall final : public grpc::ServerUnaryReactor, private GenerationCall {
 public:
  ScoreCall(const CallEnvironment& environment, const v1::ScoreRequest* request,
            v1::ScoreResponse* response)
      : GenerationCall({.method = "Score", .score = request}, environment,
                       std::make_shared<v1::GenerateRequest>(ToGenerateRequest(*request))),
        response_(response) {
    Begin();
  }

  void OnCancel() override { driver().Cancel(); }
  void OnDone() override { delete this; }

 private:
  bool OnDelta(const TokenDelta& delta) override {
    AddToScore(delta, tokenizer(), At(response_->mutable_scores(), delta.choice));
    return true;
  }
  bool OnProgress(const PrefillProgress&) override { return true; }

  bool OnChoice(const GenerationFinished& finished, StateAccess::Left) override {
    // A part of a score would look like all of it.
    out_of_time_ = out_of_time_ || finished.reason == FinishReason::kTime;
    AddChoice(finished, response_);
    if (!finished.last) return true;
    response_->set_model(model_name());
    Finish(out_of_time_ ? grpc::Status(grpc::StatusCode::DEADLINE_EXCEEDED,
                                       "scheduling.max_time_ms passed before all was scored")
                        : grpc::Status::OK);
    return true;
  }
  void Fail(const absl::Status& status) override { Finish(ToGrpcStatus(status)); }

  v1::ScoreResponse* const response_;
  bool out_of_time_ = false;
};

std::shared_ptr<const v1::GenerateRequest> PromptOf(const v1::SaveStateRequest& request) {
  auto generate = std::make_shared<v1::GenerateRequest>();
  *generate->mutable_prompt() = request.prompt();
  *generate->mutable_state() = request.state();
  *generate->mutable_cache() = request.cache();
  v1::StateOptions* state = generate->mutable_state();
  if (!state->has_save_state_as()) state->set_save_state_as("");
  return generate;
}

class SaveStateCall final : public grpc::ServerUnaryReactor, private GenerationCall {
 public:
  SaveStateCall(const CallEnvironment& environment, const v1::SaveStateRequest* request,
                v1::SaveStateResponse* response)
      : GenerationCall({.method = "SaveState", .prompt_only = true}, environment,
                       PromptOf(*request)),
        response_(response) {
    Begin();
  }

  void OnCancel() override { driver().Cancel(); }
  void OnDone() override { delete this; }

 private:
  bool OnDelta(const TokenDelta&) override { return true; }
  bool OnProgress(const PrefillProgress&) override { return true; }
  bool OnChoice(const GenerationFinished& finished, StateAccess::Left left) override {
    *response_->mutable_usage() = ToUsage(finished);
    TellState(std::move(left), response_);
    Finish(grpc::Status::OK);
    return true;
  }
  void Fail(const absl::Status& status) override { Finish(ToGrpcStatus(status)); }

  v1::SaveStateResponse* const response_;
};

}  // namespace

grpc::ServerUnaryReactor* StartGenerateCall(const CallEnvironment& environment,
                                            const v1::GenerateRequest* request,
                                            v1::GenerateResponse* response) {
  return new UnaryCall({.method = "Generate"}, environment, Borrow(request), response);
}

grpc::ServerWriteReactor<v1::GenerateStreamResponse>* StartGenerateStreamCall(
    const CallEnvironment& environment, const v1::GenerateRequest* request) {
  return new StreamCall({.method = "GenerateStream"}, environment, Borrow(request));
}

grpc::ServerUnaryReactor* StartChatCall(const CallEnvironment& environment,
                                        const v1::ChatRequest* request,
                                        v1::GenerateResponse* response) {
  return new UnaryCall({.method = "Chat", .chat = true}, environment,
                       std::make_shared<v1::GenerateRequest>(ToGenerateRequest(*request)),
                       response);
}

grpc::ServerWriteReactor<v1::GenerateStreamResponse>* StartChatStreamCall(
    const CallEnvironment& environment, const v1::ChatRequest* request) {
  return new StreamCall({.method = "ChatStream", .chat = true}, environment,
                        std::make_shared<v1::GenerateRequest>(ToGenerateRequest(*request)));
}

grpc::ServerUnaryReactor* StartScoreCall(const CallEnvironment& environment,
                                         const v1::ScoreRequest* request,
                                         v1::ScoreResponse* response) {
  return new ScoreCall(environment, request, response);
}

grpc::ServerUnaryReactor* StartSaveStateCall(const CallEnvironment& environment,
                                             const v1::SaveStateRequest* request,
                                             v1::SaveStateResponse* response) {
  return new SaveStateCall(environment, request, response);
}

}  // namespace osdn
