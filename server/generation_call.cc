#include "server/generation_call.h"

#include <random>
#include <utility>
#include <variant>

#include "absl/status/statusor.h"
#include "server/chat_mapping.h"
#include "server/log.h"
#include "server/request_mapping.h"
#include "server/score_mapping.h"
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
                                              const CallKind& kind) {
  if (environment.key != nullptr && request.has_state()) {
    if (absl::Status s = environment.key->Check(Scope::kState, "state"); !s.ok()) return s;
  }
  RequestContext context;
  auto resume = environment.states->Load(environment.owner(), request.state());
  if (!resume.ok()) return resume.status();
  context.resume = *std::move(resume);
  context.prompt_only = kind.prompt_only;
  context.config = &environment.engine->config();
  context.tokenizer = environment.engine->tokenizer();
  context.max_tokens_default = environment.max_tokens_default;
  context.max_tokens_limit = environment.max_tokens_limit;
  context.drawn_seed = DrawSeed();
  std::vector<FieldViolation> violations;
  if (kind.violations != nullptr) violations = *kind.violations;
  GenerationRequest result = ToGenerationRequest(request, context, &violations);
  if (kind.score != nullptr) ReadContinuations(*kind.score, context, &result, &violations);
  result.scheduling.client = environment.client;
  result.scheduling.deadline = environment.deadline;
  MergeViolations(environment.engine->Validate(result), &violations);
  if (kind.chat) TellOfMessages(&violations);
  if (!violations.empty()) return InvalidRequestError(violations);
  return result;
}

}  // namespace

bool GenerationCall::OnEvent(GenerationEvent event) {
  if (auto* finished = std::get_if<GenerationFinished>(&event)) return OnFinished(*finished);
  if (auto* delta = std::get_if<TokenDelta>(&event)) return OnDelta(*delta);
  return OnProgress(std::get<PrefillProgress>(event));
}

GenerationCall::GenerationCall(const CallKind& kind, const CallEnvironment& environment,
                               std::shared_ptr<const v1::GenerateRequest> request)
    : environment_(environment),
      kind_(kind),
      request_(std::move(request)),
      driver_(std::make_shared<GenerationDriver>(this, environment.writers)) {}

void GenerationCall::Begin() {
  // Where there is a state to be read, on the threads that may wait for the disk.
  const bool reads = request_->state().from_case() != v1::StateOptions::FROM_NOT_SET;
  (reads ? environment_.storage : environment_.workers)->Post([this] { Read(); });
}

void GenerationCall::AddLogprobs(
    const TokenDelta& delta, google::protobuf::RepeatedPtrField<v1::TokenLogprob>* logprobs) const {
  for (const TokenLogprob& logprob : delta.logprobs) {
    *logprobs->Add() = ToProto(logprob, tokenizer());
  }
}

void GenerationCall::SetFrame(const TokenDelta& delta, v1::GenerateStreamResponse* frame) const {
  v1::Delta* message = frame->mutable_delta();
  message->Clear();
  message->set_index(static_cast<uint32_t>(delta.choice));
  message->set_text(delta.text);
  message->mutable_token_ids()->Add(delta.token_ids.begin(), delta.token_ids.end());
  AddLogprobs(delta, message->mutable_logprobs());
}

void GenerationCall::SetFrame(const PrefillProgress& progress,
                              v1::GenerateStreamResponse* frame) const {
  v1::PrefillProgress* message = frame->mutable_prefill_progress();
  message->set_processed_tokens(static_cast<uint64_t>(progress.processed_tokens));
  message->set_prompt_tokens(static_cast<uint64_t>(progress.prompt_tokens));
}

void GenerationCall::SetFrame(const GenerationFinished& finished, StateAccess::Left left,
                              v1::GenerateStreamResponse* frame) const {
  v1::Finished* message = frame->mutable_finished();
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
}

void GenerationCall::Read() {
  if (driver_->cancelled()) return FailWith(absl::CancelledError("cancelled by the client"));
  absl::StatusOr<GenerationRequest> request = ReadRequest(environment_, *request_, kind_);
  if (!request.ok()) return FailWith(request.status());
  if (request->state.want_state) {
    StateAccess* states = environment_.states;
    absl::Status s =
        states->transit().Add(states->image_bytes() * request->choice_count(), &left_hold_);
    if (!s.ok()) {
      environment_.metrics->Rejected("state_bytes");
      return FailWith(s);
    }
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

absl::Status GenerationCall::StillWanted() const {
  if (driver_->cancelled()) return absl::CancelledError("cancelled by the client");
  if (environment_.deadline.has_value() &&
      *environment_.deadline <= std::chrono::steady_clock::now()) {
    return absl::DeadlineExceededError(
        "the deadline passed while the constraint waited to be compiled");
  }
  return absl::OkStatus();
}

void GenerationCall::SubmitUnder(ConstraintCompiler::Result constraint,
                                 GenerationRequest* request) {
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

void GenerationCall::Submit(GenerationRequest request) {
  absl::StatusOr<std::shared_ptr<TokenStream>> stream =
      environment_.engine->Submit(std::move(request));
  if (!stream.ok()) {
    const bool full = absl::IsResourceExhausted(stream.status());
    if (full) environment_.metrics->Rejected("queue_full");
    return FailWith(full ? WithRetryDelay(stream.status(), kRetryDelay) : stream.status());
  }
  // The call may end, and this object with it, before Start returns.
  const std::shared_ptr<GenerationDriver> driver = driver_;
  driver->Start(*stream);
}

bool GenerationCall::OnFinished(const GenerationFinished& finished) {
  Account(finished);
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
bool GenerationCall::LeaveState(const GenerationFinished& finished) {
  // Nobody would learn the id of what is left.
  if (driver_->cancelled()) {
    return OnFailure(absl::CancelledError("cancelled by the client"), finished.last);
  }
  v1::StateOptions options = request_->state();
  if (finished.reason == FinishReason::kDrained) {
    const bool durable = environment_.states->store().durable();
    if (!durable && !options.return_state()) {
      return OnFailure(
          absl::UnavailableError("the server shut down before the request was done, and its saved "
                                 "states are gone with it (state.dir is memory)"),
          finished.last);
    }
    // It goes on from here, or again from where it began.
    options.set_replace(false);
    if (!durable) options.clear_save_state_as();
    if (durable && !options.has_save_state_as()) options.set_save_state_as("");
  }
  absl::StatusOr<StateAccess::Left> left =
      environment_.states->Leave(environment_.owner(), *finished.state, options);
  if (!left.ok()) return OnFailure(left.status(), finished.last);
  if (!left->info.state_id().empty()) untold_states_.push_back(left->info.state_id());
  return EndWell(finished, *std::move(left));
}

// The first failure of a choice is the call's: the other choices are ended too.
bool GenerationCall::OnFailure(const absl::Status& status, bool last) {
  if (failure_.ok()) failure_ = status;
  if (last) {
    FailWith(failure_);
  } else {
    driver_->Cancel();
  }
  return true;
}

// However it ended.
void GenerationCall::Account(const GenerationFinished& finished) {
  if (finished.choice == 0) {
    prompt_tokens_ = finished.prompt_tokens;
    environment_.metrics->Queued(finished.timings.queue);
  }
  completion_tokens_ += finished.completion_tokens;
  if (environment_.key == nullptr) return;
  environment_.key->ChargeTokens(finished.prompt_tokens - finished.cached_tokens +
                                 finished.completion_tokens);
}

bool GenerationCall::EndWell(const GenerationFinished& finished, StateAccess::Left left) {
  if (finished.last) {
    Log(absl::StatusCode::kOk);
    environment_.key = nullptr;  // a client that knows the end may come again
  }
  return OnChoice(finished, std::move(left));
}

void GenerationCall::FailWith(const absl::Status& status) {
  if (untold_states_.empty()) return FailNow(status);
  environment_.storage->Post([this, status] {
    for (const std::string& id : untold_states_) {
      environment_.states->Forget(environment_.owner(), id);
    }
    FailNow(status);
  });
}

void GenerationCall::FailNow(const absl::Status& status) {
  Log(status.code());
  if (absl::IsInternal(status)) {
    environment_.logger->error("{}: {}", kind_.method, std::string(status.message()));
  }
  environment_.key = nullptr;
  Fail(status);
}

// Never what the request holds: no prompt, no text.
void GenerationCall::Log(absl::StatusCode code) const {
  const std::chrono::duration<double, std::milli> elapsed =
      std::chrono::steady_clock::now() - start_;
  LogRequest(environment_.logger, {.method = kind_.method,
                                   .code = absl::StatusCodeToString(code),
                                   .milliseconds = elapsed.count(),
                                   .prompt_tokens = prompt_tokens_,
                                   .completion_tokens = completion_tokens_,
                                   .key = environment_.owner(),
                                   .request_id = environment_.request_id,
                                   .traceparent = environment_.traceparent});
}

}  // namespace osdn
