// Internal to engine/: the chat template as YAML.
#ifndef OSDN_ENGINE_CHAT_TEMPLATE_YAML_H_
#define OSDN_ENGINE_CHAT_TEMPLATE_YAML_H_

#include <string>
#include <vector>

#include "engine/chat_template.h"
#include "engine/yaml_reader.h"

namespace osdn::internal {

// Reads the keys bos, roles, generation_prompt and stop_tokens of `map`, rejecting others.
ChatTemplate ReadChatTemplate(YamlMap* map, std::vector<std::string>* errors);

// Writes the template as a map.
void EmitChatTemplate(const ChatTemplate& chat, YAML::Emitter* out);

}  // namespace osdn::internal

#endif  // OSDN_ENGINE_CHAT_TEMPLATE_YAML_H_
