#include "tools/export.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <optional>
#include <string>

#include "tests/unit/tools/checkpoint_fixture.h"
#include "tools/checkpoint_config.h"
#include "tools/convert.h"
#include "tools/quantize.h"
#include "tools/verify.h"

namespace osdn::tools {
namespace {

using kernels::DType;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

class ExportTest : public testing::Test {
 protected:
  // The golden checkpoint with APF, gate and wide values as model directory `name`.
  std::string Model(const std::string& name, DType dtype) {
    ConvertOptions options;
    options.source = GoldenPath("tiny_apf_gate");
    options.output_dir = dir_ / name;
    options.dtype = dtype;
    const absl::StatusOr<ConvertReport> report = ConvertCheckpoint(options, nullptr);
    EXPECT_TRUE(report.ok()) << report.status();
    return options.output_dir;
  }

  std::string Back(const std::string& checkpoint, const std::string& name) {
    ConvertOptions options;
    options.source = checkpoint;
    options.output_dir = dir_ / name;
    const absl::StatusOr<ConvertReport> report = ConvertCheckpoint(options, nullptr);
    EXPECT_TRUE(report.ok()) << report.status();
    return options.output_dir;
  }

  absl::StatusOr<ExportReport> Export(const std::string& model, const std::string& name) {
    ExportOptions options;
    options.model_dir = model;
    options.output_dir = dir_ / name;
    options.dtype = dtype_;
    options.stop = &stop_;
    return ExportModel(options, nullptr);
  }

  absl::StatusOr<VerifyReport> Verify(const std::string& a, const std::string& b) {
    VerifyOptions options;
    options.a_dir = a;
    options.b_dir = b;
    return VerifyModels(options, nullptr);
  }

  std::string Id(const std::string& model) {
    const absl::StatusOr<ModelConfig> config = LoadModelConfig(model);
    EXPECT_TRUE(config.ok()) << config.status();
    return config.ok() ? config->model_id() : "";
  }

  TemporaryDirectory dir_;
  std::optional<DType> dtype_;  // of exports
  std::atomic<bool> stop_ = false;
};

TEST_F(ExportTest, ThereAndBackIsTheSameModel) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const std::string name(kernels::DTypeName(dtype));
    const std::string model = Model(name, dtype);
    const absl::StatusOr<ExportReport> report = Export(model, name + "-out");
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_THAT(report->notices, IsEmpty());
    EXPECT_EQ(report->dtype, dtype);
    const std::string back = Back(dir_ / (name + "-out"), name + "-back");
    EXPECT_EQ(ReadText(back + "/weights.safetensors"), ReadText(model + "/weights.safetensors"));
    EXPECT_EQ(Id(back), Id(model));
  }
}

TEST_F(ExportTest, QuantizedModelsAreWidenedAndSaySo) {
  const std::string model = Model("f32", DType::kF32);
  QuantizeOptions quantize;
  quantize.model_dir = model;
  quantize.output_dir = dir_ / "int8";
  ASSERT_TRUE(QuantizeModel(quantize, nullptr).ok());
  const absl::StatusOr<ExportReport> report = Export(dir_ / "int8", "out");
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->dtype, DType::kF32);
  EXPECT_THAT(report->notices, ElementsAre(HasSubstr("they were int8 and become f32")));

  const absl::StatusOr<VerifyReport> verified = Verify(dir_ / "int8", Back(dir_ / "out", "back"));
  ASSERT_TRUE(verified.ok()) << verified.status();
  EXPECT_TRUE(verified->identical()) << VerifyToText(*verified, true);
}

TEST_F(ExportTest, NothingIsReplaced) {
  const std::string model = Model("model", DType::kF32);
  std::filesystem::create_directories(dir_ / "out");
  WriteText(dir_ / "out/notes.txt", "x");
  EXPECT_EQ(Export(model, "out").status().code(), absl::StatusCode::kAlreadyExists);
  dtype_ = DType::kI8;
  EXPECT_THAT(std::string(Export(model, "new").status().message()), HasSubstr("f32 or bf16"));
  dtype_.reset();
  stop_ = true;
  EXPECT_EQ(Export(model, "new").status().code(), absl::StatusCode::kCancelled);
  EXPECT_THAT(dir_.Entries(), ElementsAre("model", "out"));
}

TEST_F(ExportTest, EveryNumberOfTheConfigComesBack) {
  ModelConfig config;
  ArchitectureConfig& arch = config.arch;
  arch.vocab_size = 50;
  arch.hidden_size = 30;
  arch.num_layers = 3;
  arch.num_heads = 3;
  arch.key_dim = 7;
  arch.value_dim = 11;
  arch.intermediate_size = 40;
  arch.conv_size = 5;
  arch.norm_eps = 1e-5;
  arch.use_gate = arch.conv_bias = arch.allow_neg_eigval = arch.tie_embeddings = true;
  arch.use_beta = false;
  arch.qk_norm = kernels::QkNorm::kSum;
  arch.qk_activation = kernels::Activation::kRelu;
  arch.eta = 0.1;
  arch.eps = 1e-7;
  arch.d_min = 0.25;
  arch.d_max = 3;
  arch.apf = Apf::kScalar;
  arch.apf_anchor = 0.5;
  config.eos_ids = {4, 7};
  const absl::StatusOr<CheckpointConfig> back =
      ParseCheckpointConfig(CheckpointConfigJson(config, DType::kBF16));
  ASSERT_TRUE(back.ok()) << back.status();
  ModelConfig other;
  other.arch = back->arch;
  other.bos_id = back->bos_id;
  other.eos_ids = back->eos_ids;
  EXPECT_EQ(ModelConfigToYaml(other), ModelConfigToYaml(config));
  EXPECT_EQ(back->model_type, "osdn");

  arch.eta = 0;
  arch.apf = Apf::kNone;
  for (const auto& [activation, type] : {std::pair(kernels::Activation::kRelu, "delta_net"),
                                         std::pair(kernels::Activation::kSilu, "osdn")}) {
    arch.qk_activation = activation;
    const absl::StatusOr<CheckpointConfig> plain =
        ParseCheckpointConfig(CheckpointConfigJson(config, DType::kF32));
    ASSERT_TRUE(plain.ok()) << plain.status();
    EXPECT_EQ(plain->model_type, type);
    EXPECT_TRUE(plain->arch.is_plain_delta_net());
  }
}

TEST_F(ExportTest, VerifyFindsWhatDiffers) {
  const std::string a = Model("a", DType::kF32);
  const std::string b = Model("b", DType::kBF16);
  const absl::StatusOr<VerifyReport> report = Verify(a, b);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_FALSE(report->identical());
  EXPECT_THAT(report->settings, IsEmpty());
  EXPECT_EQ(report->outputs.tokens, 255);
  EXPECT_GT(report->outputs.against->max_logit_difference, 0);
  EXPECT_GT(report->outputs.against->mean_kl, 0);
  EXPECT_LT(report->outputs.against->mean_kl, 0.01);
  int identical = 0;
  for (const TensorDifference& tensor : report->tensors) {
    EXPECT_LT(tensor.relative_rms, 1.0 / 256) << tensor.name;
    identical += tensor.identical ? 1 : 0;
    EXPECT_EQ(tensor.identical, tensor.b_dtype == "f32") << tensor.name;
  }
  EXPECT_GT(identical, 0);
  EXPECT_THAT(VerifyToText(*report, false), HasSubstr("max difference"));
  EXPECT_THAT(VerifyToJson(*report), HasSubstr("\"identical\": false"));

  const absl::StatusOr<VerifyReport> same = Verify(a, a);
  ASSERT_TRUE(same.ok()) << same.status();
  EXPECT_TRUE(same->identical());
  EXPECT_EQ(same->outputs.against->max_logit_difference, 0);
}

TEST_F(ExportTest, VerifyNamesSettingsAndShapes) {
  const std::string a = Model("a", DType::kF32);
  std::filesystem::copy(a, dir_ / "b");
  std::string yaml = ReadText(dir_ / "b/model.yaml");
  const size_t eta = yaml.find("  eta: ");
  ASSERT_NE(eta, std::string::npos);
  yaml.replace(eta, yaml.find('\n', eta) - eta, "  eta: 0.25");
  WriteText(dir_ / "b/model.yaml", yaml);
  const absl::StatusOr<VerifyReport> report = Verify(a, dir_ / "b");
  ASSERT_TRUE(report.ok()) << report.status();
  ASSERT_THAT(report->settings, SizeIs(1));
  EXPECT_THAT(report->settings[0], testing::AllOf(HasSubstr("osdn.eta: "), HasSubstr(", 0.25")));
  EXPECT_FALSE(report->identical());

  ConvertOptions other;
  other.source = GoldenPath("tiny");
  other.output_dir = dir_ / "c";
  ASSERT_TRUE(ConvertCheckpoint(other, nullptr).ok());
  const auto status = Verify(a, dir_ / "c").status();
  EXPECT_THAT(std::string(status.message()),
              testing::AllOf(HasSubstr("models of different shapes"), HasSubstr("lm_head.weight")));
}

}  // namespace
}  // namespace osdn::tools
