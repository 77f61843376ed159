#include "engine/gbnf_grammar.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/regex_grammar.h"

namespace osdn {
namespace {

using Node = GrammarBuilder::Node;

bool IsNameCharacter(char c) {
  return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_';
}

class GbnfParser {
 public:
  GbnfParser(absl::string_view source, GrammarBuilder* builder)
      : source_(source), rest_(source), builder_(*builder) {
    rules_["root"] = Grammar::kRoot;
  }

  absl::Status Parse() {
    if (source_.find('\0') != source_.npos) {
      rest_ = source_.substr(source_.find('\0'));
      return Fail("a NUL character");
    }
    for (SkipSpace(); !rest_.empty(); SkipSpace()) {
      if (absl::Status s = Rule(); !s.ok()) return s;
    }
    for (const auto& [name, rule] : rules_) {
      if (defined_.count(rule) > 0) continue;
      const auto used = first_use_.find(name);
      if (used == first_use_.end()) return absl::InvalidArgumentError("no rule \"root\"");
      rest_ = used->second;
      return Fail(absl::StrCat("rule \"", name, "\" is not defined"));
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Fail(absl::string_view problem) const {
    const absl::string_view before = source_.substr(0, source_.size() - rest_.size());
    const auto line = 1 + std::count(before.begin(), before.end(), '\n');
    const size_t line_begin = before.rfind('\n') == before.npos ? 0 : before.rfind('\n') + 1;
    return absl::InvalidArgumentError(
        absl::StrCat("line ", line, ", column ", before.size() - line_begin + 1, ": ", problem));
  }
  char Peek(size_t ahead = 0) const { return ahead < rest_.size() ? rest_[ahead] : '\0'; }
  bool Take(absl::string_view text) {
    if (!absl::StartsWith(rest_, text)) return false;
    rest_.remove_prefix(text.size());
    return true;
  }

  // Spaces, ends of lines and comments.
  void SkipSpace() {
    while (!rest_.empty()) {
      const char c = Peek();
      if (c == '#') {
        rest_.remove_prefix(std::min(rest_.find_first_of("\r\n"), rest_.size()));
      } else if (c == ' ' || c == '\t' || c == '\r' || c == '\n') {
        rest_.remove_prefix(1);
      } else {
        return;
      }
    }
  }

  absl::string_view TakeName() {
    size_t length = 0;
    while (length < rest_.size() && IsNameCharacter(rest_[length])) ++length;
    const absl::string_view name = rest_.substr(0, length);
    rest_.remove_prefix(length);
    return name;
  }

  // Whether a rule begins here.
  bool AtRule() {
    const absl::string_view here = rest_;
    const bool named = !TakeName().empty();
    SkipSpace();
    const bool begins = named && absl::StartsWith(rest_, "::=");
    rest_ = here;
    return begins;
  }

  uint32_t RuleOf(absl::string_view name) {
    const auto [it, is_new] = rules_.try_emplace(std::string(name), 0);
    if (is_new) it->second = builder_.Declare();
    return it->second;
  }

  absl::Status Rule() {
    const absl::string_view here = rest_;
    const absl::string_view name = TakeName();
    SkipSpace();
    if (name.empty() || !Take("::=")) {
      rest_ = here;
      return Fail("expected a rule, as in: name ::= \"text\"");
    }
    const uint32_t rule = RuleOf(name);
    if (!defined_.insert(rule).second) {
      rest_ = here;
      return Fail(absl::StrCat("rule \"", name, "\" is defined twice"));
    }
    const absl::StatusOr<Node> node = Alternatives(0);
    if (!node.ok()) return node.status();
    builder_.Define(rule, *node);
    if (rest_.empty() || AtRule()) return absl::OkStatus();
    return Fail(Peek() == ')' ? "')' without '('" : "not expected here");
  }

  // NOLINTNEXTLINE(misc-no-recursion): kMaxNesting deep at most
  absl::StatusOr<Node> Alternatives(int depth) {
    std::vector<Node> alternatives;
    do {
      std::vector<Node> parts;
      while (true) {
        SkipSpace();
        if (rest_.empty() || Peek() == '|' || Peek() == ')' || AtRule()) break;
        absl::StatusOr<Node> part = Repeated(depth);
        if (!part.ok()) return part;
        parts.push_back(*part);
      }
      alternatives.push_back(builder_.Sequence(std::move(parts)));
    } while (Take("|"));
    return builder_.Choice(std::move(alternatives));
  }

  // NOLINTNEXTLINE(misc-no-recursion): see Alternatives
  absl::StatusOr<Node> Repeated(int depth) {
    absl::StatusOr<Node> node = Symbol(depth);
    if (!node.ok()) return node;
    // As in llama.cpp, each one repeats all before it. Building walks down through them.
    for (int repetitions = 0; repetitions <= kMaxNesting; ++repetitions) {
      SkipSpace();
      if (Take("*")) {
        node = builder_.Repeat(*node, 0, std::nullopt);
      } else if (Take("+")) {
        node = builder_.Repeat(*node, 1, std::nullopt);
      } else if (Take("?")) {
        node = builder_.Optional(*node);
      } else if (Peek() == '{') {
        node = Counted(*node);
        if (!node.ok()) return node;
      } else {
        return node;
      }
    }
    return Fail(absl::StrCat("more than ", kMaxNesting, " repetitions of one symbol"));
  }

  absl::StatusOr<Node> Counted(Node node) {
    const absl::string_view here = rest_;
    Take("{");
    const auto count = [this]() -> std::optional<uint64_t> {
      SkipSpace();
      size_t length = 0;
      while (absl::ascii_isdigit(static_cast<unsigned char>(Peek(length)))) ++length;
      uint64_t value = 0;
      const bool valid = absl::SimpleAtoi(rest_.substr(0, length), &value);
      rest_.remove_prefix(length);
      SkipSpace();
      return valid && value <= kMaxRepetition ? std::optional<uint64_t>(value) : std::nullopt;
    };
    const std::optional<uint64_t> min = count();
    std::optional<uint64_t> max = min;
    bool valid = min.has_value();
    if (valid && Take(",")) {
      SkipSpace();
      max = std::nullopt;
      if (Peek() != '}') {
        max = count();
        valid = max.has_value() && *max >= *min;
      }
    }
    if (valid && Take("}")) return builder_.Repeat(node, *min, max);
    rest_ = here;
    return Fail(
        absl::StrCat("a repetition must be {n}, {n,} or {n,m} with n <= m <= ", kMaxRepetition));
  }

  // NOLINTNEXTLINE(misc-no-recursion): see Alternatives
  absl::StatusOr<Node> Symbol(int depth) {
    const absl::string_view here = rest_;
    if (Take("\"")) return Text();
    if (Take("[")) return Class();
    if (Take(".")) return builder_.OneOf({{0, kMaxCharacter}});
    if (Take("(")) {
      if (depth >= kMaxNesting) return Fail(absl::StrCat("nested deeper than ", kMaxNesting));
      absl::StatusOr<Node> node = Alternatives(depth + 1);
      if (node.ok() && !Take(")")) return Fail("'(' is not closed");
      return node;
    }
    const absl::string_view name = TakeName();
    if (name.empty()) return Fail("expected a name, a text, a class or a group");
    first_use_.try_emplace(std::string(name), here);
    return builder_.Call(RuleOf(name));
  }

  absl::StatusOr<Node> Text() {
    std::string text;
    while (!Take("\"")) {
      const absl::StatusOr<uint32_t> character = Character("the text");
      if (!character.ok()) return character.status();
      AppendUtf8(*character, &text);
    }
    return builder_.Literal(text);
  }

  absl::StatusOr<Node> Class() {
    const bool negated = Take("^");
    std::vector<CharacterRange> ranges;
    while (!Take("]")) {
      const absl::StatusOr<uint32_t> low = Character("the class");
      if (!low.ok()) return low.status();
      uint32_t high = *low;
      if (Peek() == '-' && Peek(1) != ']') {
        Take("-");
        const absl::StatusOr<uint32_t> last = Character("the class");
        if (!last.ok()) return last.status();
        high = *last;
        if (high < *low) return Fail("a range must lead from one character to a later one");
      }
      ranges.push_back({*low, high});
    }
    if (negated) ranges = Complement(ranges);
    return builder_.OneOf(ranges);
  }

  // One character of a text or a class, escapes read.
  absl::StatusOr<uint32_t> Character(absl::string_view where) {
    if (rest_.empty() || Peek() == '\n' || Peek() == '\r') {
      return Fail(absl::StrCat(where, " is not closed on its line"));
    }
    if (Peek() != '\\') {
      const std::optional<uint32_t> character = TakeUtf8(&rest_);
      if (!character.has_value()) return Fail("not UTF-8");
      return *character;
    }
    const char c = Peek(1);
    const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (digits == 0) {
      constexpr absl::string_view kLetters = "nrt";
      constexpr absl::string_view kMeant = "\n\r\t";
      const size_t letter = kLetters.find(c);
      if (letter == kLetters.npos && !absl::ascii_ispunct(static_cast<unsigned char>(c))) {
        return Fail(
            "this escape is not supported: \\n \\r \\t \\xHH \\uHHHH \\UHHHHHHHH and "
            "punctuation are");
      }
      rest_.remove_prefix(2);
      return uint32_t{static_cast<unsigned char>(letter == kLetters.npos ? c : kMeant[letter])};
    }
    const absl::string_view text = rest_.substr(2, digits);
    uint32_t code = 0;
    const bool valid = text.size() == digits &&
                       text.find_first_not_of("0123456789abcdefABCDEF") == text.npos &&
                       absl::SimpleHexAtoi(text, &code);
    if (!valid || Normalise({{code, code}}).empty()) {
      return Fail(absl::StrCat("the escape wants ", digits,
                               " hexadecimal digits of one character of Unicode"));
    }
    rest_.remove_prefix(2 + digits);
    return code;
  }

  const absl::string_view source_;
  absl::string_view rest_;
  GrammarBuilder& builder_;
  std::map<std::string, uint32_t> rules_;
  std::map<std::string, absl::string_view> first_use_;
  std::set<uint32_t> defined_;
};

}  // namespace

absl::Status AddGbnf(absl::string_view source, GrammarBuilder* builder) {
  return GbnfParser(source, builder).Parse();
}

}  // namespace osdn
