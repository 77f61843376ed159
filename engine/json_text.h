// JSON as grammars: how values are written in a completion under a JSON schema.
#ifndef OSDN_ENGINE_JSON_TEXT_H_
#define OSDN_ENGINE_JSON_TEXT_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/strings/string_view.h"
#include "engine/grammar.h"

namespace osdn {

// Digits of an integer, at most: any int64 parser reads it.
inline constexpr int kMaxIntegerDigits = 18;
inline constexpr int64_t kMaxIntegerValue = 999'999'999'999'999'999;

// Expressions for one builder. Every value has one spelling where JSON knows many: characters as
// themselves where that is allowed, else by their short escape or \u00XX; space only where a line
// or an element may begin, and behind ':'.
class JsonText {
 public:
  using Node = GrammarBuilder::Node;
  explicit JsonText(GrammarBuilder* builder) : builder_(*builder) {}

  // One character of a string.
  Node Characters(std::vector<CharacterRange> ranges);
  // The string of what `content` spells.
  Node Quoted(Node content);
  Node String(uint64_t min_length, std::optional<uint64_t> max_length);
  Node Boolean();
  Node Null() { return builder_.Literal("null"); }
  // Of 15 digits and 15 behind the point at most, with exponents to 99.
  Node Number();
  // -kMaxIntegerValue <= low <= high <= kMaxIntegerValue.
  Node Integer(int64_t low, int64_t high);
  Node AnyValue();
  Node AnyString();
  // Between elements' brackets, of `items` or nothing.
  Node Array(Node item, uint64_t min_items, std::optional<uint64_t> max_items);
  Node Object(Node key, Node value);
  // Where a line may begin.
  Node Space();
  Node Comma() { return builder_.Sequence({builder_.Literal(","), Space()}); }
  Node Colon() {
    return builder_.Sequence({builder_.Literal(":"), builder_.Optional(builder_.Literal(" "))});
  }
  Node Enclosed(char open, Node content, char close);

 private:
  template <class Make>
  Node Shared(std::optional<uint32_t>* rule, Make make);
  Node Range(char low, char high);
  Node Digits(uint64_t min, std::optional<uint64_t> max) {
    return builder_.Repeat(Range('0', '9'), min, max);
  }
  Node Magnitudes(int64_t low, int64_t high);
  Node DigitRange(absl::string_view low, absl::string_view high);

  GrammarBuilder& builder_;
  std::optional<uint32_t> space_;
  std::optional<uint32_t> any_value_;
  std::optional<uint32_t> any_string_;
  std::optional<uint32_t> number_;
  std::optional<uint32_t> any_character_;
};

}  // namespace osdn

#endif  // OSDN_ENGINE_JSON_TEXT_H_
