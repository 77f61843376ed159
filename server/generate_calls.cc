#include "server/generate_calls.h"

#include <chrono>
#include <random>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/generation_driver.h"
#include "server/request_mapping.h"
#include "server/status.h"

namespace osdn {
namespace {

uint64_t DrawSeed() {
  std::random_device device;
  return (static_cast<uint64_t>(device()) << 32) | device();
}

// Reads and checks `request`: every violation at once.
absl::StatusOr<GenerationRequest> ReadRequest(const CallEnvironment& environment,
                                              const v1::GenerateRequest& request,
                                              bool prompt_only) {
  RequestContext context;
  auto resume = environment.states->Load(request.state());
  if (!resume.ok()) return resume.status();
  context.resume = *std::move(resume);
  context.prompt_only = prompt_only;
  context.config = &environment.engine->config();
  context.tokenizer = environment.engine->tokenizer();
  context.max_tokens_default = environment.max_tokens_default;
  context.max_tokens_limit = environment.max_tokens_limit;
  context.drawn_seed = DrawSeed();
  std::vector<FieldViolation> violations;
  GenerationRequest result = ToGenerationRequest(request, context, &violations);
  result.scheduling.client = environment.client;
  result.scheduling.deadline = environment.deadline;
  MergeViolations(environment.engine->Validate(result), &violations);
  if (!violations.empty()) return InvalidRequestError(violations);
  return result;
}

// What both kinds of call share: reading the request off gRPC's threads, submitting it, and the way
// to the end. Deltas and the end are the derived class's.
class GenerationCall : public GenerationSink {
 public:
  bool OnEvent(GenerationEvent event) final {
    if (auto* finished = std::get_if<GenerationFinished>(&event)) {
      End(*finished);
      return true;
    }
    if (auto* delta = std::get_if<TokenDelta>(&event)) return OnDelta(*delta);
    return OnProgress(std::get<PrefillProgress>(event));
  }

 protected:
  GenerationCall(const char* method, const CallEnvironment& environment,
                 const v1::GenerateRequest* request, bool prompt_only = false)
      : environment_(environment),
        method_(method),
        request_(request),
        prompt_only_(prompt_only),
        driver_(std::make_shared<GenerationDriver>(this, environment.writers)) {}
  ~GenerationCall() = default;

  // The next event may come at once (true) or after driver().Resume() (false).
  virtual bool OnDelta(const TokenDelta& delta) = 0;
  virtual bool OnProgress(const PrefillProgress& progress) = 0;
  // Exactly one of these ends the call; nothing of this object is touched afterwards.
  virtual void Complete(const GenerationFinished& finished) = 0;
  virtual void Fail(const grpc::Status& status) = 0;

  // Last thing of the constructor: from here on other threads know the call.
  void Begin() {
    // Where there is a state to be read, on the threads that may wait for the disk.
    const bool reads = request_->state().from_case() != v1::StateOptions::FROM_NOT_SET;
    (reads ? environment_.storage : environment_.workers)->Post([this] { Read(); });
  }

  GenerationDriver& driver() { return *driver_; }
  const v1::ResolvedParams& params() const { return params_; }
  void AddLogprobs(const TokenDelta& delta,
                   google::protobuf::RepeatedPtrField<v1::TokenLogprob>* logprobs) const {
    for (const TokenLogprob& logprob : delta.logprobs) {
      *logprobs->Add() = ToProto(logprob, environment_.engine->tokenizer());
    }
  }
  // What was kept of the state, by the time of Complete.
  StateAccess::Left& left() { return left_; }
  const std::string& model_name() const { return environment_.engine->config().name; }

 private:
  void Read() {
    if (driver_->cancelled()) return FailWith(absl::CancelledError("cancelled by the client"));
    absl::StatusOr<GenerationRequest> request = ReadRequest(environment_, *request_, prompt_only_);
    if (!request.ok()) return FailWith(request.status());
    if (request->state.want_state) {
      StateAccess* states = environment_.states;
      absl::Status s = states->transit().Add(states->image_bytes(), &left_hold_);
      if (!s.ok()) return FailWith(s);
    }
    params_ = ToResolvedParams(*request);
    if (request->constraint_spec.kind == ConstraintSpec::Kind::kNone) {
      return Submit(*std::move(request));
    }
    ConstraintSpec spec = request->constraint_spec;
    auto shared = std::make_shared<GenerationRequest>(*std::move(request));
    environment_.engine->CompileConstraint(
        std::move(spec), [this] { return StillWanted(); },
        [this, shared](ConstraintCompiler::Result constraint) {
          SubmitUnder(std::move(constraint), shared.get());
        });
  }

  absl::Status StillWanted() const {
    if (driver_->cancelled()) return absl::CancelledError("cancelled by the client");
    if (environment_.deadline.has_value() &&
        *environment_.deadline <= std::chrono::steady_clock::now()) {
      return absl::DeadlineExceededError(
          "the deadline passed while the constraint waited to be compiled");
    }
    return absl::OkStatus();
  }

  void SubmitUnder(ConstraintCompiler::Result constraint, GenerationRequest* request) {
    if (absl::IsInvalidArgument(constraint.status())) {
      return FailWith(InvalidRequestError(
          {FieldViolation{"constraint", std::string(constraint.status().message())}}));
    }
    if (absl::IsResourceExhausted(constraint.status())) {
      return FailWith(WithRetryDelay(constraint.status(), kRetryDelay));
    }
    if (!constraint.ok()) return FailWith(constraint.status());
    if (absl::Status s = BeginConstraint(*std::move(constraint), request); !s.ok()) {
      return FailWith(s);
    }
    Submit(std::move(*request));
  }

  void Submit(GenerationRequest request) {
    absl::StatusOr<std::shared_ptr<TokenStream>> stream =
        environment_.engine->Submit(std::move(request));
    if (!stream.ok()) {
      const bool full = absl::IsResourceExhausted(stream.status());
      return FailWith(full ? WithRetryDelay(stream.status(), kRetryDelay) : stream.status());
    }
    // The call may end, and this object with it, before Start returns.
    const std::shared_ptr<GenerationDriver> driver = driver_;
    driver->Start(*stream);
  }

  void End(const GenerationFinished& finished) {
    if (finished.reason == FinishReason::kError) return FailWith(finished.status);
    if (finished.reason == FinishReason::kCancelled) {
      return FailWith(absl::CancelledError("cancelled by the client"));
    }
    if (finished.state == nullptr) return EndWell(finished);
    environment_.storage->Post([this, finished] {
      // Nobody would learn the id of what is left.
      if (driver_->cancelled()) return FailWith(absl::CancelledError("cancelled by the client"));
      absl::StatusOr<StateAccess::Left> left =
          environment_.states->Leave(*finished.state, request_->state());
      if (!left.ok()) return FailWith(left.status());
      left_ = *std::move(left);
      EndWell(finished);
    });
  }

  void EndWell(const GenerationFinished& finished) {
    Log(absl::StatusCode::kOk, finished.prompt_tokens, finished.completion_tokens);
    Complete(finished);
  }

  void FailWith(const absl::Status& status) {
    Log(status.code(), 0, 0);
    if (absl::IsInternal(status))
      environment_.logger->error("{}: {}", method_, std::string(status.message()));
    Fail(ToGrpcStatus(status));
  }

  // Never what the request holds: no prompt, no text.
  void Log(absl::StatusCode code, int64_t prompt_tokens, int64_t completion_tokens) const {
    const std::chrono::duration<double, std::milli> elapsed =
        std::chrono::steady_clock::now() - start_;
    environment_.logger->debug("{} {} prompt_tokens={} completion_tokens={} ms={:.1f}", method_,
                               absl::StatusCodeToString(code), prompt_tokens, completion_tokens,
                               elapsed.count());
  }

  const CallEnvironment environment_;
  const char* const method_;
  const v1::GenerateRequest* const request_;
  const bool prompt_only_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  const std::shared_ptr<GenerationDriver> driver_;
  v1::ResolvedParams params_;
  ByteBudget::Hold left_hold_;  // of the state at the end, from the start
  StateAccess::Left left_;
};

// The state that was kept, into a message that has fields for it.
template <class Message>
void TellState(StateAccess::Left* left, Message* message) {
  if (!left->info.state_id().empty()) *message->mutable_state() = std::move(left->info);
  message->set_state_blob(std::move(left->blob));
}

class UnaryCall final : public grpc::ServerUnaryReactor, private GenerationCall {
 public:
  UnaryCall(const CallEnvironment& environment, const v1::GenerateRequest* request,
            v1::GenerateResponse* response)
      : GenerationCall("Generate", environment, request), response_(response) {
    choice_ = response_->add_choices();
    Begin();
  }

  void OnCancel() override { driver().Cancel(); }
  void OnDone() override { delete this; }

 private:
  bool OnDelta(const TokenDelta& delta) override {
    choice_->mutable_token_ids()->Add(delta.token_ids.begin(), delta.token_ids.end());
    choice_->mutable_text()->append(delta.text);
    AddLogprobs(delta, choice_->mutable_logprobs());
    return true;
  }
  bool OnProgress(const PrefillProgress&) override { return true; }

  void Complete(const GenerationFinished& finished) override {
    choice_->set_finish_reason(ToProto(finished.reason));
    choice_->set_stop_string(finished.matched_stop_string);
    *response_->mutable_usage() = ToUsage(finished);
    *response_->mutable_timings() = ToTimings(finished.timings);
    *response_->mutable_params() = params();
    response_->set_model(model_name());
    TellState(&left(), response_);
    Finish(grpc::Status::OK);
  }
  void Fail(const grpc::Status& status) override { Finish(status); }

  v1::GenerateResponse* const response_;
  v1::Choice* choice_;
};

class StreamCall final : public grpc::ServerWriteReactor<v1::GenerateStreamResponse>,
                         private GenerationCall {
 public:
  StreamCall(const CallEnvironment& environment, const v1::GenerateRequest* request)
      : GenerationCall("GenerateStream", environment, request) {
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
    v1::Delta* message = frame_.mutable_delta();
    message->Clear();
    message->set_text(delta.text);
    message->mutable_token_ids()->Add(delta.token_ids.begin(), delta.token_ids.end());
    AddLogprobs(delta, message->mutable_logprobs());
    return Write();
  }

  bool OnProgress(const PrefillProgress& progress) override {
    v1::PrefillProgress* message = frame_.mutable_prefill_progress();
    message->set_processed_tokens(static_cast<uint64_t>(progress.processed_tokens));
    message->set_prompt_tokens(static_cast<uint64_t>(progress.prompt_tokens));
    return Write();
  }

  bool Write() {
    if (driver().cancelled()) return true;
    StartWrite(&frame_);
    return false;
  }

  void Complete(const GenerationFinished& finished) override {
    v1::Finished* message = frame_.mutable_finished();
    message->set_finish_reason(ToProto(finished.reason));
    message->set_stop_string(finished.matched_stop_string);
    *message->mutable_usage() = ToUsage(finished);
    *message->mutable_timings() = ToTimings(finished.timings);
    *message->mutable_params() = params();
    message->set_model(model_name());
    TellState(&left(), message);
    StartWriteAndFinish(&frame_, grpc::WriteOptions(), grpc::Status::OK);
  }
  void Fail(const grpc::Status& status) override { Finish(status); }

  v1::GenerateStreamResponse frame_;
};

class SaveStateCall final : public grpc::ServerUnaryReactor, private GenerationCall {
 public:
  SaveStateCall(const CallEnvironment& environment, const v1::SaveStateRequest* request,
                v1::SaveStateResponse* response)
      : GenerationCall("SaveState", environment, &generate_, /*prompt_only=*/true),
        response_(response) {
    *generate_.mutable_prompt() = request->prompt();
    *generate_.mutable_state() = request->state();
    *generate_.mutable_cache() = request->cache();
    v1::StateOptions* state = generate_.mutable_state();
    if (!state->has_save_state_as()) state->set_save_state_as("");
    Begin();
  }

  void OnCancel() override { driver().Cancel(); }
  void OnDone() override { delete this; }

 private:
  bool OnDelta(const TokenDelta&) override { return true; }
  bool OnProgress(const PrefillProgress&) override { return true; }
  void Complete(const GenerationFinished& finished) override {
    *response_->mutable_usage() = ToUsage(finished);
    TellState(&left(), response_);
    Finish(grpc::Status::OK);
  }
  void Fail(const grpc::Status& status) override { Finish(status); }

  v1::GenerateRequest generate_;
  v1::SaveStateResponse* const response_;
};

}  // namespace

grpc::ServerUnaryReactor* StartGenerateCall(const CallEnvironment& environment,
                                            const v1::GenerateRequest* request,
                                            v1::GenerateResponse* response) {
  return new UnaryCall(environment, request, response);
}

grpc::ServerWriteReactor<v1::GenerateStreamResponse>* StartGenerateStreamCall(
    const CallEnvironment& environment, const v1::GenerateRequest* request) {
  return new StreamCall(environment, request);
}

grpc::ServerUnaryReactor* StartSaveStateCall(const CallEnvironment& environment,
                                             const v1::SaveStateRequest* request,
                                             v1::SaveStateResponse* response) {
  return new SaveStateCall(environment, request, response);
}

}  // namespace osdn
