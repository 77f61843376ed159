#include "engine/constraint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

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
  explicit ConstraintTest(const ConstraintLimits& limits = {}) {
    auto compiler = ConstraintCompiler::Create(Vocabulary(), limits);
    EXPECT_TRUE(compiler.ok()) << compiler.status();
    compiler_ = *std::move(compiler);
  }
  std::shared_ptr<const CompiledConstraint> Compile(Kind kind, const std::string& source) {
    auto compiled = compiler_->Compile({kind, source});
    EXPECT_TRUE(compiled.ok()) << compiled.status();
    return compiled.ok() ? *compiled : nullptr;
  }
  static std::vector<int32_t> Allowed(const ConstraintMatcher& matcher) {
    std::vector<float> logits(Vocabulary().size() + 5, 0.0F);
    matcher.Mask(absl::MakeSpan(logits));
    std::vector<int32_t> ids;
    for (size_t i = 0; i < Vocabulary().size(); ++i) {
      if (logits[i] == 0.0F) ids.push_back(static_cast<int32_t>(i));
    }
    return ids;
  }

  std::unique_ptr<ConstraintCompiler> compiler_;
};

TEST_F(ConstraintTest, MasksWhatCannotFollow) {
  ConstraintMatcher matcher(Compile(Kind::kRegex, "(ab){1,2}c?"), {kEnd});
  EXPECT_THAT(Allowed(matcher), testing::ElementsAre(1, Id('a')));
  ASSERT_TRUE(matcher.Accept(Id('a')).ok());
  EXPECT_THAT(Allowed(matcher), testing::ElementsAre(2, Id('b')));
  EXPECT_FALSE(matcher.Accept(Id('x')).ok());
  ASSERT_TRUE(matcher.Accept(2).ok());
  EXPECT_THAT(Allowed(matcher), testing::ElementsAre(1, kEnd, Id('a'), Id('c')));
  EXPECT_FALSE(matcher.complete());
  ASSERT_TRUE(matcher.Accept(Id('c')).ok());
  EXPECT_TRUE(matcher.complete());
  EXPECT_THAT(Allowed(matcher), testing::ElementsAre(kEnd));
}

TEST_F(ConstraintTest, ForkGoesItsOwnWay) {
  ConstraintMatcher matcher(Compile(Kind::kRegex, "a(b|c)d"), {kEnd});
  ASSERT_TRUE(matcher.Accept(Id('a')).ok());
  const std::unique_ptr<ConstraintMatcher> fork = matcher.Fork();
  ASSERT_TRUE(matcher.Accept(Id('c')).ok());
  EXPECT_EQ(Allowed(*fork), (std::vector<int32_t>{2, Id('b'), Id('c')}));
  ASSERT_TRUE(fork->Accept(2).ok());
  EXPECT_EQ(Allowed(*fork), Allowed(matcher));
}

TEST_F(ConstraintTest, EndTokensOfTextEndOnlyWhereItIsComplete) {
  // 'b' ends this completion: it is no character of it any more.
  ConstraintMatcher matcher(Compile(Kind::kRegex, "a[bc]?"), {Id('b')});
  EXPECT_THAT(Allowed(matcher), testing::ElementsAre(1, Id('a')));
  ASSERT_TRUE(matcher.Accept(Id('a')).ok());
  EXPECT_THAT(Allowed(matcher), testing::ElementsAre(2, Id('b'), Id('c')));
}

TEST_F(ConstraintTest, WithoutEndTokensTheEndIsStillFound) {
  ConstraintMatcher matcher(Compile(Kind::kGbnf, "root ::= \"ab\""), {});
  ASSERT_TRUE(matcher.Accept(1).ok());
  EXPECT_TRUE(matcher.complete());
}

TEST_F(ConstraintTest, EqualConstraintsAreCompiledOnce) {
  const auto first = Compile(Kind::kRegex, "a+");
  EXPECT_EQ(Compile(Kind::kRegex, "a+"), first);
  EXPECT_NE(Compile(Kind::kRegex, "a*"), first);
  EXPECT_GT(first->bytes(), 0U);
}

TEST_F(ConstraintTest, ErrorsSayWhatIsWrong) {
  const auto error = [this](Kind kind, const std::string& source) {
    return std::string(compiler_->Compile({kind, source}).status().message());
  };
  EXPECT_THAT(error(Kind::kRegex, "(?=a)"), HasSubstr("regex: at byte 0: '(?='"));
  EXPECT_THAT(error(Kind::kJsonSchema, R"({"type":"object","properties":{"a":{"not":{}}}})"),
              HasSubstr("/properties/a/not: keyword \"not\" is not supported"));
  EXPECT_THAT(error(Kind::kJsonSchema, R"({"type":"string","pattern":"\"."})"),
              HasSubstr("/pattern"));
  EXPECT_THAT(error(Kind::kGbnf, "root ::= missing"), HasSubstr("missing"));
  EXPECT_THAT(error(Kind::kRegex, std::string(100'000, 'a')), HasSubstr("at most 65536"));
}

class SmallCacheTest : public ConstraintTest {
 protected:
  SmallCacheTest() : ConstraintTest({.max_cache_bytes = 1}) {}
};

TEST_F(SmallCacheTest, KeepsTheLastOnly) {
  const auto first = Compile(Kind::kRegex, "a+");
  EXPECT_EQ(Compile(Kind::kRegex, "a+"), first);
  const auto second = Compile(Kind::kRegex, "b+");
  EXPECT_NE(Compile(Kind::kRegex, "a+"), first);
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
    EXPECT_EQ(compiler_->Compile({kind, source}).status().code(),
              absl::StatusCode::kResourceExhausted);
  }
}

}  // namespace
}  // namespace osdn
