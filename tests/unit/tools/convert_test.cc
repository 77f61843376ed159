#include "tools/convert.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "engine/safetensors.h"
#include "engine/sha256.h"
#include "engine/weights.h"
#include "tests/unit/tools/checkpoint_fixture.h"
#include "tools/float_convert.h"
#include "tools/inspect.h"
#include "tools/output_directory.h"

namespace osdn::tools {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr char kQ[] = "model.layers.0.attn.q_proj.weight";
constexpr char kNorm[] = "model.norm.weight";

class ConvertTest : public testing::Test {
 protected:
  ConvertTest() : config_(TinyConfig()), tensors_(TinyTensors(config_)) {
    options_.source = dir_ / "source";
    options_.output_dir = dir_ / "model";
  }

  absl::StatusOr<ConvertReport> Convert() {
    WriteCheckpoint(options_.source, config_, tensors_);
    return ConvertCheckpoint(options_, nullptr);
  }

  // Fails, says so, and leaves neither a model nor anything beside it.
  std::string Failure() {
    const absl::StatusOr<ConvertReport> report = Convert();
    EXPECT_FALSE(report.ok());
    EXPECT_THAT(dir_.Entries(), ElementsAre("source"));
    return std::string(report.status().message());
  }

  TemporaryDirectory dir_;
  json config_;
  TensorMap tensors_;
  ConvertOptions options_;
};

TEST_F(ConvertTest, WritesAModelThatLoads) {
  const absl::StatusOr<ConvertReport> report = Convert();
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_THAT(dir_.Entries(), ElementsAre("model", "source"));
  ASSERT_EQ(report->notices.size(), 1U);
  EXPECT_THAT(report->notices[0], HasSubstr("takes token ids only"));

  const absl::StatusOr<ModelConfig> config = LoadModelConfig(options_.output_dir);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->name, "model");
  EXPECT_FALSE(config->has_tokenizer);
  EXPECT_EQ(config->dtype, kernels::DType::kF32);
  EXPECT_THAT(config->eos_ids, ElementsAre(2, 3));
  ASSERT_EQ(config->files.size(), 1U);
  const absl::StatusOr<FileHash> hash = HashFile(options_.output_dir + "/weights.safetensors");
  ASSERT_TRUE(hash.ok());
  EXPECT_EQ(config->files[0].sha256, hash->sha256);

  const absl::StatusOr<Weights> weights = Weights::Load(options_.output_dir, *config, {});
  ASSERT_TRUE(weights.ok()) << weights.status();
  for (const auto& [name, tensor] : tensors_) {
    const kernels::HostTensor stored = weights->Get(name);
    ASSERT_EQ(stored.shape, tensor.shape) << name;
    EXPECT_EQ(std::memcmp(stored.data, tensor.bytes.data(), tensor.bytes.size()), 0) << name;
  }
}

TEST_F(ConvertTest, Bf16RoundsMatricesAndKeepsVectors) {
  options_.dtype = kernels::DType::kBF16;
  options_.name = "a name";
  ASSERT_TRUE(Convert().ok());
  const absl::StatusOr<ModelConfig> config = LoadModelConfig(options_.output_dir);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->name, "a name");
  const absl::StatusOr<Weights> weights = Weights::Load(options_.output_dir, *config, {});
  ASSERT_TRUE(weights.ok()) << weights.status();

  const kernels::HostTensor matrix = weights->Get(kQ);
  ASSERT_EQ(matrix.dtype, kernels::DType::kBF16);
  std::vector<float> source(static_cast<size_t>(matrix.elements()));
  std::memcpy(source.data(), tensors_[kQ].bytes.data(), source.size() * sizeof(float));
  const auto* stored = static_cast<const uint16_t*>(matrix.data);
  for (size_t i = 0; i < source.size(); ++i) EXPECT_EQ(stored[i], Bf16FromFloat(source[i])) << i;

  const kernels::HostTensor vector = weights->Get(kNorm);
  ASSERT_EQ(vector.dtype, kernels::DType::kF32);
  EXPECT_EQ(std::memcmp(vector.data, tensors_[kNorm].bytes.data(), tensors_[kNorm].bytes.size()),
            0);
}

// Replaces every tensor by the same shape in a 16-bit type, all elements `bits`.
TensorMap AllHalf(const TensorMap& tensors, const std::string& dtype, uint16_t bits) {
  TensorMap halves;
  for (const auto& [name, tensor] : tensors) {
    const std::vector<uint16_t> values(tensor.bytes.size() / sizeof(float), bits);
    halves[name] = HalfTensor(dtype, tensor.shape, values);
  }
  return halves;
}

TEST_F(ConvertTest, Bf16SourceStaysBf16) {
  tensors_ = AllHalf(tensors_, "BF16", 0x3FC0);  // 1.5
  const absl::StatusOr<ConvertReport> report = Convert();
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->model.config.dtype, kernels::DType::kBF16);
  const absl::StatusOr<Weights> weights =
      Weights::Load(options_.output_dir, report->model.config, {});
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(static_cast<const uint16_t*>(weights->Get(kQ).data)[0], 0x3FC0);
  EXPECT_EQ(static_cast<const float*>(weights->Get(kNorm).data)[0], 1.5F);
}

TEST_F(ConvertTest, F16SourceBecomesF32) {
  tensors_ = AllHalf(tensors_, "F16", 0x3555);  // not a bf16
  const absl::StatusOr<ConvertReport> report = Convert();
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->model.config.dtype, kernels::DType::kF32);
  const absl::StatusOr<Weights> weights =
      Weights::Load(options_.output_dir, report->model.config, {});
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(static_cast<const float*>(weights->Get(kQ).data)[0], FloatFromF16(0x3555));
}

TEST_F(ConvertTest, ShardsGiveTheSameWeights) {
  ASSERT_TRUE(Convert().ok());
  const std::string whole = ReadText(options_.output_dir + "/weights.safetensors");

  const std::string sharded = dir_ / "sharded";
  std::filesystem::create_directories(sharded);
  WriteText(sharded + "/config.json", config_.dump());
  TensorMap halves[2];
  json map;
  size_t i = 0;
  for (const auto& [name, tensor] : tensors_) {
    const size_t shard = i++ % 2;
    halves[shard][name] = tensor;
    map[name] = "model-0000" + std::to_string(shard + 1) + "-of-00002.safetensors";
  }
  WriteTensors(sharded + "/model-00001-of-00002.safetensors", halves[0]);
  WriteTensors(sharded + "/model-00002-of-00002.safetensors", halves[1]);
  WriteText(sharded + "/model.safetensors.index.json", json({{"weight_map", map}}).dump());
  options_.source = sharded;
  options_.output_dir = dir_ / "from-shards";
  const absl::StatusOr<ConvertReport> report = ConvertCheckpoint(options_, nullptr);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(ReadText(options_.output_dir + "/weights.safetensors"), whole);
}

TEST_F(ConvertTest, NonFiniteValueIsNamed) {
  std::vector<float> values(static_cast<size_t>(64), 1.0F);
  values[17] = std::numeric_limits<float>::quiet_NaN();
  tensors_[kQ] = FloatTensor({8, 8}, values);
  const std::string error = Failure();
  EXPECT_THAT(error, HasSubstr(kQ));
  EXPECT_THAT(error, HasSubstr("element 17"));
}

TEST_F(ConvertTest, ValueBeyondBf16IsNamed) {
  tensors_[kQ] = FloatTensor({8, 8}, std::vector<float>(64, std::numeric_limits<float>::max()));
  options_.dtype = kernels::DType::kBF16;
  EXPECT_THAT(Failure(), HasSubstr("not finite as bf16"));
}

TEST_F(ConvertTest, ConfigThatContradictsTheTensors) {
  config_["intermediate_size"] = 7;
  config_["use_gate"] = true;
  const std::string error = Failure();
  EXPECT_THAT(error, HasSubstr("mlp.up_proj.weight: shape [6,8], config wants [7,8]"));
  EXPECT_THAT(error, HasSubstr("missing: model.layers.0.attn.g_proj.weight [8,8]"));
}

TEST_F(ConvertTest, RefusedConfigWritesNothing) {
  config_["attn"] = {{"layers", {0}}};
  EXPECT_THAT(Failure(), HasSubstr("attn: "));
}

TEST_F(ConvertTest, DamagedTokenizerWritesNothing) {
  std::filesystem::create_directories(options_.source);
  WriteText(options_.source + "/tokenizer.model", "not a tokenizer");
  EXPECT_THAT(Failure(), HasSubstr("tokenizer.model"));
}

TEST_F(ConvertTest, ChatTemplateNeedsATokenizer) {
  std::filesystem::create_directories(options_.source);
  WriteText(options_.source + "/chat_template.yaml",
            "roles:\n  user: {prefix: [{text: U}], suffix: []}\n");
  EXPECT_THAT(Failure(), HasSubstr("needs a tokenizer"));
}

TEST_F(ConvertTest, MissingSource) {
  EXPECT_THAT(std::string(ConvertCheckpoint(options_, nullptr).status().message()),
              HasSubstr("no such file or directory"));
  std::filesystem::create_directories(options_.source);
  EXPECT_THAT(std::string(ConvertCheckpoint(options_, nullptr).status().message()),
              HasSubstr("config.json"));
}

TEST_F(ConvertTest, ExistingOutputIsKept) {
  ASSERT_TRUE(Convert().ok());
  const std::string before = ReadText(options_.output_dir + "/model.yaml");
  options_.name = "other";
  EXPECT_EQ(Convert().status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(ReadText(options_.output_dir + "/model.yaml"), before);

  options_.overwrite = true;
  ASSERT_TRUE(Convert().ok());
  EXPECT_THAT(ReadText(options_.output_dir + "/model.yaml"), HasSubstr("other"));
  EXPECT_THAT(dir_.Entries(), ElementsAre("model", "source"));

  // A failure with --overwrite keeps what was there.
  config_["hidden_act"] = "gelu";
  EXPECT_FALSE(Convert().ok());
  EXPECT_THAT(ReadText(options_.output_dir + "/model.yaml"), HasSubstr("other"));
}

TEST_F(ConvertTest, OverwriteReplacesModelDirectoriesOnly) {
  std::filesystem::create_directories(options_.output_dir);
  WriteText(options_.output_dir + "/thesis.txt", "years of work");
  options_.overwrite = true;
  const absl::StatusOr<ConvertReport> report = Convert();
  EXPECT_THAT(std::string(report.status().message()), HasSubstr("not a model directory"));
  EXPECT_EQ(ReadText(options_.output_dir + "/thesis.txt"), "years of work");
}

TEST_F(ConvertTest, OutputMayNotHoldTheSource) {
  options_.overwrite = true;
  options_.source = dir_ / "model/source";
  std::filesystem::create_directories(options_.source);
  WriteText(dir_ / "model/model.yaml", "x");
  EXPECT_THAT(std::string(Convert().status().message()), HasSubstr("holds the checkpoint"));
  EXPECT_TRUE(std::filesystem::exists(options_.source + "/model.safetensors"));
}

TEST_F(ConvertTest, EmptyOutputDirectoryIsUsed) {
  std::filesystem::create_directories(options_.output_dir);
  options_.output_dir += "/";
  ASSERT_TRUE(Convert().ok());
  EXPECT_TRUE(LoadModelConfig(options_.output_dir).ok());
}

TEST_F(ConvertTest, SpaceIsAskedForFirst) {
  const absl::StatusOr<OutputDirectory> output = OutputDirectory::Create(dir_ / "out", false);
  ASSERT_TRUE(output.ok()) << output.status();
  EXPECT_TRUE(output->RequireSpace(1000).ok());
  const absl::Status status = output->RequireSpace(int64_t{1} << 60);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("needs 1152921504607 MB"));
}

TEST_F(ConvertTest, InterruptedLeavesNothing) {
  const std::atomic<bool> stop = true;
  options_.stop = &stop;
  EXPECT_EQ(Convert().status().code(), absl::StatusCode::kCancelled);
  EXPECT_THAT(dir_.Entries(), ElementsAre("source"));
}

TEST_F(ConvertTest, ProgressEndsAtTheTotal) {
  WriteCheckpoint(options_.source, config_, tensors_);
  int64_t last = 0;
  int64_t total = -1;
  const auto progress = [&](int64_t done, int64_t all, std::string_view tensor) {
    EXPECT_GT(done, last);
    EXPECT_FALSE(tensor.empty());
    last = done;
    total = all;
  };
  ASSERT_TRUE(ConvertCheckpoint(options_, progress).ok());
  EXPECT_EQ(last, total);
}

TEST_F(ConvertTest, InspectDescribesTheResult) {
  options_.dtype = kernels::DType::kBF16;
  const absl::StatusOr<ConvertReport> report = Convert();
  ASSERT_TRUE(report.ok()) << report.status();
  const absl::StatusOr<ModelSummary> summary = InspectModel(options_.output_dir, true);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(summary->parameters, report->model.parameters);
  EXPECT_EQ(summary->tensors.size(), tensors_.size());
  // One layer: S 2x4x4 (128 bytes), d 2x4 (32, padded to 64), three tails of 3x8 (96, padded to
  // 128).
  EXPECT_EQ(summary->state_bytes, 128 + 64 + 3 * 128);
  const json root = json::parse(SummaryToJson(*summary, true));
  EXPECT_EQ(root["architecture"]["key_dim"], 4);
  EXPECT_EQ(root["dtype"], "bf16");
  EXPECT_EQ(root["verified"], true);
  EXPECT_EQ(root["tokenizer_pieces"], nullptr);
  EXPECT_EQ(root["tensors"].size(), tensors_.size());
  EXPECT_FALSE(json::parse(SummaryToJson(*summary, false)).contains("tensors"));
  EXPECT_THAT(SummaryToText(*summary, true), HasSubstr(kQ));
  EXPECT_THAT(SummaryToText(*summary, false), testing::Not(HasSubstr(kQ)));
}

TEST_F(ConvertTest, InspectFindsACorruptByte) {
  ASSERT_TRUE(Convert().ok());
  const std::string path = options_.output_dir + "/weights.safetensors";
  std::string bytes = ReadText(path);
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  WriteText(path, bytes);
  EXPECT_TRUE(InspectModel(options_.output_dir, false).ok());
  EXPECT_EQ(InspectModel(options_.output_dir, true).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(InspectModel(dir_.path(), false).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace osdn::tools
