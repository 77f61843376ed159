#include "engine/chat_template_yaml.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace osdn {
namespace internal {
namespace {

// Far beyond any template, far below what could hurt.
constexpr size_t kMaxParts = 64;
constexpr size_t kMaxRoles = 64;
constexpr size_t kMaxStopTokens = 64;

void ReadParts(YamlMap* map, const std::string& key, std::vector<TemplatePart>* parts,
               std::vector<std::string>* errors) {
  map->ReadList(key, Presence::kOptional, kMaxParts,
                [&](const YAML::Node& node, const std::string& path) {
                  YamlMap part(node, path, errors);
                  if (!node.IsMap()) return;
                  if (part.Has("token") == part.Has("text")) {
                    errors->push_back(absl::StrCat(path, ": needs exactly one of token, text"));
                    return;
                  }
                  TemplatePart result;
                  result.is_token = part.Has("token");
                  part.Read(result.is_token ? "token" : "text", Presence::kRequired, &result.value);
                  part.RejectUnknownKeys();
                  parts->push_back(std::move(result));
                });
}

void EmitParts(const std::string& key, const std::vector<TemplatePart>& parts, YAML::Emitter* out) {
  *out << YAML::Key << key << YAML::Value << YAML::Flow << YAML::BeginSeq;
  for (const TemplatePart& part : parts) {
    *out << YAML::Flow << YAML::BeginMap << YAML::Key << (part.is_token ? "token" : "text")
         << YAML::Value << YAML::DoubleQuoted << part.value << YAML::EndMap;
  }
  *out << YAML::EndSeq;
}

}  // namespace

ChatTemplate ReadChatTemplate(YamlMap* map, std::vector<std::string>* errors) {
  ChatTemplate chat;
  map->Read("bos", Presence::kOptional, &chat.bos);
  if (auto roles = map->Child("roles", Presence::kRequired); roles.has_value()) {
    const std::vector<std::string> names = roles->Keys();
    if (names.empty() || names.size() > kMaxRoles) {
      map->Error("roles", absl::StrCat(names.size(), " roles, want 1 to ", kMaxRoles));
    } else {
      for (const std::string& name : names) {
        auto role = roles->Child(name, Presence::kRequired);
        RoleTemplate& parts = chat.roles[name];
        ReadParts(&*role, "prefix", &parts.prefix, errors);
        ReadParts(&*role, "suffix", &parts.suffix, errors);
        role->RejectUnknownKeys();
      }
    }
  }
  ReadParts(map, "generation_prompt", &chat.generation_prompt, errors);
  map->ReadList("stop_tokens", Presence::kOptional, kMaxStopTokens,
                [&](const YAML::Node& node, const std::string& path) {
                  auto piece = YamlScalar(node, path, errors);
                  if (piece.has_value()) chat.stop_tokens.push_back(*std::move(piece));
                });
  map->RejectUnknownKeys();
  return chat;
}

void EmitChatTemplate(const ChatTemplate& chat, YAML::Emitter* out) {
  *out << YAML::BeginMap << YAML::Key << "bos" << YAML::Value << chat.bos;
  *out << YAML::Key << "roles" << YAML::Value << YAML::BeginMap;
  for (const auto& [name, role] : chat.roles) {
    *out << YAML::Key << YAML::DoubleQuoted << name << YAML::Value << YAML::BeginMap;
    EmitParts("prefix", role.prefix, out);
    EmitParts("suffix", role.suffix, out);
    *out << YAML::EndMap;
  }
  *out << YAML::EndMap;
  EmitParts("generation_prompt", chat.generation_prompt, out);
  *out << YAML::Key << "stop_tokens" << YAML::Value << YAML::Flow << YAML::BeginSeq;
  for (const std::string& piece : chat.stop_tokens) *out << YAML::DoubleQuoted << piece;
  *out << YAML::EndSeq << YAML::EndMap;
}

}  // namespace internal

absl::StatusOr<ChatTemplate> ParseChatTemplate(const std::string& name, const std::string& text) {
  ChatTemplate chat;
  const auto read = [&](const YAML::Node& root, std::vector<std::string>* errors) {
    internal::YamlMap map(root, "", errors);
    chat = internal::ReadChatTemplate(&map, errors);
  };
  if (absl::Status s = internal::ReadYaml(name, text, read); !s.ok()) return s;
  return chat;
}

absl::StatusOr<ChatTemplate> LoadChatTemplate(const std::string& path) {
  const absl::StatusOr<std::string> text = internal::ReadTextFile(path);
  if (!text.ok()) return text.status();
  return ParseChatTemplate(path, *text);
}

}  // namespace osdn
