// Grammars against what they should mean, worked out another way: every text up to some length, and
// random grammars whose seed is logged.
#include "engine/grammar.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <random>
#include <regex>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/gbnf_grammar.h"
#include "engine/json_decimal.h"
#include "engine/json_text.h"
#include "engine/recognizer.h"
#include "engine/regex_grammar.h"

namespace osdn {
namespace {

using ::testing::HasSubstr;

// A grammar with a recognizer that lives as long.
class Language {
 public:
  explicit Language(absl::StatusOr<Grammar> grammar) {
    EXPECT_TRUE(grammar.ok()) << grammar.status();
    if (!grammar.ok()) return;
    grammar_ = std::make_unique<Grammar>(*std::move(grammar));
    recognizer_ = std::make_unique<Recognizer>(grammar_.get(), Recognizer::Limits());
  }

  Recognizer::Place Follow(absl::string_view text) {
    Recognizer::Place place = recognizer_->start();
    for (const char byte : text) {
      place = recognizer_->Step(place, static_cast<uint8_t>(byte));
      if (place == Recognizer::kDead || place == Recognizer::kTooComplex) break;
    }
    return place;
  }
  bool Has(absl::string_view text) {
    const Recognizer::Place place = Follow(text);
    return place > Recognizer::kTooComplex && recognizer_->accepts(place);
  }
  Recognizer& recognizer() { return *recognizer_; }
  const Grammar& grammar() const { return *grammar_; }

 private:
  std::unique_ptr<Grammar> grammar_;
  std::unique_ptr<Recognizer> recognizer_;
};

absl::StatusOr<Grammar> FromRegex(absl::string_view regex) {
  GrammarBuilder builder;
  const absl::StatusOr<GrammarBuilder::Node> node = AddRegex(regex, {}, &builder);
  if (!node.ok()) return node.status();
  builder.Define(Grammar::kRoot, *node);
  return builder.Build({});
}

absl::StatusOr<Grammar> FromGbnf(absl::string_view source) {
  GrammarBuilder builder;
  if (absl::Status s = AddGbnf(source, &builder); !s.ok()) return s;
  return builder.Build({});
}

// Of at most `length` characters, the empty one first.
std::vector<std::string> AllTexts(absl::string_view alphabet, size_t length) {
  std::vector<std::string> texts = {""};
  for (size_t i = 0; i < texts.size(); ++i) {
    if (texts[i].size() == length) continue;
    for (const char c : alphabet) texts.push_back(texts[i] + c);
  }
  return texts;
}

class Random {
 public:
  Random() : seed_(std::random_device()()), engine_(seed_) {}
  int Below(int n) { return std::uniform_int_distribution<int>(0, n - 1)(engine_); }
  // For messages: what to put in place of random_device to see the same again.
  std::string seed() const { return absl::StrCat("random seed ", seed_); }

 private:
  uint32_t seed_;
  std::mt19937 engine_;
};

// NOLINTNEXTLINE(misc-no-recursion)
std::string RandomRegex(Random* random, int depth) {
  const auto inner = [&] { return RandomRegex(random, depth - 1); };
  const auto pick = [&](std::vector<std::string> choices) {
    return choices[static_cast<size_t>(random->Below(static_cast<int>(choices.size())))];
  };
  switch (depth == 0 ? random->Below(2) : random->Below(7)) {
    case 0:
      return pick({"a", "b", "c"});
    case 1:
      return pick({"[ab]", "[^b]", ".", "[a-b^]", "[^a^]", "\\w", "[\\]c]", "[-a]"});
    case 2:
      return absl::StrCat("(", inner(), "|", inner(), ")");
    case 3:
      return absl::StrCat("(?:", inner(), ")", pick({"*", "+", "?", "*?", "{2}", "{1,}"}));
    case 4: {
      const int min = random->Below(3);
      return absl::StrCat("(", inner(), "){", min, ",", min + random->Below(3), "}");
    }
    default:
      return inner() + inner();
  }
}

TEST(RegexGrammarTest, RandomOnesAgreeWithTheStandardLibrary) {
  Random random;
  const std::vector<std::string> texts = AllTexts("abc^", 4);
  for (int round = 0; round < 150; ++round) {
    const std::string regex = RandomRegex(&random, 3);
    const std::regex expected(regex);
    Language language(FromRegex(regex));
    for (const std::string& text : texts) {
      ASSERT_EQ(language.Has(text), std::regex_match(text, expected))
          << regex << " and " << text << ", " << random.seed();
    }
  }
}

// A grammar as lists of alternatives of sequences; capitals are rules.
using Rules = std::map<char, std::vector<std::string>>;

Rules RandomRules(Random* random) {
  Rules rules;
  for (const char name : {'A', 'B', 'C'}) {
    const int alternatives = 1 + random->Below(3);
    for (int i = 0; i < alternatives; ++i) {
      std::string& sequence = rules[name].emplace_back();
      for (int symbols = random->Below(4); symbols > 0; --symbols) {
        sequence.push_back("abABC"[random->Below(5)]);
      }
    }
  }
  return rules;
}

std::string AsGbnf(const Rules& rules) {
  std::string source = "root ::= A\n";
  for (const auto& [name, alternatives] : rules) {
    std::vector<std::string> texts;
    for (const std::string& sequence : alternatives) {
      std::string text = "\"\"";
      for (const char c : sequence) {
        absl::StrAppend(&text, " ",
                        c < 'a' ? std::string(1, c) : absl::StrCat("\"", std::string(1, c), "\""));
      }
      texts.push_back(text);
    }
    absl::StrAppend(&source, std::string(1, name), " ::= ", absl::StrJoin(texts, " | "), "\n");
  }
  return source;
}

// What each rule may be, up to `length`: until nothing is added any more.
std::map<char, std::set<std::string>> Texts(const Rules& rules, size_t length) {
  std::map<char, std::set<std::string>> texts;
  for (bool grows = true; grows;) {
    grows = false;
    for (const auto& [name, alternatives] : rules) {
      for (const std::string& sequence : alternatives) {
        std::set<std::string> all = {""};
        for (const char symbol : sequence) {
          const std::set<std::string> own =
              symbol < 'a' ? texts[symbol] : std::set<std::string>{std::string(1, symbol)};
          std::set<std::string> longer;
          for (const std::string& left : all) {
            for (const std::string& right : own) {
              if (left.size() + right.size() <= length) longer.insert(left + right);
            }
          }
          all = std::move(longer);
        }
        for (const std::string& text : all) grows = texts[name].insert(text).second || grows;
      }
    }
  }
  return texts;
}

TEST(RecognizerTest, RandomGrammarsAgreeWithTheirTextsWorkedOut) {
  Random random;
  constexpr size_t kLength = 6;
  int built = 0;
  for (int round = 0; round < 400; ++round) {
    const Rules rules = RandomRules(&random);
    const std::set<std::string> expected = Texts(rules, kLength)['A'];
    const absl::StatusOr<Grammar> grammar = FromGbnf(AsGbnf(rules));
    const std::string where = absl::StrCat(AsGbnf(rules), random.seed(), " round ", round);
    if (!grammar.ok()) {
      ASSERT_THAT(grammar.status().message(), HasSubstr("no text fits"));
      ASSERT_TRUE(expected.empty()) << where;
      continue;
    }
    ++built;
    Language language(*grammar);
    for (const std::string& text : AllTexts("ab", kLength)) {
      ASSERT_EQ(language.Has(text), expected.count(text) > 0) << where << " text " << text;
    }
    for (const std::string& text : expected) {
      for (size_t i = 0; i < text.size(); ++i) {
        ASSERT_GT(language.Follow(text.substr(0, i)), Recognizer::kTooComplex) << where;
      }
    }
    // A place is the same in a recognizer that has seen other texts.
    Recognizer other(&language.grammar(), Recognizer::Limits());
    for (const std::string& text : expected) {
      const Recognizer::Place place = other.Import(language.recognizer(), language.Follow(text));
      ASSERT_EQ(other.accepts(place), true) << where;
      ASSERT_EQ(other.is_last(place), language.recognizer().is_last(language.Follow(text)));
    }
  }
  EXPECT_GT(built, 100);
}

TEST(RecognizerTest, PlacesRepeat) {
  Language loop(FromGbnf("root ::= item (\",\" item)*\nitem ::= [a-z]+ | \"[\" root \"]\""));
  EXPECT_EQ(loop.Follow("a,b"), loop.Follow("a,bc,d,e"));
  EXPECT_EQ(loop.Follow("[a,[b,c"), loop.Follow("[a,b,c,[xyz,b"));
  EXPECT_NE(loop.Follow("[a,[b"), loop.Follow("[a,b"));
  const size_t places = loop.recognizer().num_places();
  loop.Follow(std::string(10'000, 'x'));
  EXPECT_LE(loop.recognizer().num_places(), places + 2);
  // So do those in a loop over a rule with nothing between.
  Language calls(FromGbnf("root ::= \"<\" c* \">\"\nc ::= [a-z] | \"\\\\\" [a-z]"));
  EXPECT_EQ(calls.Follow("<ab"), calls.Follow("<a\\bc" + std::string(100'000, 'x')));
  // Right recursion is a loop too.
  Language right(FromGbnf("root ::= \"a\" | \"a\" root"));
  EXPECT_EQ(right.Follow("aa"), right.Follow(std::string(5000, 'a')));
  Language left(FromGbnf("root ::= \"a\" | root \"a\""));
  EXPECT_EQ(left.Follow("aa"), left.Follow(std::string(5000, 'a')));
}

TEST(RecognizerTest, WorkIsBounded) {
  for (const char* source :
       {"root ::= \"a\" | root root", "root ::= \"a\" | root root root | root root",
        "root ::= \"\" | root \"a\" root", "root ::= \"a\" root \"b\" | \"\""}) {
    Language language(FromGbnf(source));
    EXPECT_EQ(language.Follow(std::string(50'000, 'a')), Recognizer::kTooComplex) << source;
    EXPECT_GT(language.Follow(std::string(30, 'a')), Recognizer::kTooComplex) << source;
  }
}

TEST(CharactersTest, RangesBecomeTheirUtf8) {
  Random random;
  for (int round = 0; round < 60; ++round) {
    std::vector<CharacterRange> ranges;
    for (int i = random.Below(3); i >= 0; --i) {
      const int bits = 7 + random.Below(15);
      const auto low = static_cast<uint32_t>(random.Below(1 << bits));
      ranges.push_back({low, low + static_cast<uint32_t>(random.Below(1 << random.Below(bits)))});
    }
    GrammarBuilder builder;
    builder.Define(Grammar::kRoot, builder.Choice({builder.OneOf(ranges), builder.Literal("zz")}));
    Language language(builder.Build({}));
    const auto expect = [&](uint32_t character) {
      bool in = false;
      for (const CharacterRange& r : ranges) in = in || (r.low <= character && character <= r.high);
      const bool surrogate = character >= 0xD800 && character < 0xE000;
      std::string text;
      AppendUtf8(character, &text);
      ASSERT_EQ(language.Has(text), in && !surrogate && character <= kMaxCharacter)
          << character << ", " << random.seed();
    };
    for (const CharacterRange& r : ranges) {
      for (const uint32_t edge :
           {r.low, r.high, uint32_t{0x7F}, uint32_t{0x7FF}, uint32_t{0xFFFF}}) {
        for (int d = -2; d <= 2; ++d) expect((edge + static_cast<uint32_t>(d)) & 0x1FFFFF);
      }
    }
    for (int i = 0; i < 300; ++i) expect(static_cast<uint32_t>(random.Below(0x110000)));
  }
}

TEST(CharactersTest, Utf8IsReadStrictly) {
  for (absl::string_view bad : {"\x80", "\xC0\x80", "\xC3", "\xE0\x80\x80", "\xED\xA0\x80", "\xF5",
                                "\xF4\x90\x80\x80", "\xC3\x28"}) {
    EXPECT_EQ(TakeUtf8(&bad), std::nullopt);
  }
  absl::string_view good = "\xF0\x9F\x98\x80z";
  EXPECT_EQ(TakeUtf8(&good), 0x1F600U);
  EXPECT_EQ(good, "z");
}

// Each range over a field of values that has all its edges.
TEST(JsonTextTest, IntegerRangesAreExact) {
  Random random;
  const std::vector<int64_t> edges = {-1001, -1000, -999, -113, -112, -100, -99, -27,
                                      -26,   -10,   -9,   -1,   0,    1,    9,   10,
                                      11,    42,    99,   100,  101,  999,  1000};
  for (const int64_t low : edges) {
    for (const int64_t high : edges) {
      if (low > high) continue;
      GrammarBuilder builder;
      builder.Define(Grammar::kRoot, JsonText(&builder).Integer(low, high));
      Language language(builder.Build({}));
      for (int64_t value = -1120; value <= 1120; ++value) {
        ASSERT_EQ(language.Has(absl::StrCat(value)), low <= value && value <= high)
            << value << " in " << low << ", " << high;
      }
      for (const char* text : {"", "-", "-0", "00", "01", "-01", "+1", "1.0", "1e2"}) {
        ASSERT_FALSE(language.Has(text)) << text << " in " << low << ", " << high;
      }
    }
  }
  for (int round = 0; round < 300; ++round) {
    const auto draw = [&random] {
      int64_t value = random.Below(1'000'000);
      for (int i = random.Below(3); i > 0; --i) value = value * 10'000 + random.Below(10'000);
      return random.Below(2) == 0 ? value : -value;
    };
    const int64_t a = draw();
    const int64_t b = draw();
    const int64_t low = std::min(a, b);
    const int64_t high = std::max(a, b);
    GrammarBuilder builder;
    builder.Define(Grammar::kRoot, JsonText(&builder).Integer(low, high));
    Language language(builder.Build({}));
    std::vector<int64_t> values = {low - 1, low, low + 1, high - 1, high, high + 1};
    for (int i = 0; i < 50; ++i) values.push_back(draw());
    for (const int64_t value : values) {
      ASSERT_EQ(language.Has(absl::StrCat(value)), low <= value && value <= high)
          << value << " in " << low << ", " << high << ", " << random.seed();
    }
  }
}

// In thousandths: the value of a text as DecimalRange writes them.
int64_t Thousandths(const std::string& text) {
  const size_t point = std::min(text.find('.'), text.size());
  std::string digits = text.substr(0, point);
  std::string fraction = point < text.size() ? text.substr(point + 1) : "";
  fraction.resize(3, '0');
  return std::stoll(digits + fraction);
}

TEST(JsonDecimalTest, RangesAreExact) {
  const std::vector<std::string> edges = {"-12.75", "-10", "-2.5", "-1",  "-0.55",
                                          "-0.05",  "0",   "0.05", "0.1", "0.5",
                                          "0.505",  "1",   "1.25", "9.9", "10"};
  std::vector<std::string> texts;
  for (const char* sign : {"", "-"}) {
    for (const int whole : {0, 1, 2, 9, 10, 12, 13}) {
      texts.push_back(absl::StrCat(sign, whole));
      for (int f = 0; f < 1000; ++f) {
        const std::string fraction = absl::StrCat(absl::Dec(f, absl::kZeroPad3));
        texts.push_back(absl::StrCat(sign, whole, ".", fraction));
        if (f % 10 == 0) texts.push_back(absl::StrCat(sign, whole, ".", fraction.substr(0, 2)));
        if (f % 100 == 0) texts.push_back(absl::StrCat(sign, whole, ".", fraction.substr(0, 1)));
      }
    }
  }
  for (const std::string& low : edges) {
    for (const std::string& high : edges) {
      for (int exclusive = 0; exclusive < 4; ++exclusive) {
        const bool open_low = (exclusive & 1) != 0;
        const bool open_high = (exclusive & 2) != 0;
        GrammarBuilder builder;
        const auto range = DecimalRange(DecimalBound{*ParseDecimal(low), open_low},
                                        DecimalBound{*ParseDecimal(high), open_high}, &builder);
        ASSERT_TRUE(range.has_value());
        builder.Define(Grammar::kRoot, builder.Choice({*range, builder.Literal("x")}));
        Language language(builder.Build({}));
        const int64_t least = Thousandths(low) + (open_low ? 1 : 0);
        const int64_t most = Thousandths(high) - (open_high ? 1 : 0);
        for (const std::string& text : texts) {
          int64_t value = Thousandths(text);
          if (text[0] == '-' && value > 0) value = -value;
          if (text[0] == '-' && value == 0) continue;  // never written
          ASSERT_EQ(language.Has(text), least <= value && value <= most)
              << text << " in " << low << ", " << high << " open " << exclusive;
        }
        ASSERT_FALSE(language.Has("-0"));
        ASSERT_FALSE(language.Has("1."));
        ASSERT_FALSE(language.Has("01"));
      }
    }
  }
}

TEST(JsonDecimalTest, ReadsAllSpellings) {
  EXPECT_EQ(ParseDecimal("1.50"), (Decimal{false, 1, "5"}));
  EXPECT_EQ(ParseDecimal("-0.0"), Decimal());
  EXPECT_EQ(ParseDecimal("1e-07"), (Decimal{false, 0, "0000001"}));
  EXPECT_EQ(ParseDecimal("-12.5e2"), (Decimal{true, 1250, ""}));
  EXPECT_EQ(ParseDecimal("1.25e1"), (Decimal{false, 12, "5"}));
  EXPECT_EQ(ParseDecimal("1e14"), (Decimal{false, 100'000'000'000'000, ""}));
  for (const char* text :
       {"1e15", "1e-16", "0.1234567890123456", "1e999999999999", "1e300", "1e-300"}) {
    EXPECT_EQ(ParseDecimal(text), std::nullopt) << text;
  }
}

std::string Error(const absl::StatusOr<Grammar>& grammar) {
  return std::string(grammar.status().message());
}

TEST(RegexGrammarTest, ErrorsSayWhere) {
  EXPECT_THAT(Error(FromRegex("ab(?=c)")), HasSubstr("at byte 2: '(?'"));
  EXPECT_THAT(Error(FromRegex("(a)\\1")), HasSubstr("at byte 3: '\\1' is not supported"));
  EXPECT_THAT(Error(FromRegex("a(b")), HasSubstr("at byte 3: '(' is not closed"));
  EXPECT_THAT(Error(FromRegex("a)b")), HasSubstr("')' without '('"));
  EXPECT_THAT(Error(FromRegex("[a")), HasSubstr("not closed"));
  EXPECT_THAT(Error(FromRegex("[b-a]")), HasSubstr("a range"));
  EXPECT_THAT(Error(FromRegex("a**")), HasSubstr("repetition of a repetition"));
  EXPECT_THAT(Error(FromRegex("*a")), HasSubstr("nothing to repeat"));
  EXPECT_THAT(Error(FromRegex("a^b")), HasSubstr("at the beginning"));
  EXPECT_THAT(Error(FromRegex("a$b")), HasSubstr("at the end"));
  for (const char* regex :
       {"a{2", "a{x}", "a{3,2}", "a{,2}", "a{99999}", "a{18446744073709551617}"}) {
    EXPECT_THAT(Error(FromRegex(regex)), HasSubstr("{n,m}")) << regex;
  }
  EXPECT_THAT(Error(FromRegex("\\ud800")), HasSubstr("surrogate"));
  EXPECT_THAT(Error(FromRegex("\xC3")), HasSubstr("UTF-8"));
  EXPECT_THAT(Error(FromRegex(absl::string_view("a\0b", 3))), HasSubstr("control character"));
  EXPECT_THAT(Error(FromRegex(std::string(60'000, '('))), HasSubstr("nested deeper"));
  EXPECT_THAT(Error(FromRegex("[^\\x00-\\uFFFF]")), testing::IsEmpty());  // other planes are left
}

TEST(RegexGrammarTest, RepetitionsOfRepetitionsStaySmall) {
  const absl::StatusOr<Grammar> grammar = FromRegex("((a{30}){20}){10}");
  ASSERT_TRUE(grammar.ok());
  EXPECT_LT(grammar->num_states(), 2000U);
  EXPECT_TRUE(Language(*grammar).Has(std::string(6000, 'a')));
  EXPECT_FALSE(Language(*grammar).Has(std::string(5999, 'a')));
}

TEST(RegexGrammarTest, ManyWaysToReadOneTextAreNotTooMany) {
  Language language(FromRegex("(\\w+ ?){1,200}!"));
  EXPECT_TRUE(language.Has(std::string(3000, 'a') + " b!"));
}

TEST(GbnfGrammarTest, ReadsWhatLlamaCppReads) {
  Language language(FromGbnf(R"gbnf(
    # a comment ends with its line
    root  ::= expr "=" ws
    expr  ::= term ([-+*/] term){0,3}
    term  ::= num | "(" expr ")"   # so does this one
    num   ::= [0-9]+ ("." [0-9]{1,2})?
    ws    ::= [ \t\n\x41\u00e9]* | "\"\\" .
  )gbnf"));
  EXPECT_TRUE(
      language.Has("1+2.5*(3-4)=\xC3\xA9"
                   "A\n"));
  EXPECT_TRUE(language.Has("7=\"\\x"));
  EXPECT_FALSE(language.Has("1+2.555="));
  EXPECT_FALSE(language.Has("1+1+1+1+1="));
  Language classes(FromGbnf("root ::= [\\^a] [^\\]b] [-x] [a-c]"));
  EXPECT_TRUE(classes.Has("^a-b"));
  EXPECT_TRUE(classes.Has("axxc"));
  EXPECT_FALSE(classes.Has("baxc"));
  EXPECT_FALSE(classes.Has("a]xc"));
}

TEST(GbnfGrammarTest, ErrorsSayWhere) {
  EXPECT_THAT(Error(FromGbnf("root ::= missing")), HasSubstr("column 10: rule \"missing\" is not"));
  EXPECT_THAT(Error(FromGbnf("start ::= \"a\"")), HasSubstr("no rule \"root\""));
  EXPECT_THAT(Error(FromGbnf("")), HasSubstr("no rule \"root\""));
  EXPECT_THAT(Error(FromGbnf("root ::= \"a\nb\"")), HasSubstr("not closed on its line"));
  EXPECT_THAT(Error(FromGbnf("root ::= \"a\"\nroot ::= \"b\"")), HasSubstr("line 2, column 1"));
  EXPECT_THAT(Error(FromGbnf("root ::= root")), HasSubstr("no text fits"));
  EXPECT_THAT(Error(FromGbnf("root ::= a\na ::= \"x\" a")), HasSubstr("no text fits"));
  EXPECT_THAT(Error(FromGbnf("root ::= \"a\" \"\\q\"")), HasSubstr("escape"));
  EXPECT_THAT(Error(FromGbnf("root ::= [b-a]")), HasSubstr("range"));
  EXPECT_THAT(Error(FromGbnf("root ::= \"a\"{5,2}")), HasSubstr("{n,m}"));
  EXPECT_THAT(Error(FromGbnf("root ::= \"a\" )")), HasSubstr("')' without"));
  EXPECT_THAT(Error(FromGbnf("root ::= (\"a\"")), HasSubstr("not closed"));
  EXPECT_THAT(Error(FromGbnf(absl::string_view("root ::= \"\0\"", 12))), HasSubstr("NUL"));
  EXPECT_THAT(Error(FromGbnf("#\r root ::= " + std::string(60'000, '('))),
              HasSubstr("nested deeper"));
  EXPECT_THAT(Error(FromGbnf("root ::= \"a\"" + std::string(60'000, '*'))),
              HasSubstr("repetitions"));
}

TEST(GrammarBuilderTest, LimitsHold) {
  GrammarBuilder builder;
  builder.Define(Grammar::kRoot, builder.Repeat(builder.Literal("a"), 10'000, std::nullopt));
  EXPECT_EQ(builder.Build({.max_states = 5000}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(builder.Build({.max_edges = 5000}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(
      builder.Build({.deadline = std::chrono::steady_clock::time_point::min()}).status().code(),
      absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(builder.Build({}).ok());
}

}  // namespace
}  // namespace osdn
