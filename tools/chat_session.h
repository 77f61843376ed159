// One conversation with a served model.
#ifndef OSDN_TOOLS_CHAT_SESSION_H_
#define OSDN_TOOLS_CHAT_SESSION_H_

#include <functional>
#include <string>
#include <string_view>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "osdn/v1/inference.pb.h"
#include "tools/generation_flags.h"
#include "tools/inference_client.h"

namespace osdn::tools {

// Keeps the list of messages that every turn sends. One thread, but for Cancel.
class ChatSession {
 public:
  // `client` must outlive the session.
  ChatSession(const InferenceClient* client, GenerationFlags flags);

  // FAILED_PRECONDITION when the served model cannot chat (no chat template, no user or assistant
  // role); the client's errors when it cannot be asked.
  absl::StatusOr<v1::GetModelResponse> Connect();

  // Starts over with this system message (empty: none). FAILED_PRECONDITION when the model's
  // template has no such role.
  absl::Status SetSystem(const std::string& text);
  // Forgets everything but the system message.
  void Reset();

  // Sends the user's message and hands the answer on as it comes. A cancelled answer stays in the
  // conversation as far as it came, and the result is CANCELLED; after any other error the
  // conversation is as it was before.
  absl::StatusOr<v1::Finished> Ask(const std::string& user,
                                   const std::function<void(std::string_view)>& on_text);
  // Ends the answer that is being given; false when there is none. Any thread.
  bool Cancel();

  const v1::Messages& messages() const { return messages_; }

 private:
  void Add(const char* role, std::string content);
  void SetCurrent(grpc::ClientContext* context);

  const InferenceClient* const client_;
  const GenerationFlags flags_;
  bool has_system_role_ = false;
  v1::Messages messages_;
  absl::Mutex mutex_;
  grpc::ClientContext* current_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_CHAT_SESSION_H_
