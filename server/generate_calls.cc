#include "server/generate_calls.h"

#include <algorithm>
#include <chrono>
#include <random>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/chat_mapping.h"
#include "server/generation_driver.h"
#include "server/request_mapping.h"
#include "server/score_mapping.h"
#include "server/status.h"

namespace osdn {
namespace {

uint64_t DrawSeed() {
  std::random_device device;
  return (static_cast<uint64_t>(device()) << 32) | device();
}

// What a call makes of a request to Generate.
struct CallKind {
  const char* method;
  bool prompt_only = false;
  bool chat = false;                        // the prompt is a ChatRequest's
  const v1::ScoreRequest* score = nullptr;  // its continuations belong to the prompt
};

// Reads and checks `request`: every violation at once.
absl::StatusOr<GenerationRequest> ReadRequest(const CallEnvironment& environment,
                                              const v1::GenerateRequest& request,
                                              const CallKind& kind) {
  RequestContext context;
  auto resume = environment.states->Load(request.state());
  if (!resume.ok()) return resume.status();
  context.resume = *std::move(resume);
  context.prompt_only = kind.prompt_only;
  context.config = &environment.engine->config();
  context.tokenizer = environment.engine->tokenizer();
  context.max_tokens_default = environment.max_tokens_default;
  context.max_tokens_limit = environment.max_tokens_limit;
  context.drawn_seed = DrawSeed();
  std::vector<FieldViolation> violations;
  GenerationRequest result = ToGenerationRequest(request, context, &violations);
  if (kind.score != nullptr) ReadContinuations(*kind.score, context, &result, &violations);
  result.scheduling.client = environment.client;
  result.scheduling.deadline = environment.deadline;
  MergeViolations(environment.engine->Validate(result), &violations);
  if (kind.chat) TellOfMessages(&violations);
  if (!violations.empty()) return InvalidRequestError(violations);
  return result;
}

// A message that lives as long as the call, as the calls hold it.
template <class Message>
std::shared_ptr<const Message> Borrow(const Message* message) {
  return {std::shared_ptr<const void>(), message};
}

// What all calls share: reading the request off gRPC's threads, submitting it, and the way to the
// end. Deltas and what is told of finished choices are the derived class's.
class GenerationCall : public GenerationSink {
 public:
  bool OnEvent(GenerationEvent event) final {
    if (auto* finished = std::get_if<GenerationFinished>(&event)) return OnFinished(*finished);
    if (auto* delta = std::get_if<TokenDelta>(&event)) return OnDelta(*delta);
    return OnProgress(std::get<PrefillProgress>(event));
  }

 protected:
  GenerationCall(const CallKind& kind, const CallEnvironment& environment,
                 std::shared_ptr<const v1::GenerateRequest> request)
      : environment_(environment),
        kind_(kind),
        request_(std::move(request)),
        driver_(std::make_shared<GenerationDriver>(this, environment.writers)) {}
  ~GenerationCall() = default;

  // The next event may come at once (true) or after driver().Resume() (false).
  virtual bool OnDelta(const TokenDelta& delta) = 0;
  virtual bool OnProgress(const PrefillProgress& progress) = 0;
  // A choice is done. With finished.last this ends the call: nothing of this object is touched
  // afterwards, and the result is ignored.
  virtual bool OnChoice(const GenerationFinished& finished, StateAccess::Left left) = 0;
  // Ends the call, instead.
  virtual void Fail(const grpc::Status& status) = 0;

  // Last thing of the constructor: from here on other threads know the call.
  void Begin() {
    // Where there is a state to be read, on the threads that may wait for the disk.
    const bool reads = request_->state().from_case() != v1::StateOptions::FROM_NOT_SET;
    (reads ? environment_.storage : environment_.workers)->Post([this] { Read(); });
  }

  GenerationDriver& driver() { return *driver_; }
  const v1::ResolvedParams& params() const { return params_; }
  // Whose message the completion is; empty: nobody's.
  const std::string& role() const { return role_; }
  const Tokenizer* tokenizer() const { return environment_.engine->tokenizer(); }
  // The client knows the ids of the states that were left so far.
  void ToldStates() { untold_states_.clear(); }
  void AddLogprobs(const TokenDelta& delta,
                   google::protobuf::RepeatedPtrField<v1::TokenLogprob>* logprobs) const {
    for (const TokenLogprob& logprob : delta.logprobs) {
      *logprobs->Add() = ToProto(logprob, tokenizer());
    }
  }
  const std::string& model_name() const { return environment_.engine->config().name; }

 private:
  void Read() {
    if (driver_->cancelled()) return FailWith(absl::CancelledError("cancelled by the client"));
    absl::StatusOr<GenerationRequest> request = ReadRequest(environment_, *request_, kind_);
    if (!request.ok()) return FailWith(request.status());
    if (request->state.want_state) {
      StateAccess* states = environment_.states;
      absl::Status s =
          states->transit().Add(states->image_bytes() * request->choice_count(), &left_hold_);
      if (!s.ok()) return FailWith(s);
    }
    params_ = ToResolvedParams(*request);
    role_ = request->state.open_role;
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

  bool OnFinished(const GenerationFinished& finished) {
    if (finished.reason == FinishReason::kError) return OnFailure(finished.status, finished.last);
    if (finished.reason == FinishReason::kCancelled || !failure_.ok()) {
      return OnFailure(absl::CancelledError("cancelled by the client"), finished.last);
    }
    if (finished.state == nullptr) return EndWell(finished, {});
    environment_.storage->Post([this, finished] {
      // The call may end, and this object with it, before Resume returns.
      const std::shared_ptr<GenerationDriver> driver = driver_;
      if (LeaveState(finished) && !finished.last) driver->Resume();
    });
    return false;
  }

  // As OnChoice.
  bool LeaveState(const GenerationFinished& finished) {
    // Nobody would learn the id of what is left.
    if (driver_->cancelled()) {
      return OnFailure(absl::CancelledError("cancelled by the client"), finished.last);
    }
    v1::StateOptions options = request_->state();
    if (finished.reason == FinishReason::kDrained) {
      const bool durable = environment_.states->store().durable();
      if (!durable && !options.return_state()) {
        return OnFailure(absl::UnavailableError(
                             "the server shut down before the request was done, and its saved "
                             "states are gone with it (state.dir is memory)"),
                         finished.last);
      }
      // It goes on from here, or again from where it began.
      options.set_replace(false);
      if (!durable) options.clear_save_state_as();
      if (durable && !options.has_save_state_as()) options.set_save_state_as("");
    }
    absl::StatusOr<StateAccess::Left> left = environment_.states->Leave(*finished.state, options);
    if (!left.ok()) return OnFailure(left.status(), finished.last);
    if (!left->info.state_id().empty()) untold_states_.push_back(left->info.state_id());
    return EndWell(finished, *std::move(left));
  }

  // The first failure of a choice is the call's: the other choices are ended too.
  bool OnFailure(const absl::Status& status, bool last) {
    if (failure_.ok()) failure_ = status;
    if (last) {
      FailWith(failure_);
    } else {
      driver_->Cancel();
    }
    return true;
  }

  bool EndWell(const GenerationFinished& finished, StateAccess::Left left) {
    if (finished.choice == 0) prompt_tokens_ = finished.prompt_tokens;
    completion_tokens_ += finished.completion_tokens;
    if (finished.last) Log(absl::StatusCode::kOk);
    return OnChoice(finished, std::move(left));
  }

  void FailWith(const absl::Status& status) {
    if (untold_states_.empty()) return FailNow(status);
    environment_.storage->Post([this, status] {
      for (const std::string& id : untold_states_) environment_.states->Forget(id);
      FailNow(status);
    });
  }

  void FailNow(const absl::Status& status) {
    Log(status.code());
    if (absl::IsInternal(status)) {
      environment_.logger->error("{}: {}", kind_.method, std::string(status.message()));
    }
    Fail(ToGrpcStatus(status));
  }

  // Never what the request holds: no prompt, no text.
  void Log(absl::StatusCode code) const {
    const std::chrono::duration<double, std::milli> elapsed =
        std::chrono::steady_clock::now() - start_;
    environment_.logger->debug("{} {} prompt_tokens={} completion_tokens={} ms={:.1f}",
                               kind_.method, absl::StatusCodeToString(code), prompt_tokens_,
                               completion_tokens_, elapsed.count());
  }

  const CallEnvironment environment_;
  const CallKind kind_;
  const std::shared_ptr<const v1::GenerateRequest> request_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  const std::shared_ptr<GenerationDriver> driver_;
  v1::ResolvedParams params_;
  ByteBudget::Hold left_hold_;  // of the states at the end, from the start
  std::string role_;
  absl::Status failure_;
  int64_t prompt_tokens_ = 0;
  int64_t completion_tokens_ = 0;
  std::vector<std::string> untold_states_;
};

// The state that was kept, into a message that has fields for it.
template <class Message>
void TellState(StateAccess::Left left, Message* message) {
  if (!left.info.state_id().empty()) *message->mutable_state() = std::move(left.info);
  message->set_state_blob(std::move(left.blob));
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
  void Fail(const grpc::Status& status) override { Finish(status); }

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
    v1::Delta* message = frame_.mutable_delta();
    message->Clear();
    message->set_index(static_cast<uint32_t>(delta.choice));
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

  bool OnChoice(const GenerationFinished& finished, StateAccess::Left left) override {
    v1::Finished* message = frame_.mutable_finished();
    message->Clear();
    message->set_index(static_cast<uint32_t>(finished.choice));
    message->set_finish_reason(ToProto(finished.reason));
    message->set_stop_string(finished.matched_stop_string);
    *message->mutable_usage() = ToUsage(finished);
    *message->mutable_timings() = ToTimings(finished.timings);
    *message->mutable_params() = params();
    message->set_model(model_name());
    message->set_role(role());
    TellState(std::move(left), message);
    ToldStates();
    if (!finished.last) return Write();
    StartWriteAndFinish(&frame_, grpc::WriteOptions(), grpc::Status::OK);
    return true;
  }
  void Fail(const grpc::Status& status) override { Finish(status); }

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
  void Fail(const grpc::Status& status) override { Finish(status); }

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
  void Fail(const grpc::Status& status) override { Finish(status); }

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
