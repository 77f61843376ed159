#include "engine/json_text.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace osdn {
namespace {

using Node = JsonText::Node;

constexpr uint32_t kFirstPlain = 0x20;
constexpr uint64_t kMaxIndent = 20;

int64_t PowerOfTen(int exponent) {
  int64_t power = 1;
  for (int i = 0; i < exponent; ++i) power *= 10;
  return power;
}

bool AllAre(absl::string_view digits, char digit) {
  return digits.find_first_not_of(digit) == digits.npos;
}

// How JSON writes a character that may not stand as itself.
std::string Escaped(uint32_t character) {
  constexpr absl::string_view kSpecial = "\"\\\b\f\n\r\t";
  constexpr absl::string_view kShort = "\"\\bfnrt";
  const size_t place = kSpecial.find(static_cast<char>(character));
  if (place != kSpecial.npos) return absl::StrCat("\\", kShort.substr(place, 1));
  return absl::StrCat("\\u", absl::Hex(character, absl::kZeroPad4));
}

}  // namespace

template <class Make>
Node JsonText::Shared(std::optional<uint32_t>* rule, Make make) {
  if (!rule->has_value()) {
    *rule = builder_.Declare();
    builder_.Define(**rule, make());
  }
  return builder_.Call(**rule);
}

Node JsonText::Range(char low, char high) {
  return builder_.OneOf({{static_cast<unsigned char>(low), static_cast<unsigned char>(high)}});
}

Node JsonText::Characters(std::vector<CharacterRange> ranges) {
  ranges = Normalise(ranges);
  std::vector<CharacterRange> plain;
  std::vector<Node> choices;
  const auto add_plain = [&plain](uint32_t low, uint32_t high) {
    if (low <= high) plain.push_back({low, high});
  };
  for (const CharacterRange& range : ranges) {
    uint32_t next = range.low;
    for (const uint32_t special : {uint32_t{'"'}, uint32_t{'\\'}}) {
      if (range.low > special || special > range.high) continue;
      choices.push_back(builder_.Literal(Escaped(special)));
      add_plain(std::max(next, kFirstPlain), special - 1);
      next = special + 1;
    }
    for (uint32_t c = range.low; c <= range.high && c < kFirstPlain; ++c) {
      choices.push_back(builder_.Literal(Escaped(c)));
    }
    add_plain(std::max(next, kFirstPlain), range.high);
  }
  if (!plain.empty() || choices.empty()) choices.push_back(builder_.OneOf(std::move(plain)));
  return choices.size() == 1 ? choices[0] : builder_.Choice(std::move(choices));
}

Node JsonText::Quoted(Node content) {
  return builder_.Sequence({builder_.Literal("\""), content, builder_.Literal("\"")});
}

Node JsonText::String(uint64_t min_length, std::optional<uint64_t> max_length) {
  // Of control characters only those that have names.
  const Node character = Shared(&any_character_, [this] {
    return Characters({{'\b', '\n'}, {'\f', '\r'}, {kFirstPlain, kMaxCharacter}});
  });
  return Quoted(builder_.Repeat(character, min_length, max_length));
}

Node JsonText::AnyString() {
  return Shared(&any_string_, [this] { return String(0, std::nullopt); });
}

Node JsonText::Boolean() {
  return builder_.Choice({builder_.Literal("true"), builder_.Literal("false")});
}

Node JsonText::Number() {
  return Shared(&number_, [this] {
    const Node whole = builder_.Choice(
        {builder_.Literal("0"), builder_.Sequence({Range('1', '9'), Digits(0, 14)})});
    const Node fraction = builder_.Sequence({builder_.Literal("."), Digits(1, 15)});
    const Node sign = builder_.OneOf({{'+', '+'}, {'-', '-'}});
    const Node exponent = builder_.Sequence(
        {builder_.OneOf({{'e', 'e'}, {'E', 'E'}}), builder_.Optional(sign), Digits(1, 2)});
    return builder_.Sequence({builder_.Optional(builder_.Literal("-")), whole,
                              builder_.Optional(fraction), builder_.Optional(exponent)});
  });
}

Node JsonText::Integer(int64_t low, int64_t high) {
  std::vector<Node> choices;
  if (low < 0) {
    choices.push_back(
        builder_.Sequence({builder_.Literal("-"), Magnitudes(std::max<int64_t>(1, -high), -low)}));
  }
  if (high >= 0) choices.push_back(Magnitudes(std::max<int64_t>(0, low), high));
  return builder_.Choice(std::move(choices));
}

Node JsonText::Magnitudes(int64_t low, int64_t high) {
  std::vector<Node> choices;
  for (int digits = 1; digits <= kMaxIntegerDigits; ++digits) {
    const int64_t first = std::max(low, digits == 1 ? 0 : PowerOfTen(digits - 1));
    const int64_t last = std::min(high, PowerOfTen(digits) - 1);
    if (first <= last) choices.push_back(DigitRange(absl::StrCat(first), absl::StrCat(last)));
  }
  return builder_.Choice(std::move(choices));
}

// Digits as many as `low` and `high` have, from one to the other.
// NOLINTNEXTLINE(misc-no-recursion): a level a digit
Node JsonText::DigitRange(absl::string_view low, absl::string_view high) {
  if (AllAre(low, '0') && AllAre(high, '9')) return Digits(low.size(), low.size());
  const absl::string_view low_rest = low.substr(1);
  const absl::string_view high_rest = high.substr(1);
  if (low[0] == high[0]) {
    return builder_.Sequence({Range(low[0], low[0]), DigitRange(low_rest, high_rest)});
  }
  const std::string nines(low_rest.size(), '9');
  const std::string zeros(low_rest.size(), '0');
  std::vector<Node> choices = {
      builder_.Sequence({Range(low[0], low[0]), DigitRange(low_rest, nines)}),
      builder_.Sequence({Range(high[0], high[0]), DigitRange(zeros, high_rest)})};
  if (low[0] + 1 < high[0]) {
    const Node between = Range(static_cast<char>(low[0] + 1), static_cast<char>(high[0] - 1));
    choices.push_back(builder_.Sequence({between, Digits(low_rest.size(), low_rest.size())}));
  }
  return builder_.Choice(std::move(choices));
}

Node JsonText::Space() {
  return Shared(&space_, [this] {
    const Node indent = builder_.OneOf({{' ', ' '}, {'\t', '\t'}});
    const Node line =
        builder_.Sequence({builder_.Literal("\n"), builder_.Repeat(indent, 0, kMaxIndent)});
    return builder_.Optional(builder_.Choice({builder_.Literal(" "), line}));
  });
}

Node JsonText::Enclosed(char open, Node content, char close) {
  return builder_.Sequence({Range(open, open), Space(), content, Space(), Range(close, close)});
}

Node JsonText::Array(Node item, uint64_t min_items, std::optional<uint64_t> max_items) {
  const Node none = builder_.Sequence({Range('[', '['), Space(), Range(']', ']')});
  if (max_items == 0) return none;
  const uint64_t more = min_items > 0 ? min_items - 1 : 0;
  const std::optional<uint64_t> most =
      max_items.has_value() ? std::optional<uint64_t>(*max_items - 1) : std::nullopt;
  const Node rest = builder_.Repeat(builder_.Sequence({Comma(), item}), more, most);
  const Node some = Enclosed('[', builder_.Sequence({item, rest}), ']');
  return min_items > 0 ? some : builder_.Choice({none, some});
}

Node JsonText::Object(Node key, Node value) {
  const Node member = builder_.Sequence({key, Colon(), value});
  const Node rest = builder_.Repeat(builder_.Sequence({Comma(), member}), 0, std::nullopt);
  return builder_.Choice({builder_.Sequence({Range('{', '{'), Space(), Range('}', '}')}),
                          Enclosed('{', builder_.Sequence({member, rest}), '}')});
}

Node JsonText::AnyValue() {
  return Shared(&any_value_, [this] {
    const Node value = builder_.Call(*any_value_);
    return builder_.Choice({Object(AnyString(), value), Array(value, 0, std::nullopt), AnyString(),
                            Number(), Boolean(), Null()});
  });
}

}  // namespace osdn
