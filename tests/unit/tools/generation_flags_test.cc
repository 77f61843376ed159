#include "tools/generation_flags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <CLI/CLI.hpp>
#include <limits>
#include <string>

namespace osdn::tools {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

v1::GenerateRequest Parse(const std::string& arguments) {
  CLI::App app;
  GenerationFlags flags;
  AddGenerationFlags(&app, &flags);
  app.parse(arguments);
  v1::GenerateRequest request;
  ApplyGenerationFlags(flags, &request);
  return request;
}

TEST(GenerationFlagsTest, WhatIsNotGivenIsNotSent) {
  const v1::GenerateRequest request = Parse("");
  EXPECT_FALSE(request.sampling().has_temperature());
  EXPECT_FALSE(request.sampling().has_top_k());
  EXPECT_FALSE(request.sampling().has_top_p());
  EXPECT_FALSE(request.sampling().has_min_p());
  EXPECT_FALSE(request.sampling().has_seed());
  EXPECT_FALSE(request.stop().has_max_tokens());
  EXPECT_FALSE(request.stop().has_min_tokens());
  EXPECT_FALSE(request.stop().has_ignore_eos());
}

TEST(GenerationFlagsTest, EveryFlagReachesItsField) {
  const v1::GenerateRequest request = Parse(
      "--max-tokens 5 --min-tokens 2 --temperature 0 --top-k 40 --top-p 0.5 --min-p 0.25 "
      "--seed 18446744073709551615 --stop ab --stop c --stop-id 7 --stop-id 8 --ignore-eos");
  EXPECT_EQ(request.stop().max_tokens(), 5U);
  EXPECT_EQ(request.stop().min_tokens(), 2U);
  EXPECT_TRUE(request.sampling().has_temperature());
  EXPECT_EQ(request.sampling().temperature(), 0.0F);
  EXPECT_EQ(request.sampling().top_k(), 40U);
  EXPECT_EQ(request.sampling().top_p(), 0.5F);
  EXPECT_EQ(request.sampling().min_p(), 0.25F);
  EXPECT_EQ(request.sampling().seed(), 18446744073709551615ULL);
  EXPECT_THAT(request.stop().stop_strings(), ElementsAre("ab", "c"));
  EXPECT_THAT(request.stop().stop_token_ids(), ElementsAre(7, 8));
  EXPECT_TRUE(request.stop().ignore_eos());
}

TEST(GenerationFlagsTest, EverySamplingFlagReachesItsField) {
  const v1::GenerateRequest request = Parse(
      "--typical-p 0.5 --repetition-penalty 1.5 --presence-penalty -0.5 --frequency-penalty 0.25 "
      "--penalty-window 64 --logit-bias 7=-100 --logit-bias 8=-inf --logit-bias 9=2.5");
  const v1::SamplingParams& sampling = request.sampling();
  EXPECT_EQ(sampling.typical_p(), 0.5F);
  EXPECT_EQ(sampling.repetition_penalty(), 1.5F);
  EXPECT_EQ(sampling.presence_penalty(), -0.5F);
  EXPECT_EQ(sampling.frequency_penalty(), 0.25F);
  EXPECT_EQ(sampling.penalty_window(), 64U);
  ASSERT_EQ(sampling.logit_bias_size(), 3);
  EXPECT_EQ(sampling.logit_bias(0).token_id(), 7U);
  EXPECT_EQ(sampling.logit_bias(0).bias(), -100.0F);
  EXPECT_EQ(sampling.logit_bias(1).bias(), -std::numeric_limits<float>::infinity());
  EXPECT_EQ(sampling.logit_bias(2).bias(), 2.5F);
  // Nothing of the proto is left out: a field that is added there wants a flag here.
  EXPECT_EQ(v1::SamplingParams::descriptor()->field_count(), 12);
}

TEST(GenerationFlagsTest, OutputFlags) {
  CLI::App app;
  OutputFlags flags;
  AddOutputFlags(&app, &flags);
  app.parse("--n 3 --logprobs --top-logprobs 5 --echo");
  v1::GenerateRequest request;
  ApplyOutputFlags(flags, &request);
  EXPECT_EQ(request.sampling().n(), 3U);
  EXPECT_TRUE(request.output().logprobs());
  EXPECT_EQ(request.output().top_logprobs(), 5U);
  EXPECT_TRUE(request.output().echo());
  CLI::App other;
  AddOutputFlags(&other, &flags);
  EXPECT_THROW(other.parse("--top-logprobs 5"), CLI::ParseError) << "needs --logprobs";
}

TEST(GenerationFlagsTest, RefusesWhatIsNotANumber) {
  for (const char* bias : {"7", "x=1", "7=", "7=y", "-1=2", "1=2=3", "="}) {
    EXPECT_THROW(Parse(std::string("--logit-bias ") + bias), CLI::ParseError) << bias;
  }
  EXPECT_THROW(Parse("--max-tokens many"), CLI::ParseError);
  EXPECT_THROW(Parse("--max-tokens -1"), CLI::ParseError);
  EXPECT_THROW(Parse("--temperature hot"), CLI::ParseError);
}

TEST(StatsLineTest, SaysWhatHappened) {
  v1::Finished finished;
  finished.set_finish_reason(v1::FINISH_REASON_STOP_STRING);
  finished.set_stop_string("\n");
  finished.mutable_usage()->set_prompt_tokens(12);
  finished.mutable_usage()->set_completion_tokens(101);
  finished.mutable_timings()->set_decode_ms(500);
  finished.mutable_timings()->set_time_to_first_token_ms(20.5);
  EXPECT_EQ(DecodeTokensPerSecond(finished), 200);
  const std::string line = StatsLine(finished);
  EXPECT_THAT(line, HasSubstr("12 prompt tokens, 101 new, 200.0 tokens/s"));
  EXPECT_THAT(line, HasSubstr("first token after 20.5 ms"));
  EXPECT_THAT(line, HasSubstr("finish: stop_string \"\\n\""));
  EXPECT_THAT(line, Not(HasSubstr("cached")));
  finished.mutable_usage()->set_cached_tokens(4);
  EXPECT_THAT(StatsLine(finished), HasSubstr("12 prompt tokens (4 cached)"));
}

TEST(StatsLineTest, NoRateForOneToken) {
  v1::Finished finished;
  finished.mutable_usage()->set_completion_tokens(1);
  finished.mutable_timings()->set_decode_ms(10);
  EXPECT_EQ(DecodeTokensPerSecond(finished), 0);
  EXPECT_THAT(StatsLine(finished), Not(HasSubstr("tokens/s")));
  EXPECT_EQ(FinishReasonName(static_cast<v1::FinishReason>(99)), "reason 99");
}

}  // namespace
}  // namespace osdn::tools
