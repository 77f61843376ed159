// Parsing of token ids, and the golden checkpoints through convert and score.
#include "tools/score.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "engine/safetensors.h"
#include "tests/unit/tools/checkpoint_fixture.h"
#include "tools/convert.h"

namespace osdn::tools {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string ParseError(const std::string& text) {
  const absl::StatusOr<std::vector<int32_t>> ids = ParseTokenIds(text, 10);
  EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument) << text;
  return std::string(ids.status().message());
}

TEST(ParseTokenIdsTest, AnyWhitespace) {
  const absl::StatusOr<std::vector<int32_t>> ids = ParseTokenIds("\n 1 2\t3\r\n0 9", 10);
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_THAT(*ids, ElementsAre(1, 2, 3, 0, 9));
}

TEST(ParseTokenIdsTest, NamesPositionAndValue) {
  EXPECT_THAT(ParseError("1 2 10"), HasSubstr("token id 3: \"10\", want a number from 0 to 9"));
  EXPECT_THAT(ParseError("1 -1"), HasSubstr("token id 2: \"-1\""));
  EXPECT_THAT(ParseError("x"), HasSubstr("token id 1: \"x\""));
  EXPECT_THAT(ParseError("1,2"), HasSubstr("\"1,2\""));
  EXPECT_THAT(ParseError("3 0x1"), HasSubstr("\"0x1\""));
  EXPECT_THAT(ParseError("1.5"), HasSubstr("\"1.5\""));
  EXPECT_THAT(ParseError("99999999999999999999"), HasSubstr("\"99999999999999999999\""));
  EXPECT_THAT(ParseError(" \n"), HasSubstr("no token ids"));
}

// (checkpoint, backend, tokens a call; 0 is the default)
using GoldenParam = std::tuple<std::string, std::string, int64_t>;

class GoldenTest : public testing::TestWithParam<GoldenParam> {};

std::vector<int32_t> IdsOf(const SafetensorsEntry& entry) {
  std::vector<int32_t> ids;
  const size_t size = SafetensorsDTypeSize(entry.dtype);
  for (size_t at = 0; at < entry.data.size(); at += size) {
    int64_t id = 0;
    std::memcpy(&id, entry.data.data() + at, size);
    ids.push_back(static_cast<int32_t>(id));
  }
  return ids;
}

absl::Status ConvertGolden(const std::string& name, const std::string& output_dir) {
  ConvertOptions options;
  options.source = GoldenPath(name);
  options.output_dir = output_dir;
  return ConvertCheckpoint(options, nullptr).status();
}

TEST_P(GoldenTest, LogitsMatch) {
  const auto& [checkpoint, backend, step] = GetParam();
  const TemporaryDirectory dir;
  ASSERT_TRUE(ConvertGolden(checkpoint, dir / "model").ok());
  const absl::StatusOr<SafetensorsFile> expected =
      SafetensorsFile::Open(GoldenPath(checkpoint) + "/expected.st");
  ASSERT_TRUE(expected.ok()) << expected.status();

  ScoreOptions options;
  options.model_dir = dir / "model";
  options.ids = IdsOf(*expected->Find("ids"));
  options.logits_path = dir / "logits.safetensors";
  options.step = step;
  options.backend.name = backend;
  options.backend.threads = 1;
  const absl::StatusOr<ScoreReport> report = ScoreTokens(options, nullptr);
  ASSERT_TRUE(report.ok()) << report.status();

  const absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(options.logits_path);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_NE(file->Find("logits"), nullptr);
  EXPECT_THAT(file->Find("logits")->shape, ElementsAre(150, 97));
  const std::vector<float> got = FloatsOf(*file->Find("logits"));
  const std::vector<float> want = FloatsOf(*expected->Find("logits"));
  ASSERT_EQ(got.size(), want.size());
  float largest = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_TRUE(std::isfinite(got[i])) << "row " << i / 97 << " column " << i % 97;
    largest = std::max(largest, std::abs(got[i] - want[i]));
  }
  EXPECT_LE(largest, 1e-3F);
  RecordProperty("max_abs_error", std::to_string(largest));
}

INSTANTIATE_TEST_SUITE_P(All, GoldenTest,
                         testing::Combine(testing::Values("tiny", "tiny_apf_gate"),
                                          testing::Values("reference", "cpu"),
                                          testing::Values(0, 1, 7, 64)),
                         [](const testing::TestParamInfo<GoldenParam>& param) {
                           return std::get<0>(param.param) + "_" + std::get<1>(param.param) +
                                  "_step" + std::to_string(std::get<2>(param.param));
                         });

class ScoreTest : public testing::Test {
 protected:
  ScoreTest() {
    EXPECT_TRUE(ConvertGolden("tiny", dir_ / "model").ok());
    options_.model_dir = dir_ / "model";
    options_.ids = {1, 2, 3};
    options_.logits_path = dir_ / "logits.safetensors";
    options_.backend.name = "reference";
  }

  TemporaryDirectory dir_;
  ScoreOptions options_;
};

TEST_F(ScoreTest, StepBeyondTheEnd) {
  options_.step = 1 << 20;
  const absl::StatusOr<ScoreReport> report = ScoreTokens(options_, nullptr);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->step, 3);
}

TEST_F(ScoreTest, FailuresLeaveNoFile) {
  const std::atomic<bool> stop = true;
  ScoreOptions options = options_;
  options.stop = &stop;
  EXPECT_EQ(ScoreTokens(options, nullptr).status().code(), absl::StatusCode::kCancelled);
  options = options_;
  options.backend.name = "abacus";
  EXPECT_THAT(std::string(ScoreTokens(options, nullptr).status().message()), HasSubstr("abacus"));
  options = options_;
  options.model_dir = dir_.path();
  EXPECT_EQ(ScoreTokens(options, nullptr).status().code(), absl::StatusCode::kNotFound);
  options = options_;
  options.logits_path = dir_ / "no/such/logits.safetensors";
  EXPECT_THAT(std::string(ScoreTokens(options, nullptr).status().message()), HasSubstr("no/such"));
  EXPECT_THAT(dir_.Entries(), ElementsAre("model"));
}

TEST_F(ScoreTest, ReportsProgress) {
  std::vector<int64_t> done;
  options_.step = 2;
  ASSERT_TRUE(ScoreTokens(options_, [&done](int64_t at) { done.push_back(at); }).ok());
  EXPECT_THAT(done, ElementsAre(2, 3));
}

}  // namespace
}  // namespace osdn::tools
