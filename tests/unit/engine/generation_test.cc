#include "engine/generation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <map>

namespace osdn {
namespace {

using ::testing::HasSubstr;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;

constexpr GenerationLimits kLimits{
    .vocab_size = 100, .max_prompt_tokens = 1000, .has_tokenizer = true};

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
  EXPECT_TRUE(Violations(request).empty());
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
