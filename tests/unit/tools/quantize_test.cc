#include "tools/quantize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <limits>
#include <string>

#include "engine/weights.h"
#include "tests/unit/tools/checkpoint_fixture.h"
#include "tools/convert.h"

namespace osdn::tools {
namespace {

using kernels::DType;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr char kQ[] = "model.layers.0.attn.q_proj.weight";

class QuantizeTest : public testing::Test {
 protected:
  QuantizeTest() {
    options_.model_dir = dir_ / "model";
    options_.output_dir = dir_ / "quantized";
  }

  void ConvertTiny(std::optional<DType> dtype, const std::string& output_dir) {
    ConvertOptions options;
    options.source = GoldenPath("tiny_apf_gate");
    options.output_dir = output_dir;
    options.dtype = dtype;
    const absl::StatusOr<ConvertReport> report = ConvertCheckpoint(options, nullptr);
    ASSERT_TRUE(report.ok()) << report.status();
  }

  absl::Status Quantize(DType dtype) {
    options_.dtype = dtype;
    return QuantizeModel(options_, nullptr).status();
  }

  TemporaryDirectory dir_;
  QuantizeOptions options_;
};

TEST_F(QuantizeTest, GivesWhatConvertGives) {
  ConvertTiny(std::nullopt, options_.model_dir);
  for (const DType dtype : {DType::kBF16, DType::kI8, DType::kI4}) {
    SCOPED_TRACE(kernels::DTypeName(dtype));
    options_.overwrite = true;
    const absl::Status status = Quantize(dtype);
    ASSERT_TRUE(status.ok()) << status;
    const std::string converted = dir_ / std::string(kernels::DTypeName(dtype));
    ConvertTiny(dtype, converted);
    EXPECT_EQ(ReadText(options_.output_dir + "/weights.safetensors"),
              ReadText(converted + "/weights.safetensors"));
  }
}

TEST_F(QuantizeTest, KeepsWhatIsNotWeights) {
  options_.model_dir = std::string(OSDN_MODELS_DIR) + "/osdn-mini";
  const absl::StatusOr<ModelConfig> source = LoadModelConfig(options_.model_dir);
  ASSERT_TRUE(source.ok()) << source.status();
  options_.dtype = DType::kI8;
  options_.name = "eight";
  const absl::StatusOr<ModelWriterReport> report = QuantizeModel(options_, nullptr);
  ASSERT_TRUE(report.ok()) << report.status();
  const absl::StatusOr<ModelConfig> config = LoadModelConfig(options_.output_dir);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->name, "eight");
  EXPECT_EQ(config->eos_ids, source->eos_ids);
  EXPECT_EQ(config->bos_id, source->bos_id);
  EXPECT_TRUE(config->chat.has_value());
  EXPECT_THAT(config->source, HasSubstr("bf16 to int8"));
  EXPECT_NE(config->model_id(), source->model_id()) << "states of one do not fit the other";
  EXPECT_EQ(ReadText(options_.output_dir + "/tokenizer.model"),
            ReadText(options_.model_dir + "/tokenizer.model"));
  EXPECT_LT(report->weight_bytes, 6600000);  // of 12.4 MB

  // One error a matrix, each within 8 bits' reach, and the text names the worst.
  EXPECT_EQ(report->roundings.size(), 1U + 6U * 7U);
  for (const TensorRounding& rounding : report->roundings) {
    EXPECT_GT(rounding.error.relative_rms(), 0) << rounding.name;
    EXPECT_LT(rounding.error.relative_rms(), 0.03) << rounding.name;
  }
  const auto worst = std::max_element(report->roundings.begin(), report->roundings.end(),
                                      [](const TensorRounding& a, const TensorRounding& b) {
                                        return a.error.relative_rms() < b.error.relative_rms();
                                      });
  EXPECT_THAT(RoundingText(report->roundings), HasSubstr("worst: " + worst->name));
}

TEST_F(QuantizeTest, WidensAgain) {
  ConvertTiny(DType::kI4, options_.model_dir);
  ASSERT_TRUE(Quantize(DType::kF32).ok());
  const absl::StatusOr<ModelConfig> narrow = LoadModelConfig(options_.model_dir);
  const absl::StatusOr<ModelConfig> wide = LoadModelConfig(options_.output_dir);
  ASSERT_TRUE(narrow.ok() && wide.ok());
  EXPECT_EQ(wide->dtype, DType::kF32);
  const absl::StatusOr<Weights> from = Weights::Load(options_.model_dir, *narrow, {});
  const absl::StatusOr<Weights> to = Weights::Load(options_.output_dir, *wide, {});
  ASSERT_TRUE(from.ok() && to.ok());
  const kernels::HostTensor source = from->Get(kQ);
  std::vector<float> values(static_cast<size_t>(source.elements()));
  DecodeRows(source, 0, absl::MakeSpan(values));
  EXPECT_EQ(std::memcmp(to->Get(kQ).data, values.data(), values.size() * sizeof(float)), 0);
}

TEST_F(QuantizeTest, RefusesToRoundTwice) {
  ConvertTiny(DType::kI8, options_.model_dir);
  EXPECT_THAT(std::string(Quantize(DType::kI4).message()),
              AllOf(HasSubstr(options_.model_dir), HasSubstr("int8"), HasSubstr("only loses")));
  EXPECT_THAT(std::string(Quantize(DType::kI8).message()), HasSubstr("is int8 already"));
  EXPECT_THAT(dir_.Entries(), ElementsAre("model"));
}

TEST_F(QuantizeTest, BadSourcesLeaveNothing) {
  EXPECT_EQ(Quantize(DType::kI8).code(), absl::StatusCode::kNotFound);
  ConvertTiny(std::nullopt, options_.model_dir);
  const std::string path = options_.model_dir + "/weights.safetensors";
  const std::string good = ReadText(path);
  std::string bad = good;
  bad.back() = static_cast<char>(bad.back() ^ 1);
  WriteText(path, bad);
  EXPECT_EQ(Quantize(DType::kI8).code(), absl::StatusCode::kDataLoss);
  WriteText(path, good);
  const std::atomic<bool> stop = true;
  options_.stop = &stop;
  EXPECT_EQ(Quantize(DType::kI8).code(), absl::StatusCode::kCancelled);
  options_.stop = nullptr;
  options_.output_dir = options_.model_dir;
  options_.overwrite = true;
  EXPECT_THAT(std::string(Quantize(DType::kI8).message()), HasSubstr("holds the model"));
  EXPECT_EQ(ReadText(path), good);
  EXPECT_THAT(dir_.Entries(), ElementsAre("model"));
}

TEST_F(QuantizeTest, NanIsRefusedByName) {
  const nlohmann::json config = TinyConfig();
  TensorMap tensors = TinyTensors(config);
  std::vector<float> values(64, 1.0F);
  values[17] = std::numeric_limits<float>::quiet_NaN();
  tensors[kQ] = FloatTensor({8, 8}, values);
  WriteCheckpoint(dir_ / "source", config, tensors);
  ConvertOptions options;
  options.source = dir_ / "source";
  options.output_dir = options_.output_dir;
  options.dtype = DType::kI8;
  EXPECT_THAT(std::string(ConvertCheckpoint(options, nullptr).status().message()),
              AllOf(HasSubstr(kQ), HasSubstr("element 17 is not finite as int8")));
}

}  // namespace
}  // namespace osdn::tools
