#include "tools/chat_session.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace osdn::tools {
namespace {

constexpr char kSystem[] = "system";
constexpr char kUser[] = "user";
constexpr char kAssistant[] = "assistant";

bool HasRole(const v1::GetModelResponse& model, const char* role) {
  return std::find(model.chat_roles().begin(), model.chat_roles().end(), role) !=
         model.chat_roles().end();
}

}  // namespace

ChatSession::ChatSession(const InferenceClient* client, GenerationFlags flags)
    : client_(client), flags_(std::move(flags)) {}

absl::StatusOr<v1::GetModelResponse> ChatSession::Connect() {
  absl::StatusOr<v1::GetModelResponse> model = client_->GetModel();
  if (!model.ok()) return model.status();
  if (!model->has_chat_template()) {
    return absl::FailedPreconditionError(
        absl::StrCat("model ", model->name(), " has no chat template, so it cannot chat: use ",
                     "osdn-tools generate, or convert it with --chat-template"));
  }
  if (!HasRole(*model, kUser) || !HasRole(*model, kAssistant)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "model ", model->name(), " has the chat roles ", absl::StrJoin(model->chat_roles(), ", "),
        "; chatting needs user and assistant"));
  }
  has_system_role_ = HasRole(*model, kSystem);
  return model;
}

absl::Status ChatSession::SetSystem(const std::string& text) {
  if (!text.empty() && !has_system_role_) {
    return absl::FailedPreconditionError("the model's chat template has no system role");
  }
  messages_.Clear();
  if (!text.empty()) Add(kSystem, text);
  return absl::OkStatus();
}

void ChatSession::Reset() {
  const int kept = messages_.messages_size() > 0 && messages_.messages(0).role() == kSystem ? 1 : 0;
  while (messages_.messages_size() > kept) messages_.mutable_messages()->RemoveLast();
}

void ChatSession::Add(const char* role, std::string content) {
  v1::Message* message = messages_.add_messages();
  message->set_role(role);
  message->set_content(std::move(content));
}

void ChatSession::SetCurrent(grpc::ClientContext* context) {
  absl::MutexLock lock(&mutex_);
  current_ = context;
}

bool ChatSession::Cancel() {
  absl::MutexLock lock(&mutex_);
  if (current_ == nullptr) return false;
  current_->TryCancel();
  return true;
}

absl::StatusOr<v1::Finished> ChatSession::Ask(
    const std::string& user, const std::function<void(std::string_view)>& on_text) {
  Add(kUser, user);
  v1::GenerateRequest request;
  *request.mutable_prompt()->mutable_messages() = messages_;
  ApplyGenerationFlags(flags_, &request);

  std::string answer;
  grpc::ClientContext context;
  SetCurrent(&context);
  absl::StatusOr<v1::Finished> finished =
      client_->Generate(request, &context, [&](const v1::Delta& delta) {
        answer += delta.text();
        on_text(delta.text());
      });
  SetCurrent(nullptr);
  if (finished.ok() || (absl::IsCancelled(finished.status()) && !answer.empty())) {
    Add(kAssistant, std::move(answer));
  } else {
    messages_.mutable_messages()->RemoveLast();
  }
  return finished;
}

}  // namespace osdn::tools
