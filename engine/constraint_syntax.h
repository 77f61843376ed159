// What regular expressions and grammars may hold, before the constraint compiler sees them.
#ifndef OSDN_ENGINE_CONSTRAINT_SYNTAX_H_
#define OSDN_ENGINE_CONSTRAINT_SYNTAX_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace osdn {

inline constexpr int kMaxNesting = 32;         // of parentheses
inline constexpr int kMaxRepetition = 10'000;  // of one {n,m}

// INVALID_ARGUMENT naming what is not supported and at which byte: look-around, back references,
// word boundaries, flags, Unicode classes, POSIX classes, anchors but at the ends, and too deep
// nesting or too many repetitions. The expression must match the whole text.
absl::Status CheckRegex(absl::string_view regex);
// The same, for the `pattern` of a JSON string: also refused are parts that could match what JSON
// writes with a backslash (quotes, backslashes, control characters).
absl::Status CheckJsonPattern(absl::string_view regex);
// Nesting and repetitions of a GBNF grammar.
absl::Status CheckGbnf(absl::string_view grammar);

}  // namespace osdn

#endif  // OSDN_ENGINE_CONSTRAINT_SYNTAX_H_
