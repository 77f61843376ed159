#include "tools/synth.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "engine/weights.h"
#include "tests/unit/tools/checkpoint_fixture.h"
#include "tools/score.h"

namespace osdn::tools {
namespace {

using kernels::DType;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr char kShape[] = R"(
name: "small"
architecture: {type: osdn, vocab_size: 300, hidden_size: 64, num_layers: 3, num_heads: 2,
               key_dim: 32, value_dim: 32, intermediate_size: 96}
osdn: {eta: 0.1, apf: scalar}
)";

class SynthTest : public testing::Test {
 protected:
  SynthTest() {
    options_.config_path = dir_ / "shape.yaml";
    WriteText(options_.config_path, kShape);
    options_.output_dir = dir_ / "model";
    options_.dtype = DType::kF32;
    options_.seed = std::random_device{}();
  }

  void Make() {
    const absl::StatusOr<ModelWriterReport> report = SynthesizeModel(options_, nullptr);
    ASSERT_TRUE(report.ok()) << report.status();
  }

  // The tensor's bytes in the model that was made last.
  std::string Bytes(const std::string& name) {
    const absl::StatusOr<ModelConfig> config = LoadModelConfig(options_.output_dir);
    const absl::StatusOr<Weights> weights = Weights::Load(options_.output_dir, *config, {});
    const kernels::HostTensor tensor = weights->Get(name);
    return {static_cast<const char*>(tensor.data),
            static_cast<size_t>(tensor.elements()) * sizeof(float)};
  }

  TemporaryDirectory dir_;
  SynthOptions options_;
};

TEST_F(SynthTest, SeedAndNameDecideEveryWeight) {
  constexpr char kQ[] = "model.layers.1.attn.q_proj.weight";
  constexpr char kK[] = "model.layers.1.attn.k_proj.weight";
  Make();
  const std::string first = ReadText(options_.output_dir + "/weights.safetensors");
  const std::string q = Bytes(kQ);
  EXPECT_NE(q, Bytes(kK));
  options_.overwrite = true;
  Make();
  EXPECT_EQ(ReadText(options_.output_dir + "/weights.safetensors"), first);
  options_.delta_net = true;
  Make();
  EXPECT_EQ(Bytes(kQ), q);
  const absl::StatusOr<ModelConfig> config = LoadModelConfig(options_.output_dir);
  EXPECT_TRUE(config->arch.is_plain_delta_net());
  options_.seed += 1;
  Make();
  EXPECT_NE(Bytes(kQ), q);
}

TEST_F(SynthTest, WeightsHaveTheScaleOfAFreshNetwork) {
  Make();
  const std::string bytes = Bytes("model.embeddings.weight");  // 300 x 64
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  double sum = 0;
  double squares = 0;
  for (const float value : values) {
    sum += value;
    squares += static_cast<double>(value) * value;
  }
  const auto count = static_cast<double>(values.size());
  // Five standard errors around mean 0 and variance 1/64.
  EXPECT_NEAR(sum / count, 0, 5 / 8.0 / std::sqrt(count));
  EXPECT_NEAR(squares / count * 64, 1, 5 * std::sqrt(2 / count));
}

TEST_F(SynthTest, EveryDTypeRunsWithFiniteLogits) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kI8, DType::kI4}) {
    SCOPED_TRACE(kernels::DTypeName(dtype));
    options_.dtype = dtype;
    options_.overwrite = true;
    Make();
    ScoreOptions score;
    score.model_dir = options_.output_dir;
    score.backend.name = "reference";
    score.logits_path = dir_ / "logits.safetensors";
    for (int32_t i = 0; i < 100; ++i) score.ids.push_back(i * 37 % 300);
    const absl::StatusOr<ScoreReport> report = ScoreTokens(score, nullptr);
    ASSERT_TRUE(report.ok()) << report.status();
    const absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(score.logits_path);
    double squares = 0;
    const std::vector<float> logits = FloatsOf(*file->Find("logits"));
    for (const float logit : logits) {
      ASSERT_TRUE(std::isfinite(logit));
      squares += static_cast<double>(logit) * logit;
    }
    const double rms = std::sqrt(squares / static_cast<double>(logits.size()));
    EXPECT_GT(rms, 0.3);
    EXPECT_LT(rms, 3);
  }
}

TEST_F(SynthTest, WithATokenizer) {
  options_.tokenizer_path = std::string(OSDN_MODELS_DIR) + "/osdn-mini/tokenizer.model";
  const absl::StatusOr<ModelWriterReport> small = SynthesizeModel(options_, nullptr);
  EXPECT_THAT(std::string(small.status().message()), HasSubstr("4096 pieces"));
  EXPECT_THAT(dir_.Entries(), ElementsAre("shape.yaml"));
  std::string shape = kShape;
  shape.replace(shape.find("300"), 3, "4100");
  WriteText(options_.config_path, shape);
  Make();
  const absl::StatusOr<ModelConfig> config = LoadModelConfig(options_.output_dir);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_TRUE(config->has_tokenizer);
  EXPECT_EQ(config->name, "small");
}

TEST_F(SynthTest, BadConfigsAreNamed) {
  WriteText(options_.config_path, "name: x\narchitecture: {type: osdn, hidden_size: -1}\n");
  const absl::Status status = SynthesizeModel(options_, nullptr).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr(options_.config_path));
  EXPECT_THAT(std::string(status.message()), HasSubstr("hidden_size"));
  EXPECT_THAT(dir_.Entries(), ElementsAre("shape.yaml"));
}

}  // namespace
}  // namespace osdn::tools
