// Grammars in llama.cpp's GBNF.
#ifndef OSDN_ENGINE_GBNF_GRAMMAR_H_
#define OSDN_ENGINE_GBNF_GRAMMAR_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "engine/grammar.h"

namespace osdn {

// Rules `name ::= ...` with "texts", [classes], '.', (groups), '|', * + ? {n,m} and # comments,
// into the rules of `builder`; rule `root` becomes its root. Left recursion and ambiguity are fine.
// INVALID_ARGUMENT with line and column.
absl::Status AddGbnf(absl::string_view source, GrammarBuilder* builder);

}  // namespace osdn

#endif  // OSDN_ENGINE_GBNF_GRAMMAR_H_
