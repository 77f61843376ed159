// How a list of messages becomes prompt tokens. Special tokens are named by piece and put in by id,
// never parsed from text, so that no user text can forge a role.
#ifndef OSDN_ENGINE_CHAT_TEMPLATE_H_
#define OSDN_ENGINE_CHAT_TEMPLATE_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace osdn {

class Tokenizer;

// Either one special token (`token`, a piece of the vocabulary) or literal text to be encoded.
struct TemplatePart {
  bool is_token = false;
  std::string value;
};

struct RoleTemplate {
  std::vector<TemplatePart> prefix;
  std::vector<TemplatePart> suffix;
};

struct ChatTemplate {
  bool bos = true;
  std::map<std::string, RoleTemplate> roles;
  std::vector<TemplatePart> generation_prompt;  // what makes the model answer
  std::vector<std::string> stop_tokens;         // pieces that end the answer
};

// A template from YAML (docs/model-format.md, key `chat`): `text` is the document, `name` says in
// errors where it came from. INVALID_ARGUMENT listing every problem by key.
absl::StatusOr<ChatTemplate> ParseChatTemplate(const std::string& name, const std::string& text);
// The same from a file (chat_template.yaml beside a checkpoint).
absl::StatusOr<ChatTemplate> LoadChatTemplate(const std::string& path);

struct ChatMessage {
  std::string role;
  std::string content;
};

// The exact prompt: [bos] prefix content suffix ... generation_prompt, each content encoded by
// itself. INVALID_ARGUMENT for an unknown role (lists the known ones) or an empty list. `ends`, if
// given, gets the tokens up to the end of each message.
absl::StatusOr<std::vector<int32_t>> RenderChat(const ChatTemplate& chat,
                                                const Tokenizer& tokenizer,
                                                std::optional<int32_t> bos_id,
                                                absl::Span<const ChatMessage> messages,
                                                std::vector<int64_t>* ends = nullptr);

// What comes after an answer that the model has in its state: the end of the open message
// (`open_role`; empty: none is open), then `messages` and the generation prompt.
absl::StatusOr<std::vector<int32_t>> RenderChatTurn(const ChatTemplate& chat,
                                                    const Tokenizer& tokenizer,
                                                    const std::string& open_role,
                                                    absl::Span<const ChatMessage> messages);

// The same as text: `opening` (the beginning-of-text token's piece, or nothing), the end of the
// open message, `messages`, the generation prompt. For people: that a special token's spelling in a
// message is only text does not show. `messages` have known roles.
std::string ChatText(const ChatTemplate& chat, const std::string& opening,
                     const std::string& open_role, absl::Span<const ChatMessage> messages);

// The role whose message the generation prompt opens; empty if the template has none such.
std::string GenerationRole(const ChatTemplate& chat);

// Ids of the template's stop tokens.
absl::StatusOr<std::vector<int32_t>> ChatStopIds(const ChatTemplate& chat,
                                                 const Tokenizer& tokenizer);

}  // namespace osdn

#endif  // OSDN_ENGINE_CHAT_TEMPLATE_H_
