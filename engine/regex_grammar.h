// Regular expressions as grammars.
#ifndef OSDN_ENGINE_REGEX_GRAMMAR_H_
#define OSDN_ENGINE_REGEX_GRAMMAR_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/grammar.h"

namespace osdn {

inline constexpr int kMaxNesting = 50;              // of parentheses
inline constexpr uint64_t kMaxRepetition = 10'000;  // of one {n,m}

struct RegexUse {
  // How one character of these is written; empty: as itself.
  std::function<GrammarBuilder::Node(std::vector<CharacterRange>)> spell{};
  // Whether the expression need only be found somewhere, as in JSON schemas; else it is all there
  // is.
  bool search = false;
};

// Groups, classes, '.' (no line ends), \d \w \s \D \W \S (ASCII), escapes of characters, * + ?
// {n,m},
// '|', and '^', '$' at the ends of an alternative outside of parentheses. INVALID_ARGUMENT naming
// what else there is, and at which byte.
absl::StatusOr<GrammarBuilder::Node> AddRegex(absl::string_view regex, const RegexUse& use,
                                              GrammarBuilder* builder);

}  // namespace osdn

#endif  // OSDN_ENGINE_REGEX_GRAMMAR_H_
