// Context-free grammars over bytes: what the text of a constrained completion may be, as one small
// automaton a rule. engine/regex_grammar.h, gbnf_grammar.h and json_schema_grammar.h make them;
// engine/recognizer.h follows a text through them.
#ifndef OSDN_ENGINE_GRAMMAR_H_
#define OSDN_ENGINE_GRAMMAR_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace osdn {

// Immutable. Every state lies on some way to the end of its rule: what has been followed so far can
// always be completed.
class Grammar {
 public:
  struct ByteEdge {
    uint8_t low = 0;
    uint8_t high = 0;
    uint32_t target = 0;
  };
  // To `target` once a text of `rule` has been read.
  struct CallEdge {
    uint32_t rule = 0;
    uint32_t target = 0;
  };

  absl::Span<const ByteEdge> bytes(uint32_t state) const {
    return Part(byte_edges_, states_[state].bytes, states_[state + 1].bytes);
  }
  absl::Span<const CallEdge> calls(uint32_t state) const {
    return Part(call_edges_, states_[state].calls, states_[state + 1].calls);
  }
  // The rule may end here.
  bool is_final(uint32_t state) const { return states_[state].is_final; }
  // The rule can do nothing else here.
  bool is_last(uint32_t state) const {
    return is_final(state) && bytes(state).empty() && calls(state).empty();
  }
  uint32_t start(uint32_t rule) const { return rules_[rule].start; }
  // The empty text is one of the rule's.
  bool is_nullable(uint32_t rule) const { return rules_[rule].is_nullable; }
  static constexpr uint32_t kRoot = 0;  // the rule that texts are of

  size_t num_states() const { return states_.size() - 1; }
  size_t size_bytes() const;

 private:
  friend class GrammarAssembler;
  struct State {
    uint32_t bytes = 0;  // where its edges begin; they end where the next state's begin
    uint32_t calls = 0;
    bool is_final = false;
  };
  struct Rule {
    uint32_t start = 0;
    bool is_nullable = false;
  };
  template <class Edge>
  static absl::Span<const Edge> Part(const std::vector<Edge>& edges, uint32_t begin, uint32_t end) {
    return absl::MakeConstSpan(edges).subspan(begin, end - begin);
  }

  std::vector<State> states_;  // one more than there are
  std::vector<ByteEdge> byte_edges_;
  std::vector<CallEdge> call_edges_;
  std::vector<Rule> rules_;
};

// How large a grammar may become and how long building it may take.
struct GrammarLimits {
  size_t max_states = 200'000;
  size_t max_edges = 1'000'000;
  std::chrono::steady_clock::time_point deadline = std::chrono::steady_clock::time_point::max();
};

// Code points, both ends included.
struct CharacterRange {
  uint32_t low = 0;
  uint32_t high = 0;
};
inline constexpr uint32_t kMaxCharacter = 0x10FFFF;

// Sorted and merged, without surrogates and what is beyond Unicode.
std::vector<CharacterRange> Normalise(const std::vector<CharacterRange>& ranges);
// All other characters.
std::vector<CharacterRange> Complement(const std::vector<CharacterRange>& ranges);

// The bytes of a character.
void AppendUtf8(uint32_t character, std::string* out);
// The character at the front of `text`, which loses it; nullopt where it is not well-formed UTF-8.
std::optional<uint32_t> TakeUtf8(absl::string_view* text);

// Expressions and rules in, one grammar out. Expressions are values that may be used many times.
class GrammarBuilder {
 public:
  class Node {
   private:
    friend class GrammarBuilder;
    friend class GrammarAssembler;
    uint32_t index = 0;
  };

  GrammarBuilder();

  Node Empty();                                    // the empty text
  Node Literal(absl::string_view bytes);           // UTF-8
  Node OneOf(std::vector<CharacterRange> ranges);  // one character of these; none: no text at all
  Node Sequence(std::vector<Node> nodes);
  Node Choice(std::vector<Node> nodes);
  // `min` to `max` times (nullopt: any number).
  Node Repeat(Node node, uint64_t min, std::optional<uint64_t> max);
  Node Optional(Node node) { return Repeat(node, 0, 1); }
  // A rule may be called before it is defined. Rule Grammar::kRoot is declared from the start.
  uint32_t Declare();
  void Define(uint32_t rule, Node node);
  Node Call(uint32_t rule);

  // Once, when all rules are defined. INVALID_ARGUMENT where the root has no text at all, or beyond
  // the limits of size; DEADLINE_EXCEEDED beyond that of time.
  absl::StatusOr<Grammar> Build(const GrammarLimits& limits) const;

 private:
  friend class GrammarAssembler;
  enum class Kind : uint8_t { kLiteral, kOneOf, kSequence, kChoice, kRepeat, kCall };
  struct Expression {
    Kind kind = Kind::kLiteral;
    std::string literal{};
    std::vector<CharacterRange> ranges{};
    std::vector<Node> children{};
    uint64_t min = 0;
    std::optional<uint64_t> max{};
    uint32_t rule = 0;
    size_t weight = 0;  // about so many states
  };
  Node Add(Expression expression);
  size_t Weight(Node node) const { return expressions_[node.index].weight; }

  std::vector<Expression> expressions_;
  std::vector<std::optional<Node>> rules_;  // what defines each
};

}  // namespace osdn

#endif  // OSDN_ENGINE_GRAMMAR_H_
