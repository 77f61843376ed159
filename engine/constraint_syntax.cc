#include "engine/constraint_syntax.h"

#include <algorithm>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace osdn {
namespace {

absl::Status At(absl::string_view kind, size_t place, absl::string_view problem) {
  return absl::InvalidArgumentError(absl::StrCat(kind, ": at byte ", place, ": ", problem));
}

// A count in {n,m} that starts at `place`, if there is one.
absl::Status CheckRepetition(absl::string_view kind, absl::string_view text, size_t place) {
  size_t i = place + 1;
  while (i < text.size() && (absl::ascii_isdigit(static_cast<unsigned char>(text[i])) ||
                             text[i] == ',' || text[i] == ' ')) {
    const size_t begin = i;
    while (i < text.size() && absl::ascii_isdigit(static_cast<unsigned char>(text[i]))) ++i;
    int count = 0;
    if (i > begin &&
        (!absl::SimpleAtoi(text.substr(begin, i - begin), &count) || count > kMaxRepetition)) {
      return At(
          kind, place,
          absl::StrCat("repetition ", text.substr(begin, i - begin), ": at most ", kMaxRepetition));
    }
    if (i == begin) ++i;
  }
  return absl::OkStatus();
}

class RegexChecker {
 public:
  RegexChecker(absl::string_view regex, bool json) : regex_(regex), json_(json) {}

  absl::Status Check() {
    while (place_ < regex_.size()) {
      if (absl::Status s = Step(); !s.ok()) return s;
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Fail(absl::string_view problem) const { return At("regex", place_, problem); }
  char Peek(size_t ahead) const {
    return place_ + ahead < regex_.size() ? regex_[place_ + ahead] : '\0';
  }

  absl::Status Step() {
    const char c = regex_[place_];
    if (static_cast<unsigned char>(c) < 0x20) return Fail("a control character: write its escape");
    if (c == '\\') return Escape(/*in_class=*/false);
    if (c == '[') return Class();
    if (c == '(') return Group();
    if (c == ')') {
      --depth_;
    } else if (c == '{') {
      if (absl::Status s = CheckRepetition("regex", regex_, place_); !s.ok()) return s;
    } else if (c == '^' && place_ != 0) {
      return Fail("'^' is supported at the beginning only");
    } else if (c == '$' && place_ + 1 != regex_.size()) {
      return Fail("'$' is supported at the end only");
    } else if (json_ && (c == '.' || c == '"')) {
      return Fail(absl::StrCat("'", std::string(1, c),
                               "' in a JSON pattern may match what JSON must escape: name the "
                               "characters, as in [a-z]"));
    }
    if (c == '|' && depth_ == 0 && (absl::StartsWith(regex_, "^") || absl::EndsWith(regex_, "$"))) {
      return Fail("'|' beside '^' or '$': put the alternatives in parentheses");
    }
    const bool nothing_before = Last() == '\0' || Last() == '(';
    if (c == '|' && (nothing_before || Peek(1) == ')' || Peek(1) == '|' || Peek(1) == '\0')) {
      return Fail("an empty alternative: write (...)? instead");
    }
    ++place_;
    return absl::OkStatus();
  }

  char Last() const { return place_ == 0 ? '\0' : regex_[place_ - 1]; }

  absl::Status Group() {
    if (++depth_ > kMaxNesting) return Fail(absl::StrCat("nested deeper than ", kMaxNesting));
    if (Peek(1) == '?' && Peek(2) != ':') {
      return Fail(absl::StrCat("'(?", std::string(1, Peek(2)),
                               "' (look-around, names and flags) is not supported: use (?:"));
    }
    place_ += Peek(1) == '?' ? 3 : 1;
    return absl::OkStatus();
  }

  absl::Status Escape(bool in_class) {
    const char c = Peek(1);
    if (c == '\0') return Fail("the escape is not finished");
    if (absl::ascii_isalnum(static_cast<unsigned char>(c)) &&
        !absl::StrContains(in_class ? "dwsnrtfvxu" : "dDwWsnrtfvxu", c)) {
      return Fail(absl::StrCat("'\\", std::string(1, c), "' is not supported",
                               in_class ? " in a class" : ""));
    }
    if (json_ && absl::StrContains("DWsnrtfvxu\"\\", c)) {
      return Fail(absl::StrCat("'\\", std::string(1, c),
                               "' in a JSON pattern may match what JSON must escape: name the "
                               "characters, as in [a-z]"));
    }
    place_ += 2;
    return absl::OkStatus();
  }

  absl::Status Class() {
    const size_t begin = place_++;
    if (Peek(0) == '^') {
      if (json_) return Fail("a negated class in a JSON pattern may match what JSON must escape");
      ++place_;
    }
    char last = '\0';
    for (; place_ < regex_.size() && regex_[place_] != ']';) {
      const char c = regex_[place_];
      if (c == '[') return Fail("'[' in a class: write \\[");
      if (static_cast<unsigned char>(c) < 0x20) return Fail("a control character");
      if (json_ && c == '"') return Fail("'\"' in a JSON pattern must be escaped by JSON");
      // Of all ASCII ranges only those within digits, upper or lower case are sure not to hold
      // quotes or backslashes.
      if (json_ && c == '-' && last != '\0' && Peek(1) != ']' && !PlainRange(last, Peek(1))) {
        return Fail("ranges in a JSON pattern are a-z, A-Z, 0-9 and parts of them");
      }
      last = c;
      if (c == '\\') {
        if (absl::Status s = Escape(/*in_class=*/true); !s.ok()) return s;
      } else {
        ++place_;
      }
    }
    if (place_ == regex_.size()) return At("regex", begin, "the class is not closed");
    ++place_;
    return absl::OkStatus();
  }

  static bool PlainRange(char a, char b) {
    const auto within = [a, b](char low, char high) { return a >= low && b <= high && a <= b; };
    return within('a', 'z') || within('A', 'Z') || within('0', '9') ||
           (static_cast<unsigned char>(a) >= 0x80 && static_cast<unsigned char>(b) >= 0x80);
  }

  absl::string_view regex_;
  bool json_;
  size_t place_ = 0;
  int depth_ = 0;
};

}  // namespace

absl::Status CheckRegex(absl::string_view regex) { return RegexChecker(regex, false).Check(); }
absl::Status CheckJsonPattern(absl::string_view regex) { return RegexChecker(regex, true).Check(); }

absl::Status CheckGbnf(absl::string_view grammar) {
  int depth = 0;
  char quote = '\0';
  bool comment = false;
  for (size_t i = 0; i < grammar.size(); ++i) {
    const char c = grammar[i];
    if (comment) {
      comment = c != '\n';
    } else if (c == '\\') {
      ++i;
    } else if (quote != '\0') {
      if (c == quote) quote = '\0';
    } else if (c == '"') {
      quote = '"';
    } else if (c == '[') {
      quote = ']';
    } else if (c == '#') {
      comment = true;
    } else if (c == '(') {
      if (++depth > kMaxNesting) {
        return At("gbnf", i, absl::StrCat("nested deeper than ", kMaxNesting));
      }
    } else if (c == ')') {
      --depth;
    } else if (c == '{') {
      if (absl::Status s = CheckRepetition("gbnf", grammar, i); !s.ok()) return s;
    }
  }
  return absl::OkStatus();
}

}  // namespace osdn
