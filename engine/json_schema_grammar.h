// JSON schemas as grammars.
#ifndef OSDN_ENGINE_JSON_SCHEMA_GRAMMAR_H_
#define OSDN_ENGINE_JSON_SCHEMA_GRAMMAR_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "engine/grammar.h"

namespace osdn {

// Makes the root of `builder` the JSON texts that are valid under `schema`. docs/api.md lists the
// keywords; INVALID_ARGUMENT names every other one, and every value that makes no sense, with its
// JSON pointer. What is written is a part of what is valid: no properties but those named, and one
// spelling of each value.
absl::Status AddJsonSchema(absl::string_view schema, GrammarBuilder* builder);

}  // namespace osdn

#endif  // OSDN_ENGINE_JSON_SCHEMA_GRAMMAR_H_
