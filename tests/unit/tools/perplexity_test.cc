#include "tools/perplexity.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <iostream>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/model_config.h"
#include "tests/unit/tools/checkpoint_fixture.h"
#include "tools/convert.h"
#include "tools/quantize.h"

namespace osdn::tools {
namespace {

using kernels::DType;
using testing::AllOf;
using testing::HasSubstr;

TEST(PerplexityMathTest, KnownValues) {
  // Probabilities 1/2, 1/4, 1/4 and their reverse.
  const float log2 = std::log(2.0F);
  const std::vector<float> p = {100 + log2, 100, 100};
  const std::vector<float> q = {-7, -7, -7 + log2};
  EXPECT_NEAR(NegativeLogLikelihood(p, 0), std::log(2), 1e-6);
  EXPECT_NEAR(NegativeLogLikelihood(p, 2), std::log(4), 1e-5);
  EXPECT_NEAR(KlDivergence(p, q), 0.25 * std::log(2), 1e-5);
  EXPECT_EQ(KlDivergence(p, p), 0);
}

TEST(PerplexityMathTest, ExtremeAndBrokenLogits) {
  const std::vector<float> wide = {3e38F, -3e38F};
  EXPECT_EQ(NegativeLogLikelihood(wide, 0), 0);
  EXPECT_GT(NegativeLogLikelihood(wide, 1), 1e38);
  const std::vector<float> plain = {0, 0};
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
        -std::numeric_limits<float>::infinity()}) {
    const std::vector<float> broken = {0, bad};
    EXPECT_TRUE(std::isnan(NegativeLogLikelihood(broken, 0)));
    EXPECT_TRUE(std::isnan(KlDivergence(broken, plain)));
    EXPECT_TRUE(std::isnan(KlDivergence(plain, broken)));
  }
}

class PerplexityTest : public testing::Test {
 protected:
  PerplexityTest() {
    ConvertOptions convert;
    convert.source = GoldenPath("tiny");
    convert.output_dir = dir_ / "tiny";
    EXPECT_TRUE(ConvertCheckpoint(convert, nullptr).ok());
    options_.model_dir = convert.output_dir;
    options_.ids_path = dir_ / "ids";
    options_.backend.name = "cpu";
  }

  PerplexityReport Measure() {
    const absl::StatusOr<PerplexityReport> report = MeasurePerplexity(options_, nullptr);
    EXPECT_TRUE(report.ok()) << report.status();
    return report.ok() ? *report : PerplexityReport();
  }

  std::string Error() {
    return std::string(MeasurePerplexity(options_, nullptr).status().message());
  }

  TemporaryDirectory dir_;
  PerplexityOptions options_;
};

// Documents do not see each other, and the sum over them is the sum of their own.
TEST_F(PerplexityTest, DocumentsAreIndependent) {
  std::string first;
  for (int i = 0; i < 150; ++i) first += std::to_string(i * 31 % 97) + " ";
  const std::string second = "5 6 7";
  WriteText(options_.ids_path, first);
  const PerplexityReport a = Measure();
  EXPECT_EQ(a.tokens, 149);
  WriteText(options_.ids_path, second);
  const PerplexityReport b = Measure();
  WriteText(options_.ids_path, first + "\n\n" + second + "\n");
  const PerplexityReport both = Measure();
  EXPECT_EQ(both.documents, 2);
  EXPECT_EQ(both.tokens, a.tokens + b.tokens);
  EXPECT_NEAR(both.nats, a.nats + b.nats, 1e-9 * both.nats);
  // An untrained model knows nothing: about one in 97.
  EXPECT_GT(a.perplexity(), 50);
  EXPECT_LT(a.perplexity(), 400);
}

TEST_F(PerplexityTest, AgainstItselfIsTheSame) {
  WriteText(options_.ids_path, "1 2 3 4 5 6 7 8 9");
  options_.against_dir = options_.model_dir;
  const PerplexityReport report = Measure();
  ASSERT_TRUE(report.against.has_value());
  EXPECT_EQ(report.against->max_kl, 0);
  EXPECT_EQ(report.perplexity_ratio(), 1);
  EXPECT_EQ(report.against->same_top, 1);
  const nlohmann::json root = nlohmann::json::parse(PerplexityToJson(report));
  EXPECT_EQ(root["tokens"], 8);
  EXPECT_EQ(root["against"]["perplexity_ratio"], 1.0);
  EXPECT_THAT(PerplexityToText(report), HasSubstr("same first token 100.00%"));
}

TEST_F(PerplexityTest, InputsThatDoNotFitAreNamed) {
  EXPECT_THAT(Error(), HasSubstr(options_.ids_path));  // absent
  WriteText(options_.ids_path, "1 2\n3 97\n");
  EXPECT_THAT(Error(),
              AllOf(HasSubstr(options_.ids_path), HasSubstr("document 2"), HasSubstr("\"97\"")));
  WriteText(options_.ids_path, "1 2\n3\n");
  EXPECT_THAT(Error(), AllOf(HasSubstr("document 2 has 1 tokens"), HasSubstr("at least 2")));
  WriteText(options_.ids_path, "\n\n");
  EXPECT_THAT(Error(), HasSubstr("no documents"));
  options_.text_path = options_.ids_path;
  EXPECT_THAT(Error(), HasSubstr("one of the two"));
  options_.ids_path.clear();
  EXPECT_THAT(Error(), HasSubstr("no tokenizer"));
}

TEST_F(PerplexityTest, ModelsThatCannotBeCompared) {
  WriteText(options_.ids_path, "1 2 3");
  options_.against_dir = std::string(OSDN_MODELS_DIR) + "/osdn-mini";
  EXPECT_THAT(Error(), AllOf(HasSubstr("vocabulary of 4096"), HasSubstr("has 97")));
}

TEST_F(PerplexityTest, Interrupted) {
  WriteText(options_.ids_path, "1 2 3");
  const std::atomic<bool> stop = true;
  options_.stop = &stop;
  EXPECT_EQ(MeasurePerplexity(options_, nullptr).status().code(), absl::StatusCode::kCancelled);
}

// The quality bars of docs/model.md, on the bundled model and its held-out text: the shipped bf16
// weights, and what they become as int8 and int4, against the same weights widened to float32.
class QualityTest : public testing::Test {
 protected:
  static std::string Bundled() { return std::string(OSDN_MODELS_DIR) + "/osdn-mini"; }

  static void SetUpTestSuite() {
    dir_ = new TemporaryDirectory();
    for (const DType dtype : {DType::kF32, DType::kI8, DType::kI4}) {
      QuantizeOptions options;
      options.model_dir = Bundled();
      options.output_dir = *dir_ / std::string(kernels::DTypeName(dtype));
      options.dtype = dtype;
      ASSERT_TRUE(QuantizeModel(options, nullptr).ok());
    }
  }

  static void TearDownTestSuite() {
    delete dir_;
    dir_ = nullptr;
  }

  static PerplexityReport Measure(const std::string& model_dir, const std::string& file) {
    PerplexityOptions options;
    options.model_dir = model_dir;
    options.against_dir = *dir_ / "f32";
    const std::string path = std::string(OSDN_TEST_DATA_DIR) + "/heldout/" + file;
    const bool ids = path.ends_with(".ids");
    (ids ? options.ids_path : options.text_path) = path;
    options.backend.name = "cpu";
    options.verify_checksums = false;
    const absl::StatusOr<PerplexityReport> report = MeasurePerplexity(options, nullptr);
    EXPECT_TRUE(report.ok()) << report.status();
    if (!report.ok()) return {};
    std::cout << file << ":\n" << PerplexityToText(*report);
    EXPECT_GT(report->tokens, 1000) << "too little to tell";
    return *report;
  }

  static TemporaryDirectory* dir_;
};

TemporaryDirectory* QualityTest::dir_ = nullptr;

TEST_F(QualityTest, Bf16StaysWithinTheKlBar) {
  for (const char* file : {"prose.txt", "conversations.ids"}) {
    const PerplexityReport report = Measure(Bundled(), file);
    EXPECT_LE(report.against->mean_kl, 1e-3) << file;
    // The bundled weights are bf16: what differs is the rounding of activations, which only CPUs
    // with bf16 products do.
    const bool rounds = report.backend.find("bf16") != std::string::npos ||
                        report.backend.find("amx") != std::string::npos;
    if (rounds) {
      EXPECT_GT(report.against->max_kl, 0) << "bf16 arithmetic is not float32's";
    } else {
      EXPECT_LT(report.against->max_kl, 1e-6) << report.backend;
    }
  }
}

TEST_F(QualityTest, Int8StaysWithinHalfAPercentOfPerplexity) {
  for (const char* file : {"prose.txt", "stories.txt", "conversations.ids"}) {
    const PerplexityReport report = Measure(*dir_ / "int8", file);
    EXPECT_NEAR(report.perplexity_ratio(), 1, 0.005) << file;
    EXPECT_LE(report.against->mean_kl, 0.03) << file;
  }
}

// No bar for int4: it must be worse than int8 by what 4 bits lose, and no wreck.
TEST_F(QualityTest, Int4IsUsable) {
  const PerplexityReport report = Measure(*dir_ / "int4", "stories.txt");
  EXPECT_LE(report.perplexity_ratio(), 1.05);
  EXPECT_GE(report.against->same_top, 0.8);
}

}  // namespace
}  // namespace osdn::tools
