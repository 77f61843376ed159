#include "engine/generation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <map>

#include "absl/strings/str_cat.h"

namespace osdn {
namespace {

using ::testing::HasSubstr;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;

constexpr GenerationLimits kLimits{
    .vocab_size = 100, .sampled_vocab_size = 90, .max_prompt_tokens = 1000, .has_tokenizer = true};

GenerationRequest GoodRequest() {
  GenerationRequest request;
  request.prompt = {0, 1, 99};
  request.max_tokens = 5;
  return request;
}

std::map<std::string, std::string> Violations(const GenerationRequest& request,
                                              const GenerationLimits& limits = kLimits) {
  std::map<std::string, std::string> map;
  for (const FieldViolation& violation : ValidateGeneration(request, limits)) {
    map[violation.field] += violation.description;
  }
  return map;
}

TEST(ValidateGenerationTest, AcceptsTheWidestRequest) {
  EXPECT_TRUE(Violations(GoodRequest()).empty());
  GenerationRequest request = GoodRequest();
  request.prompt.assign(1000, 7);
  request.max_tokens = std::numeric_limits<int64_t>::max();
  request.min_tokens = request.max_tokens;
  request.stop_strings.assign(16, std::string(256, 'x'));
  request.stop_token_ids.assign(64, 99);
  request.choices = 16;
  EXPECT_TRUE(Violations(request).empty());
}

TEST(ValidateGenerationTest, Choices) {
  GenerationRequest request = GoodRequest();
  for (const int64_t n : {0, 17, -1}) {
    request.choices = n;
    EXPECT_THAT(Violations(request),
                UnorderedElementsAre(Pair("sampling.n", absl::StrCat(n, " is outside [1, 16]"))));
  }
  request.choices = 2;
  request.state.want_state = true;
  EXPECT_TRUE(Violations(request).empty());
  request.max_tokens = 0;
  EXPECT_THAT(Violations(request),
              UnorderedElementsAre(Pair("sampling.n", "2, but only the prompt's state is wanted")));
}

TEST(ValidateGenerationTest, Continuations) {
  GenerationRequest request;
  request.prompt.assign(900, 7);
  request.continuations = {{1, 89}, {3}};
  request.top_logprobs = 20;
  EXPECT_TRUE(Violations(request).empty()) << "neither limits nor choices matter";
  request.continuations.assign(64, {1});
  EXPECT_TRUE(Violations(request).empty());
  request.continuations.assign(65, {1});
  request.continuations[3] = {};
  request.continuations[5] = {0, 90, -1};
  EXPECT_THAT(Violations(request),
              UnorderedElementsAre(
                  Pair("continuations", "65 continuations: at most 64"),
                  Pair("continuations[3]", "0 tokens: at least 1 is needed"),
                  Pair("continuations[5].tokens.ids[1]", "90 is outside the vocabulary [0, 89]"),
                  Pair("continuations[5].tokens.ids[2]", "-1 is outside the vocabulary [0, 89]")));
  request.continuations = {std::vector<int32_t>(50, 1), std::vector<int32_t>(51, 1)};
  EXPECT_THAT(
      Violations(request),
      UnorderedElementsAre(Pair("continuations", "1001 tokens with the prompt: at most 1000")));
}

TEST(ValidateGenerationTest, TellsEverythingAtOnce) {
  GenerationRequest request;
  request.prompt = {5, -1, 100, 7};
  request.sampling.temperature = -1.0F;
  request.max_tokens = 0;
  request.min_tokens = 1;
  request.stop_strings = {"ok", "", std::string(257, 'x')};
  request.stop_token_ids = {3, 200};
  EXPECT_THAT(Violations(request),
              UnorderedElementsAre(
                  Pair("prompt.tokens.ids[1]", "-1 is outside the vocabulary [0, 99]"),
                  Pair("prompt.tokens.ids[2]", "100 is outside the vocabulary [0, 99]"),
                  Pair("sampling.temperature", HasSubstr("-1 is outside [0, 100]")),
                  Pair("stop.max_tokens", "0: at least 1 is needed"),
                  Pair("stop.min_tokens", "1 is outside [0, max_tokens = 0]"),
                  Pair("stop.stop_strings[1]", "0 bytes: outside [1, 256]"),
                  Pair("stop.stop_strings[2]", "257 bytes: outside [1, 256]"),
                  Pair("stop.stop_token_ids[1]", "200 is outside the vocabulary [0, 99]")));
}

TEST(ValidateGenerationTest, CountsAndPromptLength) {
  GenerationRequest request = GoodRequest();
  request.prompt.clear();
  request.min_tokens = -1;
  request.stop_strings.assign(17, "x");
  request.stop_token_ids.assign(65, 1);
  EXPECT_THAT(Violations(request),
              UnorderedElementsAre(Pair("prompt", "0 tokens: at least 1 is needed"),
                                   Pair("stop.min_tokens", "-1 is outside [0, max_tokens = 5]"),
                                   Pair("stop.stop_strings", "17 strings: at most 16"),
                                   Pair("stop.stop_token_ids", "65 ids: at most 64")));
  request = GoodRequest();
  request.prompt.assign(1001, 1);
  EXPECT_THAT(Violations(request),
              UnorderedElementsAre(Pair("prompt", "1001 tokens: at most 1000")));
}

TEST(ValidateGenerationTest, StopStringsNeedATokenizer) {
  GenerationRequest request = GoodRequest();
  request.stop_strings = {"x"};
  GenerationLimits limits = kLimits;
  limits.has_tokenizer = false;
  EXPECT_THAT(Violations(request, limits),
              UnorderedElementsAre(Pair("stop.stop_strings", HasSubstr("no tokenizer"))));
}

TEST(ValidateGenerationTest, ManyBadIdsMakeAShortAnswer) {
  GenerationRequest request = GoodRequest();
  request.prompt.assign(1000, -5);
  EXPECT_EQ(Violations(request).size(), 16U);
}

}  // namespace
}  // namespace osdn
