// Which JSON schemas can be kept to exactly.
#ifndef OSDN_ENGINE_JSON_SCHEMA_H_
#define OSDN_ENGINE_JSON_SCHEMA_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace osdn {

// The schema with its defaults spelt out (objects with properties take no others; arrays without
// items take any), in a form that the constraint compiler turns into a grammar without loss.
// INVALID_ARGUMENT naming keyword and JSON pointer for everything else: docs/api.md has the list.
absl::StatusOr<std::string> NormaliseJsonSchema(absl::string_view schema);

}  // namespace osdn

#endif  // OSDN_ENGINE_JSON_SCHEMA_H_
