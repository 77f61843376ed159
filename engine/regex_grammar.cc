#include "engine/regex_grammar.h"

#include <optional>
#include <string>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace osdn {
namespace {

using Node = GrammarBuilder::Node;
using Ranges = std::vector<CharacterRange>;

Ranges LineEnds() { return {{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}}; }

// ASCII. `all`: with what other engines call a space too, so that what is said to be none is none.
Ranges Spaces(bool all) {
  Ranges ranges = {{'\t', '\r'}, {' ', ' '}};
  if (!all) return ranges;
  ranges.insert(ranges.end(), {{0x1C, 0x1F},
                               {0x85, 0x85},
                               {0xA0, 0xA0},
                               {0x1680, 0x1680},
                               {0x2000, 0x200A},
                               {0x2028, 0x2029},
                               {0x202F, 0x202F},
                               {0x205F, 0x205F},
                               {0x3000, 0x3000},
                               {0xFEFF, 0xFEFF}});
  return ranges;
}

// The set of \d, \w, \s and, in capitals, of their opposites; nullopt for other letters.
std::optional<Ranges> EscapedSet(char letter, bool negated_class) {
  const bool opposite = absl::ascii_isupper(static_cast<unsigned char>(letter));
  Ranges ranges;
  switch (absl::ascii_tolower(static_cast<unsigned char>(letter))) {
    case 'd':
      ranges = {{'0', '9'}};
      break;
    case 'w':
      ranges = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
      break;
    case 's':
      ranges = Spaces(/*all=*/opposite != negated_class);
      break;
    default:
      return std::nullopt;
  }
  if (opposite) ranges = Complement(ranges);
  return ranges;
}

class RegexParser {
 public:
  RegexParser(absl::string_view regex, const RegexUse& use, GrammarBuilder* builder)
      : regex_(regex), rest_(regex), use_(use), builder_(*builder) {}

  absl::StatusOr<Node> Parse() {
    absl::StatusOr<Node> node = Alternatives(0);
    if (node.ok() && !rest_.empty()) return Fail("')' without '('");
    return node;
  }

 private:
  absl::Status Fail(absl::string_view problem) const {
    return absl::InvalidArgumentError(
        absl::StrCat("at byte ", regex_.size() - rest_.size(), ": ", problem));
  }
  char Peek(size_t ahead = 0) const { return ahead < rest_.size() ? rest_[ahead] : '\0'; }
  bool Take(char c) {
    if (rest_.empty() || rest_[0] != c) return false;
    rest_.remove_prefix(1);
    return true;
  }

  Node Spell(Ranges ranges) {
    return use_.spell ? use_.spell(std::move(ranges)) : builder_.OneOf(std::move(ranges));
  }

  // NOLINTNEXTLINE(misc-no-recursion): kMaxNesting deep at most
  absl::StatusOr<Node> Alternatives(int depth) {
    std::vector<Node> alternatives;
    do {
      absl::StatusOr<Node> one = Alternative(depth);
      if (!one.ok()) return one;
      alternatives.push_back(*one);
    } while (Take('|'));
    if (alternatives.size() == 1) return alternatives[0];
    return builder_.Choice(std::move(alternatives));
  }

  // NOLINTNEXTLINE(misc-no-recursion): see Alternatives
  absl::StatusOr<Node> Alternative(int depth) {
    std::vector<Node> parts;
    const bool from_begin = depth == 0 && Take('^');
    if (depth == 0 && use_.search && !from_begin) parts.push_back(Anything());
    bool to_end = false;
    while (!rest_.empty() && Peek() != '|' && Peek() != ')') {
      if (to_end) return Fail("'$' is supported at the end of the expression only");
      if (depth == 0 && Take('$')) {
        to_end = true;
        continue;
      }
      absl::StatusOr<Node> part = Repeated(depth);
      if (!part.ok()) return part;
      parts.push_back(*part);
    }
    if (depth == 0 && use_.search && !to_end) parts.push_back(Anything());
    return builder_.Sequence(std::move(parts));
  }

  Node Anything() { return builder_.Repeat(Spell({{0, kMaxCharacter}}), 0, std::nullopt); }

  // NOLINTNEXTLINE(misc-no-recursion): see Alternatives
  absl::StatusOr<Node> Repeated(int depth) {
    absl::StatusOr<Node> atom = Atom(depth);
    if (!atom.ok()) return atom;
    uint64_t min = 0;
    std::optional<uint64_t> max;
    if (Take('+')) {
      min = 1;
    } else if (Take('?')) {
      max = 1;
    } else if (Peek() == '{') {
      if (absl::Status s = Counts(&min, &max); !s.ok()) return s;
    } else if (!Take('*')) {
      return atom;
    }
    Take('?');  // lazy ones match the same texts
    if (Peek() == '*' || Peek() == '+' || Peek() == '?' || Peek() == '{') {
      return Fail("a repetition of a repetition: use parentheses");
    }
    return builder_.Repeat(*atom, min, max);
  }

  absl::Status Counts(uint64_t* min, std::optional<uint64_t>* max) {
    const size_t end = rest_.find('}');
    const absl::string_view text = rest_.substr(1, end == rest_.npos ? end : end - 1);
    const size_t comma = text.find(',');
    const auto count = [](absl::string_view digits, uint64_t* value) {
      return !digits.empty() && digits.find_first_not_of("0123456789") == digits.npos &&
             absl::SimpleAtoi(digits, value) && *value <= kMaxRepetition;
    };
    uint64_t most = 0;
    bool valid = end != rest_.npos && count(text.substr(0, comma), min);
    if (comma == text.npos) {
      *max = *min;
    } else if (comma + 1 < text.size()) {
      valid = valid && count(text.substr(comma + 1), &most) && most >= *min;
      *max = most;
    }
    if (!valid) {
      return Fail(absl::StrCat("a repetition must be {n}, {n,} or {n,m} with n <= m <= ",
                               kMaxRepetition, "; the character itself is \\{"));
    }
    rest_.remove_prefix(end + 1);
    return absl::OkStatus();
  }

  // NOLINTNEXTLINE(misc-no-recursion): see Alternatives
  absl::StatusOr<Node> Atom(int depth) {
    switch (Peek()) {
      case '(':
        return Group(depth);
      case '[':
        return Class();
      case '\\': {
        absl::StatusOr<Ranges> set = Escape(/*negated_class=*/false);
        if (!set.ok()) return set.status();
        return Spell(*std::move(set));
      }
      case '.':
        rest_.remove_prefix(1);
        return Spell(Complement(LineEnds()));
      case '*':
      case '+':
      case '?':
      case '{':
        return Fail("there is nothing to repeat");
      case '^':
      case '$':
        return Fail(absl::StrCat("'", std::string(1, Peek()),
                                 "' is supported at the beginning ('^') and the end ('$') only"));
      default: {
        const absl::StatusOr<uint32_t> character = Character();
        if (!character.ok()) return character.status();
        return Spell({{*character, *character}});
      }
    }
  }

  // NOLINTNEXTLINE(misc-no-recursion): see Alternatives
  absl::StatusOr<Node> Group(int depth) {
    if (depth >= kMaxNesting) return Fail(absl::StrCat("nested deeper than ", kMaxNesting));
    if (Peek(1) == '?' && Peek(2) != ':') {
      return Fail("'(?' (look-around, names and flags) is not supported: use (?:");
    }
    rest_.remove_prefix(Peek(1) == '?' ? 3 : 1);
    absl::StatusOr<Node> node = Alternatives(depth + 1);
    if (node.ok() && !Take(')')) return Fail("'(' is not closed");
    return node;
  }

  // One character as it stands.
  absl::StatusOr<uint32_t> Character() {
    if (static_cast<unsigned char>(Peek()) < 0x20) {
      return Fail("a control character: write its escape");
    }
    const std::optional<uint32_t> character = TakeUtf8(&rest_);
    if (!character.has_value()) return Fail("not UTF-8");
    return *character;
  }

  absl::StatusOr<Ranges> Escape(bool negated_class) {
    const char c = Peek(1);
    if (std::optional<Ranges> set = EscapedSet(c, negated_class); set.has_value()) {
      rest_.remove_prefix(2);
      return *std::move(set);
    }
    const auto simple = [this](char character) -> absl::StatusOr<Ranges> {
      rest_.remove_prefix(2);
      const auto code = uint32_t{static_cast<unsigned char>(character)};
      return Ranges{{code, code}};
    };
    switch (c) {
      case 'n':
        return simple('\n');
      case 'r':
        return simple('\r');
      case 't':
        return simple('\t');
      case 'f':
        return simple('\f');
      case 'v':
        return simple('\v');
      case 'x':
        return Hexadecimal(2);
      case 'u':
        return Hexadecimal(4);
      default:
        if (absl::ascii_ispunct(static_cast<unsigned char>(c)) || c == ' ') return simple(c);
        return Fail(c == '\0' ? "the escape is not finished"
                              : absl::StrCat("'\\", std::string(1, c), "' is not supported"));
    }
  }

  absl::StatusOr<Ranges> Hexadecimal(size_t digits) {
    const absl::string_view text = rest_.substr(2, digits);
    uint32_t code = 0;
    const bool valid = text.size() == digits &&
                       text.find_first_not_of("0123456789abcdefABCDEF") == text.npos &&
                       absl::SimpleHexAtoi(text, &code);
    if (!valid) return Fail(absl::StrCat("the escape wants ", digits, " hexadecimal digits"));
    if (Normalise({{code, code}}).empty()) return Fail("half of a surrogate pair is no character");
    rest_.remove_prefix(2 + digits);
    return Ranges{{code, code}};
  }

  absl::StatusOr<Node> Class() {
    rest_.remove_prefix(1);
    const bool negated = Take('^');
    Ranges all;
    if (Peek() == ']') return Fail("an empty class; the character itself is \\]");
    while (!Take(']')) {
      if (rest_.empty()) return Fail("the class is not closed");
      if (Peek() == '[' && (Peek(1) == ':' || Peek(1) == '.' || Peek(1) == '=')) {
        return Fail("POSIX classes are not supported");
      }
      absl::StatusOr<Ranges> first = Member(negated);
      if (!first.ok()) return first.status();
      if (Peek() == '-' && Peek(1) != ']' && rest_.size() > 1) {
        rest_.remove_prefix(1);
        const absl::StatusOr<Ranges> last = Member(negated);
        if (!last.ok()) return last.status();
        const auto single = [](const Ranges& set) {
          return set.size() == 1 && set[0].low == set[0].high;
        };
        if (!single(*first) || !single(*last) || (*first)[0].low > (*last)[0].low) {
          return Fail("a range must lead from one character to a later one; '-' itself is \\-");
        }
        (*first)[0].high = (*last)[0].high;
      }
      all.insert(all.end(), first->begin(), first->end());
    }
    if (negated) all = Complement(all);
    return Spell(all);
  }

  // Of a class.
  absl::StatusOr<Ranges> Member(bool negated_class) {
    if (Peek() == '\\') return Escape(negated_class);
    const absl::StatusOr<uint32_t> character = Character();
    if (!character.ok()) return character.status();
    return Ranges{{*character, *character}};
  }

  const absl::string_view regex_;
  absl::string_view rest_;
  const RegexUse& use_;
  GrammarBuilder& builder_;
};

}  // namespace

absl::StatusOr<Node> AddRegex(absl::string_view regex, const RegexUse& use,
                              GrammarBuilder* builder) {
  return RegexParser(regex, use, builder).Parse();
}

}  // namespace osdn
