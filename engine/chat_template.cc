#include "engine/chat_template.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/tokenizer.h"

namespace osdn {
namespace {

absl::StatusOr<int32_t> PieceId(const Tokenizer& tokenizer, const std::string& piece) {
  const std::optional<int32_t> id = tokenizer.FindPiece(piece);
  if (id.has_value()) return *id;
  return absl::InvalidArgumentError(
      absl::StrCat("chat template: token \"", piece, "\" is not in the tokenizer's vocabulary"));
}

absl::Status AppendParts(const std::vector<TemplatePart>& parts, const Tokenizer& tokenizer,
                         std::vector<int32_t>* ids) {
  for (const TemplatePart& part : parts) {
    if (part.is_token) {
      const absl::StatusOr<int32_t> id = PieceId(tokenizer, part.value);
      if (!id.ok()) return id.status();
      ids->push_back(*id);
    } else {
      const std::vector<int32_t> text = tokenizer.Encode(part.value);
      ids->insert(ids->end(), text.begin(), text.end());
    }
  }
  return absl::OkStatus();
}

// Each message, then the generation prompt.
absl::Status AppendMessages(const ChatTemplate& chat, const Tokenizer& tokenizer,
                            absl::Span<const ChatMessage> messages, std::vector<int32_t>* ids,
                            std::vector<int64_t>* ends) {
  for (size_t i = 0; i < messages.size(); ++i) {
    const auto role = chat.roles.find(messages[i].role);
    if (role == chat.roles.end()) {
      const auto name = [](std::string* out, const auto& item) { *out += item.first; };
      return absl::InvalidArgumentError(absl::StrCat("messages[", i, "].role: \"", messages[i].role,
                                                     "\" is not one of ",
                                                     absl::StrJoin(chat.roles, ", ", name)));
    }
    if (absl::Status s = AppendParts(role->second.prefix, tokenizer, ids); !s.ok()) return s;
    const std::vector<int32_t> content = tokenizer.Encode(messages[i].content);
    ids->insert(ids->end(), content.begin(), content.end());
    if (absl::Status s = AppendParts(role->second.suffix, tokenizer, ids); !s.ok()) return s;
    if (ends != nullptr) ends->push_back(static_cast<int64_t>(ids->size()));
  }
  return AppendParts(chat.generation_prompt, tokenizer, ids);
}

}  // namespace

absl::StatusOr<std::vector<int32_t>> RenderChat(const ChatTemplate& chat,
                                                const Tokenizer& tokenizer,
                                                std::optional<int32_t> bos_id,
                                                absl::Span<const ChatMessage> messages,
                                                std::vector<int64_t>* ends) {
  if (messages.empty()) return absl::InvalidArgumentError("messages: empty, want at least one");
  std::vector<int32_t> ids;
  if (chat.bos) {
    if (!bos_id.has_value()) {
      return absl::InvalidArgumentError("chat template: bos is true, but the model has no bos_id");
    }
    ids.push_back(*bos_id);
  }
  if (absl::Status s = AppendMessages(chat, tokenizer, messages, &ids, ends); !s.ok()) return s;
  return ids;
}

absl::StatusOr<std::vector<int32_t>> RenderChatTurn(const ChatTemplate& chat,
                                                    const Tokenizer& tokenizer,
                                                    const std::string& open_role,
                                                    absl::Span<const ChatMessage> messages) {
  if (messages.empty()) return absl::InvalidArgumentError("messages: empty, want at least one");
  std::vector<int32_t> ids;
  if (const auto role = chat.roles.find(open_role); role != chat.roles.end()) {
    if (absl::Status s = AppendParts(role->second.suffix, tokenizer, &ids); !s.ok()) return s;
  }
  if (absl::Status s = AppendMessages(chat, tokenizer, messages, &ids, nullptr); !s.ok()) return s;
  return ids;
}

std::string ChatText(const ChatTemplate& chat, const std::string& opening,
                     const std::string& open_role, absl::Span<const ChatMessage> messages) {
  std::string text = opening;
  const auto append = [&text](const std::vector<TemplatePart>& parts) {
    for (const TemplatePart& part : parts) text += part.value;
  };
  if (const auto role = chat.roles.find(open_role); role != chat.roles.end()) {
    append(role->second.suffix);
  }
  for (const ChatMessage& message : messages) {
    const RoleTemplate& role = chat.roles.at(message.role);
    append(role.prefix);
    text += message.content;
    append(role.suffix);
  }
  append(chat.generation_prompt);
  return text;
}

std::string GenerationRole(const ChatTemplate& chat) {
  const auto same = [](const TemplatePart& a, const TemplatePart& b) {
    return a.is_token == b.is_token && a.value == b.value;
  };
  const std::vector<TemplatePart>& opening = chat.generation_prompt;
  for (const auto& [name, role] : chat.roles) {
    if (std::equal(role.prefix.begin(), role.prefix.end(), opening.begin(), opening.end(), same)) {
      return name;
    }
  }
  return chat.roles.contains("assistant") ? "assistant" : "";
}

absl::StatusOr<std::vector<int32_t>> ChatStopIds(const ChatTemplate& chat,
                                                 const Tokenizer& tokenizer) {
  std::vector<int32_t> ids;
  for (const std::string& piece : chat.stop_tokens) {
    const absl::StatusOr<int32_t> id = PieceId(tokenizer, piece);
    if (!id.ok()) return id.status();
    ids.push_back(*id);
  }
  return ids;
}

}  // namespace osdn
