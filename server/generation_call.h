// A call that runs on the engine, whatever carries it: gRPC's reactors and the HTTP gateway derive
// from it, so that validation, byte budgets, states and cancellation are the same for both.
#ifndef OSDN_SERVER_GENERATION_CALL_H_
#define OSDN_SERVER_GENERATION_CALL_H_

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/generation.h"
#include "engine/tokenizer.h"
#include "osdn/v1/inference.pb.h"
#include "server/call_environment.h"
#include "server/generation_driver.h"
#include "server/state_access.h"

namespace osdn {

// What a call makes of a request to Generate.
struct CallKind {
  const char* method;
  bool prompt_only = false;
  bool chat = false;                        // the prompt is a ChatRequest's
  const v1::ScoreRequest* score = nullptr;  // its continuations belong to the prompt
  // What is wrong already, so that all is told at once; outlives the call. Null: nothing.
  const std::vector<FieldViolation>* violations = nullptr;
};

// What all calls share: reading the request off the transport's threads, submitting it, and the way
// to the end. Deltas and what is told of finished choices are the derived class's.
class GenerationCall : public GenerationSink {
 public:
  bool OnEvent(GenerationEvent event) final;

 protected:
  GenerationCall(const CallKind& kind, const CallEnvironment& environment,
                 std::shared_ptr<const v1::GenerateRequest> request);
  ~GenerationCall() = default;

  // The next event may come at once (true) or after driver().Resume() (false).
  virtual bool OnDelta(const TokenDelta& delta) = 0;
  virtual bool OnProgress(const PrefillProgress& progress) = 0;
  // A choice is done. With finished.last this ends the call: nothing of this object is touched
  // afterwards, and the result is ignored.
  virtual bool OnChoice(const GenerationFinished& finished, StateAccess::Left left) = 0;
  // Ends the call, instead. Nothing of this object is touched afterwards.
  virtual void Fail(const absl::Status& status) = 0;

  // Last thing of the constructor: from here on other threads know the call.
  void Begin();

  GenerationDriver& driver() { return *driver_; }
  const v1::ResolvedParams& params() const { return params_; }
  // Whose message the completion is; empty: nobody's.
  const std::string& role() const { return role_; }
  const Tokenizer* tokenizer() const { return environment_.engine->tokenizer(); }
  const std::string& model_name() const { return environment_.engine->config().name; }
  // The client knows the ids of the states that were left so far.
  void ToldStates() { untold_states_.clear(); }

  void AddLogprobs(const TokenDelta& delta,
                   google::protobuf::RepeatedPtrField<v1::TokenLogprob>* logprobs) const;
  // An event as the frame of a stream.
  void SetFrame(const TokenDelta& delta, v1::GenerateStreamResponse* frame) const;
  void SetFrame(const PrefillProgress& progress, v1::GenerateStreamResponse* frame) const;
  void SetFrame(const GenerationFinished& finished, StateAccess::Left left,
                v1::GenerateStreamResponse* frame) const;

 private:
  void Read();
  absl::Status StillWanted() const;
  void SubmitUnder(ConstraintCompiler::Result constraint, GenerationRequest* request);
  void Submit(GenerationRequest request);
  bool OnFinished(const GenerationFinished& finished);
  bool LeaveState(const GenerationFinished& finished);
  bool OnFailure(const absl::Status& status, bool last);
  void Account(const GenerationFinished& finished);
  bool EndWell(const GenerationFinished& finished, StateAccess::Left left);
  void FailWith(const absl::Status& status);
  void FailNow(const absl::Status& status);
  void Log(absl::StatusCode code) const;

  CallEnvironment environment_;
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

}  // namespace osdn

#endif  // OSDN_SERVER_GENERATION_CALL_H_
