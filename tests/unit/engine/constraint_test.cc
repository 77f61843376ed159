#include "engine/constraint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <random>

#include "absl/strings/str_cat.h"
#include "engine/constraint_compiler.h"

namespace osdn {
namespace {

using Kind = ConstraintSpec::Kind;
using ::testing::HasSubstr;

constexpr int32_t kEnd = 3;

// 0: nothing, 1: "ab", 2: "b", 3: end (adds nothing), 4..: single ASCII characters.
std::vector<std::string> Vocabulary() {
  std::vector<std::string> bytes = {"", "ab", "b", ""};
  for (char c = ' '; c < '~'; ++c) bytes.emplace_back(1, c);
  return bytes;
}
int32_t Id(char c) { return 4 + c - ' '; }

class ConstraintTest : public ::testing::Test {
 protected:
  explicit ConstraintTest(const ConstraintLimits& limits = {}) : compiler_(Vocabulary(), limits) {}

  std::shared_ptr<const CompiledConstraint> Compile(Kind kind, const std::string& source) {
    auto compiled = compiler_.CompileNow({kind, source});
    EXPECT_TRUE(compiled.ok()) << compiled.status();
    return compiled.ok() ? *compiled : nullptr;
  }
  static std::vector<int32_t> Allowed(ConstraintMatcher* matcher,
                                      const std::vector<int32_t>& ends = {kEnd}) {
    std::vector<float> logits(Vocabulary().size() + 5, 0.0F);
    const absl::Status masked = matcher->Mask(ends, absl::MakeSpan(logits));
    EXPECT_TRUE(masked.ok()) << masked;
    std::vector<int32_t> ids;
    for (size_t i = 0; i < logits.size(); ++i) {
      if (logits[i] == 0.0F) ids.push_back(static_cast<int32_t>(i));
    }
    return ids;
  }
  static void Take(ConstraintMatcher* matcher, absl::string_view text) {
    for (const char c : text) ASSERT_TRUE(matcher->Accept(Id(c)).ok()) << text;
  }
  std::string Error(Kind kind, const std::string& source) {
    return std::string(compiler_.CompileNow({kind, source}).status().message());
  }

  ConstraintCompiler compiler_;
};

TEST_F(ConstraintTest, MasksWhatCannotFollow) {
  ConstraintMatcher matcher(Compile(Kind::kRegex, "(ab){1,2}c?"));
  EXPECT_THAT(Allowed(&matcher), testing::ElementsAre(1, Id('a')));
  ASSERT_TRUE(matcher.Accept(Id('a')).ok());
  EXPECT_THAT(Allowed(&matcher), testing::ElementsAre(2, Id('b')));
  EXPECT_FALSE(matcher.Accept(Id('x')).ok());
  EXPECT_FALSE(matcher.Accept(0).ok());
  ASSERT_TRUE(matcher.Accept(2).ok());
  EXPECT_THAT(Allowed(&matcher), testing::ElementsAre(1, kEnd, Id('a'), Id('c')));
  EXPECT_FALSE(matcher.complete());
  ASSERT_TRUE(matcher.Accept(Id('c')).ok());
  EXPECT_TRUE(matcher.complete());
  EXPECT_THAT(Allowed(&matcher), testing::ElementsAre(kEnd));
}

TEST_F(ConstraintTest, ACopyGoesItsOwnWay) {
  ConstraintMatcher matcher(Compile(Kind::kRegex, "a(b|c)d"));
  Take(&matcher, "a");
  ConstraintMatcher fork = matcher;
  Take(&matcher, "c");
  EXPECT_EQ(Allowed(&fork), (std::vector<int32_t>{2, Id('b'), Id('c')}));
  Take(&fork, "b");
  EXPECT_EQ(Allowed(&fork), Allowed(&matcher));
}

TEST_F(ConstraintTest, EndTokensOfTextEndOnlyWhereItIsComplete) {
  // 'b' ends this completion: it is no character of it any more.
  ConstraintMatcher matcher(Compile(Kind::kRegex, "a[bc]?"));
  EXPECT_THAT(Allowed(&matcher, {Id('b')}), testing::ElementsAre(1, Id('a')));
  Take(&matcher, "a");
  EXPECT_THAT(Allowed(&matcher, {Id('b')}), testing::ElementsAre(2, Id('b'), Id('c')));
}

TEST_F(ConstraintTest, WithoutEndTokensTheEndIsStillFound) {
  ConstraintMatcher matcher(Compile(Kind::kGbnf, "root ::= \"ab\""));
  ASSERT_TRUE(matcher.Accept(1).ok());
  EXPECT_TRUE(matcher.complete());
}

TEST_F(ConstraintTest, GoesOnWhereItsStateWasSaved) {
  const auto compiled = Compile(Kind::kRegex, "(ab)*c");
  ConstraintMatcher matcher(compiled);
  Take(&matcher, "aba");
  const std::string state = matcher.SaveState();
  // In another process.
  ConstraintCompiler other(Vocabulary(), {});
  absl::StatusOr<ConstraintMatcher> resumed =
      ConstraintMatcher::Resume(*other.CompileNow({Kind::kRegex, "(ab)*c"}), state);
  ASSERT_TRUE(resumed.ok()) << resumed.status();
  EXPECT_EQ(Allowed(&*resumed), Allowed(&matcher));
  EXPECT_EQ(resumed->SaveState(), state);

  EXPECT_EQ(ConstraintMatcher::Resume(Compile(Kind::kRegex, "(ab)*d"), state).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ConstraintMatcher::Resume(Compile(Kind::kGbnf, "root ::= .*"), state).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ConstraintMatcher::Resume(compiled, state.substr(0, 20)).status().code(),
            absl::StatusCode::kDataLoss);
  Take(&matcher, "bc");
  EXPECT_EQ(ConstraintMatcher::Resume(compiled, matcher.SaveState()).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(ConstraintTest, TooMuchWorkEndsTheMatcherOnly) {
  ConstraintMatcher matcher(Compile(Kind::kGbnf, "root ::= \"a\" | root root"));
  const auto begin = std::chrono::steady_clock::now();
  absl::Status status;
  std::vector<float> logits(Vocabulary().size());
  for (int i = 0; i < 20'000 && status.ok(); ++i) {
    status = matcher.Mask({kEnd}, absl::MakeSpan(logits));
    if (status.ok()) status = matcher.Accept(Id('a'));
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(60));
  ConstraintMatcher again(Compile(Kind::kGbnf, "root ::= \"a\" | root root"));
  Take(&again, "aaaa");
}

// The limit is hit at the same token of the same text, whatever was followed before.
TEST_F(ConstraintTest, LimitsDependOnTheTextAlone) {
  const auto ends_at = [this] {
    ConstraintMatcher matcher(Compile(Kind::kGbnf, "root ::= \"\" | \"a\" root \"b\""));
    std::vector<float> logits(Vocabulary().size());
    int i = 0;
    while (matcher.Mask({kEnd}, absl::MakeSpan(logits)).ok() && matcher.Accept(Id('a')).ok()) ++i;
    return i;
  };
  const int first = ends_at();
  EXPECT_EQ(ends_at(), first);
  EXPECT_GT(first, 500);
}

TEST_F(ConstraintTest, EqualConstraintsAreCompiledOnce) {
  const auto first = Compile(Kind::kRegex, "a+");
  EXPECT_EQ(Compile(Kind::kRegex, "a+"), first);
  EXPECT_NE(Compile(Kind::kRegex, "a*"), first);
  EXPECT_NE(Compile(Kind::kGbnf, "root ::= \"a\""), first);
  EXPECT_GT(first->bytes(), 0U);
}

TEST_F(ConstraintTest, ErrorsSayWhatIsWrong) {
  EXPECT_THAT(Error(Kind::kRegex, "(?=a)"), HasSubstr("regex: at byte 0: '(?'"));
  EXPECT_THAT(Error(Kind::kJsonSchema, R"({"type":"object","properties":{"a":{"not":{}}}})"),
              HasSubstr("json_schema: /properties/a/not: keyword \"not\" is not supported"));
  EXPECT_THAT(Error(Kind::kGbnf, "root ::= missing"), HasSubstr("gbnf: line 1, column 10"));
  EXPECT_THAT(Error(Kind::kRegex, std::string(100'000, 'a')), HasSubstr("at most 65536"));
  // All at once.
  const std::string all =
      Error(Kind::kJsonSchema, R"({"type":"array","uniqueItems":true,"items":{"type":"strin"}})");
  EXPECT_THAT(all, HasSubstr("/uniqueItems"));
  EXPECT_THAT(all, HasSubstr("/items/type"));
}

TEST_F(ConstraintTest, HostileSourcesAreRefusedInTime) {
  const auto begin = std::chrono::steady_clock::now();
  const std::string deep(60'000, '[');
  for (const auto& [kind, source] : std::vector<std::pair<Kind, std::string>>{
           {Kind::kJsonSchema, deep},
           {Kind::kJsonSchema, deep + std::string(60'000, ']')},
           {Kind::kJsonSchema, "{\"$ref\":\"#\"}"},
           {Kind::kJsonSchema, "{\"type\":\"integer\",\"minimum\":1e999}"},
           {Kind::kJsonSchema, "{\"type\":\"integer\",\"minimum\":18446744073709551615}"},
           {Kind::kJsonSchema, "{\"type\":\"string\",\"maxLength\":18446744073709551615}"},
           {Kind::kJsonSchema,
            R"({"$defs":{"a/b":{"$ref":"#/$defs/a~1b"}},"$ref":"#/$defs/a~1b"})"},
           {Kind::kJsonSchema, std::string("{\"a\0\":1}", 8)},
           {Kind::kRegex, std::string(60'000, '(')},
           {Kind::kRegex,
            "((((a{9999}b){9999}|c{9999}){9999}d{9999}){9999}" + std::string(99, '(')},
           {Kind::kRegex, std::string(60'000, '[')},
           {Kind::kRegex, std::string("a\0b", 3)},
           {Kind::kGbnf, "#\r root ::= " + std::string(60'000, '(')},
           {Kind::kGbnf, std::string("root ::= \"\0\"", 12)},
           {Kind::kGbnf, "root ::= " + std::string(60'000, 'a')},
           {Kind::kGbnf, "root ::= \"a\"" + std::string(60'000, '*')},
           {Kind::kGbnf, "root ::= (\"a\"{10000} \"b\"{10000} .{10000}){10000} | missing"}}) {
    EXPECT_EQ(compiler_.CompileNow({kind, source}).status().code(),
              absl::StatusCode::kInvalidArgument)
        << source.substr(0, 60);
  }
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(60));
}

class SmallCacheTest : public ConstraintTest {
 protected:
  SmallCacheTest() : ConstraintTest({.max_cache_bytes = 1, .max_working_bytes = 1}) {}
};

TEST_F(SmallCacheTest, KeepsTheLastOnly) {
  const auto first = Compile(Kind::kRegex, "a+");
  EXPECT_EQ(Compile(Kind::kRegex, "a+"), first);
  const auto second = Compile(Kind::kRegex, "b+");
  EXPECT_NE(Compile(Kind::kRegex, "a+"), first);
}

// With no room for anything worked out, matchers move to new automata all the time.
TEST_F(SmallCacheTest, ForgettingChangesNothing) {
  const std::string source = "root ::= \"[\" (root (\",\" root)*)? \"]\" | [ab]{0,5}";
  const auto small = Compile(Kind::kGbnf, source);
  ConstraintCompiler roomy(Vocabulary(), {});
  const auto large = roomy.CompileNow({Kind::kGbnf, source});
  ASSERT_TRUE(large.ok());
  std::mt19937 random(1);
  std::vector<std::pair<ConstraintMatcher, ConstraintMatcher>> pairs(
      5, {ConstraintMatcher(small), ConstraintMatcher(*large)});
  for (int step = 0; step < 400; ++step) {
    auto& [one, other] = pairs[random() % pairs.size()];
    std::vector<int32_t> allowed = Allowed(&one);
    ASSERT_EQ(allowed, Allowed(&other));
    if (allowed.back() == kEnd) allowed.pop_back();
    if (allowed.empty()) continue;
    const int32_t token = allowed[random() % allowed.size()];
    if (token == kEnd) continue;
    ASSERT_TRUE(one.Accept(token).ok());
    ASSERT_TRUE(other.Accept(token).ok());
  }
}

class NoTimeTest : public ConstraintTest {
 protected:
  NoTimeTest() : ConstraintTest({.max_compile_time = std::chrono::milliseconds(-1)}) {}
};

TEST_F(NoTimeTest, TheDeadlineEndsTheWork) {
  for (const Kind kind : {Kind::kRegex, Kind::kGbnf, Kind::kJsonSchema}) {
    const char* source = kind == Kind::kRegex  ? "a+b"
                         : kind == Kind::kGbnf ? "root ::= \"a\" | \"b\""
                                               : R"({"type":"string"})";
    EXPECT_EQ(compiler_.CompileNow({kind, source}).status().code(),
              absl::StatusCode::kResourceExhausted);
  }
}

class QueueTest : public ConstraintTest {
 protected:
  QueueTest() : ConstraintTest({.max_queued = 2}) {}
};

TEST_F(QueueTest, IsBoundedAndAsksWhetherAnybodyWaits) {
  std::promise<void> go;
  std::promise<void> begun;
  std::vector<std::promise<absl::StatusCode>> ends(4);
  std::atomic<int> asked = 0;
  const auto compile = [&](size_t i, std::string regex, ConstraintCompiler::Wanted wanted) {
    compiler_.Compile({Kind::kRegex, std::move(regex)}, std::move(wanted),
                      [&ends, i](const ConstraintCompiler::Result& result) {
                        ends[i].set_value(result.status().code());
                      });
  };
  compile(0, "a", [&] {
    begun.set_value();
    go.get_future().wait();
    return absl::OkStatus();
  });
  begun.get_future().wait();
  compile(1, "b", [&] {
    ++asked;
    return absl::CancelledError("gone");
  });
  compile(2, "c", [] { return absl::OkStatus(); });
  compile(3, "d", [] { return absl::OkStatus(); });
  EXPECT_EQ(ends[3].get_future().get(), absl::StatusCode::kResourceExhausted);
  go.set_value();
  EXPECT_EQ(ends[0].get_future().get(), absl::StatusCode::kOk);
  EXPECT_EQ(ends[1].get_future().get(), absl::StatusCode::kCancelled);
  EXPECT_EQ(ends[2].get_future().get(), absl::StatusCode::kOk);
  EXPECT_EQ(asked, 1);
  // What is known needs no turn: good or bad.
  std::vector<absl::StatusCode> codes;
  const auto note = [&](const ConstraintCompiler::Result& r) {
    codes.push_back(r.status().code());
  };
  EXPECT_EQ(Error(Kind::kRegex, "(").substr(0, 5), "regex");
  const auto never = [] { return absl::InternalError("asked"); };
  compiler_.Compile({Kind::kRegex, "a"}, never, note);
  compiler_.Compile({Kind::kRegex, "("}, never, note);
  EXPECT_THAT(codes,
              testing::ElementsAre(absl::StatusCode::kOk, absl::StatusCode::kInvalidArgument));
}

// Masks, against asking for each token alone; schemas that cover all there is.
TEST_F(ConstraintTest, MasksAreWhatAcceptAccepts) {
  const uint32_t seed = std::random_device()();
  std::mt19937 random(seed);
  const std::string schema = R"({"type":"object","properties":{"a":{"type":"integer","minimum":-40,
      "maximum":999},"b":{"type":"array","items":{"type":["string","null"],"maxLength":3}},
      "c":{"enum":["x","xy",1.5,null]},"d":{"type":"string","pattern":"^[a-c]+b\"?$"},
      "e":{"anyOf":[{"type":"number"},{"$ref":"#"}]}},"required":["b"]})";
  for (const auto& [kind, source] : std::vector<std::pair<Kind, std::string>>{
           {Kind::kJsonSchema, schema}, {Kind::kRegex, "(a|ab|b[^a]{2,3})*!"}}) {
    const auto compiled = Compile(kind, source);
    ASSERT_NE(compiled, nullptr);
    for (int round = 0; round < 20; ++round) {
      ConstraintMatcher matcher(compiled);
      for (int step = 0; step < 60 && !matcher.complete(); ++step) {
        std::vector<int32_t> accepted;
        for (int32_t id = 0; id < static_cast<int32_t>(Vocabulary().size()); ++id) {
          ConstraintMatcher copy = matcher;
          if (copy.Accept(id).ok()) accepted.push_back(id);
        }
        ASSERT_EQ(Allowed(&matcher, {}), accepted) << source << ", random seed " << seed;
        ASSERT_FALSE(accepted.empty());
        ASSERT_TRUE(matcher.Accept(accepted[random() % accepted.size()]).ok());
      }
    }
  }
}

}  // namespace
}  // namespace osdn
