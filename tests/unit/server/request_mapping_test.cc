#include "server/request_mapping.h"

#include <gmock/gmock.h>
#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "tests/unit/engine/test_support.h"

namespace osdn {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class RequestMappingTest : public ::testing::Test {
 protected:
  RequestMappingTest() {
    auto tokenizer = Tokenizer::Load(testing_support::TestData("tokenizer/tiny.model"));
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
    config_.name = "tiny";
    config_.arch.vocab_size = 512;
    config_.has_tokenizer = true;
    config_.bos_id = 1;
    config_.eos_ids = {2};
    ChatTemplate chat;
    chat.roles["user"] = {{{true, "<|user|>"}}, {{true, "<|end|>"}}};
    chat.generation_prompt = {{true, "<|assistant|>"}};
    chat.stop_tokens = {"<|end|>"};
    config_.chat = chat;
    context_.config = &config_;
    context_.tokenizer = tokenizer_.get();
    context_.max_tokens_default = 100;
    context_.max_tokens_limit = 1000;
    context_.drawn_seed = 4242;
  }

  GenerationRequest Map(const std::string& text_proto) {
    v1::GenerateRequest request;
    EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text_proto, &request)) << text_proto;
    violations_.clear();
    return ToGenerationRequest(request, context_, &violations_);
  }

  // The one violation of `text_proto`, as "field: description".
  std::string Violation(const std::string& text_proto) {
    Map(text_proto);
    if (violations_.size() != 1) {
      ADD_FAILURE() << violations_.size() << " violations of " << text_proto;
      return "";
    }
    return violations_[0].field + ": " + violations_[0].description;
  }

  int32_t Id(const std::string& piece) { return *tokenizer_->FindPiece(piece); }

  std::unique_ptr<Tokenizer> tokenizer_;
  ModelConfig config_;
  RequestContext context_;
  std::vector<FieldViolation> violations_;
};

TEST_F(RequestMappingTest, UnsetFieldsTakeNeutralDefaults) {
  const GenerationRequest request = Map("prompt { tokens { ids: [5, 6] } }");
  EXPECT_THAT(violations_, IsEmpty());
  EXPECT_THAT(request.prompt, ElementsAre(5, 6));
  EXPECT_EQ(request.sampling.temperature, 1.0F);
  EXPECT_EQ(request.sampling.top_k, 0);
  EXPECT_EQ(request.sampling.top_p, 1.0F);
  EXPECT_EQ(request.sampling.min_p, 0.0F);
  EXPECT_EQ(request.sampling.seed, 4242U);
  EXPECT_EQ(request.sampling.typical_p, 1.0F);
  EXPECT_FALSE(request.sampling.has_penalties());
  EXPECT_EQ(request.sampling.penalty_window, 1024);
  EXPECT_THAT(request.sampling.logit_bias, IsEmpty());
  EXPECT_FALSE(request.logprobs);
  EXPECT_FALSE(request.echo);
  EXPECT_EQ(request.max_tokens, 100);
  EXPECT_EQ(request.min_tokens, 0);
  EXPECT_FALSE(request.ignore_eos);
  EXPECT_FALSE(request.want_prefill_progress);
}

TEST_F(RequestMappingTest, SetFieldsAreTakenAsTheyAreAndEchoed) {
  const GenerationRequest request = Map(R"(
      prompt { tokens { ids: 5 } }
      sampling { temperature: 0 top_k: 40 top_p: 0.5 min_p: 0.25 seed: 18446744073709551615 }
      stop { max_tokens: 7 min_tokens: 3 stop_strings: ["a", "bc"] stop_token_ids: [8, 9]
             ignore_eos: true }
      output { prefill_progress: true })");
  EXPECT_THAT(violations_, IsEmpty());
  EXPECT_EQ(request.sampling.temperature, 0.0F);
  EXPECT_EQ(request.sampling.top_k, 40);
  EXPECT_EQ(request.sampling.top_p, 0.5F);
  EXPECT_EQ(request.sampling.min_p, 0.25F);
  EXPECT_EQ(request.sampling.seed, std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(request.max_tokens, 7);
  EXPECT_EQ(request.min_tokens, 3);
  EXPECT_THAT(request.stop_strings, ElementsAre("a", "bc"));
  EXPECT_THAT(request.stop_token_ids, ElementsAre(8, 9));
  EXPECT_TRUE(request.ignore_eos);
  EXPECT_TRUE(request.want_prefill_progress);

  const v1::ResolvedParams params = ToResolvedParams(request);
  EXPECT_EQ(params.sampling().top_k(), 40U);
  EXPECT_EQ(params.sampling().seed(), std::numeric_limits<uint64_t>::max());
  EXPECT_TRUE(params.sampling().has_temperature()) << "what is echoed is set, also where it is 0";
  EXPECT_EQ(params.stop().max_tokens(), 7U);
  EXPECT_EQ(params.stop().min_tokens(), 3U);
  EXPECT_THAT(params.stop().stop_strings(), ElementsAre("a", "bc"));
  EXPECT_THAT(params.stop().stop_token_ids(), ElementsAre(8, 9));
  EXPECT_TRUE(params.stop().ignore_eos());
}

TEST_F(RequestMappingTest, ASeedOfZeroIsASeed) {
  EXPECT_EQ(Map("prompt { tokens { ids: 5 } } sampling { seed: 0 }").sampling.seed, 0U);
}

TEST_F(RequestMappingTest, TextIsEncodedBehindBos) {
  std::vector<int32_t> want = tokenizer_->Encode("Hello world");
  EXPECT_EQ(Map("prompt { text: 'Hello world' }").prompt.size(), want.size() + 1);
  config_.add_bos = false;
  EXPECT_EQ(Map("prompt { text: 'Hello world' }").prompt, want);
  config_.add_bos = true;
  want.insert(want.begin(), 1);
  EXPECT_EQ(Map("prompt { text: 'Hello world' }").prompt, want);
}

TEST_F(RequestMappingTest, MessagesAreRenderedAndTheirStopTokensAdded) {
  const int32_t end = Id("<|end|>");
  GenerationRequest request =
      Map("prompt { messages { messages { role: 'user' content: 'Hi' } } }");
  EXPECT_THAT(violations_, IsEmpty());
  EXPECT_EQ(request.prompt[0], 1);
  EXPECT_EQ(request.prompt[1], Id("<|user|>"));
  EXPECT_EQ(request.prompt.back(), Id("<|assistant|>"));
  EXPECT_THAT(request.stop_token_ids, ElementsAre(end));

  request =
      Map("prompt { messages { messages { role: 'user' content: 'Hi' } } } "
          "stop { stop_token_ids: [7, " +
          std::to_string(end) + "] }");
  EXPECT_THAT(request.stop_token_ids, ElementsAre(7, end)) << "once only";
  request = Map("prompt { text: 'Hi' }");
  EXPECT_THAT(request.stop_token_ids, IsEmpty()) << "text is not a conversation";
}

TEST_F(RequestMappingTest, PromptsWithoutMeaningAreNamed) {
  EXPECT_THAT(Violation(""), HasSubstr("prompt: not set"));
  EXPECT_THAT(Violation("prompt {}"), HasSubstr("prompt: not set"));
  EXPECT_THAT(Violation("prompt { text: '' }"), HasSubstr("prompt.text: empty"));
  EXPECT_THAT(Violation("prompt { tokens {} }"), HasSubstr("prompt.tokens.ids: no ids"));
  EXPECT_THAT(Violation("prompt { messages {} }"), HasSubstr("prompt.messages: "));
  EXPECT_THAT(
      Violation("prompt { messages { messages { role: 'pirate' } } }"),
      ::testing::AllOf(HasSubstr("prompt.messages: "), HasSubstr("pirate"), HasSubstr("user")));
  EXPECT_THAT(Violation("prompt { tokens { ids: [1, 512] } }"),
              HasSubstr("prompt.tokens.ids[1]: 512 is outside the vocabulary [0, 511]"));
  EXPECT_THAT(Violation("prompt { tokens { ids: 4294967295 } }"), HasSubstr("4294967295"));
}

TEST_F(RequestMappingTest, AModelWithoutATokenizerTakesIdsOnly) {
  context_.tokenizer = nullptr;
  EXPECT_THAT(
      Violation("prompt { text: 'Hi' }"),
      ::testing::AllOf(HasSubstr("prompt.text: "), HasSubstr("tiny"), HasSubstr("prompt.tokens")));
  EXPECT_THAT(Violation("prompt { messages {} }"), HasSubstr("prompt.messages: "));
  EXPECT_THAT(Map("prompt { tokens { ids: 5 } }").prompt, ElementsAre(5));
  EXPECT_THAT(violations_, IsEmpty());
}

TEST_F(RequestMappingTest, AModelWithoutATemplateTakesNoMessages) {
  config_.chat.reset();
  EXPECT_THAT(Violation("prompt { messages { messages { role: 'user' } } }"),
              ::testing::AllOf(HasSubstr("prompt.messages: "), HasSubstr("no chat template")));
}

TEST_F(RequestMappingTest, TheServersTokenLimitHolds) {
  EXPECT_EQ(Map("prompt { tokens { ids: 5 } } stop { max_tokens: 1000 }").max_tokens, 1000);
  EXPECT_THAT(violations_, IsEmpty());
  EXPECT_THAT(Violation("prompt { tokens { ids: 5 } } stop { max_tokens: 1001 }"),
              HasSubstr("stop.max_tokens: 1001 is outside [1, 1000]"));
  EXPECT_THAT(Violation("prompt { tokens { ids: 5 } } stop { max_tokens: 0 }"),
              HasSubstr("stop.max_tokens: 0"));
  EXPECT_THAT(Violation("prompt { tokens { ids: 5 } } sampling { top_k: 2147483648 }"),
              HasSubstr("sampling.top_k: 2147483648"));
}

TEST_F(RequestMappingTest, AllViolationsComeAtOnce) {
  Map("sampling { top_k: 4294967295 } stop { max_tokens: 0 stop_token_ids: [512, 3, 900] }");
  std::vector<std::string> fields;
  for (const FieldViolation& violation : violations_) fields.push_back(violation.field);
  EXPECT_THAT(fields,
              ::testing::UnorderedElementsAre("prompt", "sampling.top_k", "stop.max_tokens",
                                              "stop.stop_token_ids[0]", "stop.stop_token_ids[2]"));
}

TEST_F(RequestMappingTest, OfManyBadIdsTheFirstAreTold) {
  std::string ids = "512";
  for (int i = 0; i < 100; ++i) ids += ", 512";
  Map("prompt { tokens { ids: [" + ids + "] } }");
  EXPECT_EQ(violations_.size(), 16U);
}

TEST(MergeViolationsTest, AFieldIsSpokenOfOnce) {
  std::vector<FieldViolation> violations = {{"prompt.text", "a"}, {"stop.stop_token_ids[3]", "b"}};
  MergeViolations({{"prompt", "engine"},
                   {"prompt.tokens.ids[0]", "engine"},
                   {"stop.stop_token_ids", "engine"},
                   {"stop.stop_strings[0]", "engine"},
                   {"stop.stop_strings[1]", "engine"}},
                  &violations);
  std::vector<std::string> fields;
  for (const FieldViolation& violation : violations) fields.push_back(violation.field);
  EXPECT_THAT(fields, ElementsAre("prompt.text", "stop.stop_token_ids[3]", "stop.stop_strings[0]",
                                  "stop.stop_strings[1]"));
}

TEST(ResponseMappingTest, ReasonsUsageAndTimings) {
  EXPECT_EQ(ToProto(FinishReason::kStop), v1::FINISH_REASON_STOP);
  EXPECT_EQ(ToProto(FinishReason::kStopString), v1::FINISH_REASON_STOP_STRING);
  EXPECT_EQ(ToProto(FinishReason::kLength), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(ToProto(FinishReason::kCancelled), v1::FINISH_REASON_CANCELLED);
  EXPECT_EQ(ToProto(FinishReason::kError), v1::FINISH_REASON_ERROR);
  GenerationFinished finished;
  finished.prompt_tokens = 3;
  finished.cached_tokens = 2;
  finished.completion_tokens = 5;
  EXPECT_EQ(ToUsage(finished).prompt_tokens(), 3U);
  EXPECT_EQ(ToUsage(finished).cached_tokens(), 2U);
  EXPECT_EQ(ToUsage(finished).completion_tokens(), 5U);
  GenerationTimings timings;
  timings.queue = std::chrono::microseconds(1500);
  timings.time_to_first_token = std::chrono::milliseconds(20);
  EXPECT_DOUBLE_EQ(ToTimings(timings).queue_ms(), 1.5);
  EXPECT_DOUBLE_EQ(ToTimings(timings).time_to_first_token_ms(), 20);
}

}  // namespace
}  // namespace osdn
