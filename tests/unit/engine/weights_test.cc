#include "engine/weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "engine/tensor_specs.h"
#include "tests/unit/engine/test_support.h"

namespace osdn {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing_support::RandomTensors;
using testing_support::ReadFile;
using testing_support::SmallArchitecture;
using testing_support::TempDir;
using testing_support::TensorMap;
using testing_support::WriteFile;
using testing_support::WriteModel;

class WeightsTest : public testing::Test {
 protected:
  WeightsTest() {
    config_.arch = SmallArchitecture();
    tensors_ = RandomTensors(config_.arch, 3);
    config_ = WriteModel(config_, tensors_, dir_.path());
  }

  std::string WeightsPath() const { return dir_.File(kWeightsFileName); }

  // Makes model.yaml's digest agree with a changed file.
  void RefreshDigest() {
    config_.files = {testing_support::DigestOf(dir_.path(), kWeightsFileName)};
  }

  TempDir dir_;
  ModelConfig config_;
  TensorMap tensors_;
};

TEST_F(WeightsTest, TensorsAreReadBack) {
  const auto weights = Weights::Load(dir_.path(), config_, {});
  ASSERT_TRUE(weights.ok()) << weights.status();
  size_t bytes = 0;
  for (const TensorSpec& spec : TensorSpecs(config_.arch)) {
    const kernels::HostTensor tensor = weights->Get(spec.name);
    EXPECT_EQ(tensor.shape, spec.shape);
    EXPECT_EQ(tensor.dtype, kernels::DType::kF32);
    const std::vector<float>& want = tensors_.at(spec.name);
    ASSERT_EQ(static_cast<size_t>(tensor.elements()), want.size());
    EXPECT_EQ(std::memcmp(tensor.data, want.data(), want.size() * sizeof(float)), 0) << spec.name;
    bytes += want.size() * sizeof(float);
  }
  EXPECT_EQ(weights->bytes(), bytes);
}

TEST_F(WeightsTest, Bf16MatricesAndFloat32Vectors) {
  config_.dtype = kernels::DType::kBF16;
  config_ = WriteModel(config_, tensors_, dir_.path());
  const auto weights = Weights::Load(dir_.path(), config_, {});
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(weights->Get("lm_head.weight").dtype, kernels::DType::kBF16);
  EXPECT_EQ(weights->Get("model.norm.weight").dtype, kernels::DType::kF32);
}

TEST_F(WeightsTest, QuantizedMatricesComeWithScales) {
  using kernels::DType;
  for (const DType dtype : {DType::kI8, DType::kI4}) {
    SCOPED_TRACE(kernels::DTypeName(dtype));
    config_.dtype = dtype;
    config_ = WriteModel(config_, tensors_, dir_.path());
    const auto weights = Weights::Load(dir_.path(), config_, {});
    ASSERT_TRUE(weights.ok()) << weights.status();
    const std::string name = "model.layers.1.mlp.down_proj.weight";  // [24, 19]: odd rows
    const kernels::HostTensor tensor = weights->Get(name);
    EXPECT_EQ(tensor.dtype, dtype);
    EXPECT_THAT(tensor.shape, testing::ElementsAre(24, 19));
    ASSERT_NE(tensor.scales, nullptr);
    // Row 23 from the mapping is row 23 that went in, within half a step.
    const auto* row = static_cast<const uint8_t*>(tensor.data) + 23 * kernels::RowBytes(dtype, 19);
    for (int64_t i = 0; i < 19; ++i) {
      float scale = 0;
      int code = 0;
      if (dtype == DType::kI8) {
        scale = static_cast<const float*>(tensor.scales)[23];
        code = static_cast<int8_t>(row[i]);
      } else {
        const uint32_t half = static_cast<const uint16_t*>(tensor.scales)[23];
        scale = std::bit_cast<float>(half << 16U);
        code = (row[i / 2] >> (i % 2 * 4) & 0xF) - 8;
      }
      EXPECT_NEAR(static_cast<float>(code) * scale, tensors_.at(name)[23 * 19 + i], 0.52F * scale);
    }
    // What is sensitive stays finer: docs/model-format.md.
    EXPECT_EQ(weights->Get("lm_head.weight").dtype, DType::kI8);
    EXPECT_EQ(weights->Get("model.embeddings.weight").dtype, DType::kI8);
    EXPECT_EQ(weights->Get("model.norm.weight").dtype, DType::kF32);
    EXPECT_EQ(weights->Get("model.norm.weight").scales, nullptr);
    EXPECT_EQ(weights->Get("model.layers.0.attn.b_proj.weight").dtype, DType::kF32);
    EXPECT_EQ(weights->Get("model.norm.weight.scale").data, nullptr);
    size_t bytes = 0;
    for (const TensorSpec& spec : TensorSpecs(config_.arch)) {
      bytes += static_cast<size_t>(StoredBytes(spec, StoredDType(spec, dtype)));
    }
    EXPECT_EQ(weights->bytes(), bytes);
  }
}

TEST_F(WeightsTest, QuantizedFilesThatDoNotFit) {
  config_.dtype = kernels::DType::kI8;
  config_ = WriteModel(config_, tensors_, dir_.path());
  config_.dtype = kernels::DType::kI4;  // packs two weights a byte, with scales of groups
  const auto packed = Weights::Load(dir_.path(), config_, {});
  EXPECT_THAT(
      std::string(packed.status().message()),
      AllOf(HasSubstr("tensor model.layers.0.mlp.up_proj.weight: dtype I8, config wants U8"),
            HasSubstr("mlp.up_proj.weight.scale: dtype F32, config wants BF16")));
  EXPECT_THAT(std::string(packed.status().message()), testing::Not(HasSubstr("lm_head")));
  config_.dtype = kernels::DType::kF32;
  const auto plain = Weights::Load(dir_.path(), config_, {});
  EXPECT_THAT(std::string(plain.status().message()),
              AllOf(HasSubstr("tensor lm_head.weight: dtype I8, config wants F32"),
                    HasSubstr("unexpected lm_head.weight.scale F32[31]")));
  config_.dtype = kernels::DType::kI8;
  config_.arch.intermediate_size = 20;
  const auto misshapen = Weights::Load(dir_.path(), config_, {});
  EXPECT_THAT(std::string(misshapen.status().message()),
              AllOf(HasSubstr("mlp.up_proj.weight: shape [19,24], config wants [20,24]"),
                    HasSubstr("mlp.up_proj.weight.scale: shape [19], config wants [20]")));
}

TEST_F(WeightsTest, OneFlippedBitIsDataLoss) {
  std::string bytes = ReadFile(WeightsPath());
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  WriteFile(WeightsPath(), bytes);
  const auto weights = Weights::Load(dir_.path(), config_, {});
  EXPECT_EQ(weights.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(
      std::string(weights.status().message()),
      AllOf(HasSubstr(WeightsPath()), HasSubstr("sha256"), HasSubstr(config_.files[0].sha256)));
  Weights::Options unchecked;
  unchecked.verify_checksums = false;
  EXPECT_TRUE(Weights::Load(dir_.path(), config_, unchecked).ok());
}

TEST_F(WeightsTest, TruncationIsDataLossEvenUnchecked) {
  const std::string bytes = ReadFile(WeightsPath());
  WriteFile(WeightsPath(), bytes.substr(0, bytes.size() - 1));
  Weights::Options unchecked;
  unchecked.verify_checksums = false;
  const auto weights = Weights::Load(dir_.path(), config_, unchecked);
  EXPECT_EQ(weights.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(
      std::string(weights.status().message()),
      AllOf(HasSubstr(absl::StrCat(bytes.size() - 1)), HasSubstr(absl::StrCat(bytes.size()))));
}

TEST_F(WeightsTest, MissingFileIsNamed) {
  std::filesystem::remove(WeightsPath());
  const auto weights = Weights::Load(dir_.path(), config_, {});
  EXPECT_EQ(weights.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(weights.status().message()), HasSubstr(WeightsPath()));
}

TEST_F(WeightsTest, EveryMismatchAtOnce) {
  ArchitectureConfig other = config_.arch;
  other.hidden_size = 32;       // misshapen
  other.use_gate = true;        // missing
  other.tie_embeddings = true;  // unexpected
  config_.arch = other;
  const auto weights = Weights::Load(dir_.path(), config_, {});
  EXPECT_EQ(weights.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(
      std::string(weights.status().message()),
      AllOf(HasSubstr("tensor model.embeddings.weight: shape [31,24], config wants [31,32]"),
            HasSubstr("missing model.layers.0.attn.g_proj.weight F32[21,32]"),
            HasSubstr("missing model.layers.1.attn.g_proj.weight"),
            HasSubstr("unexpected lm_head.weight F32[31,24]")));
}

TEST_F(WeightsTest, DtypeMustBeTheConfigs) {
  config_.dtype = kernels::DType::kBF16;  // the file is float32
  const auto weights = Weights::Load(dir_.path(), config_, {});
  EXPECT_EQ(weights.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(weights.status().message()),
              HasSubstr("tensor lm_head.weight: dtype F32, config wants BF16"));
}

TEST_F(WeightsTest, MisalignedDataIsRefused) {
  // One space more in the header moves all data by one byte.
  std::string bytes = ReadFile(WeightsPath());
  uint64_t size = 0;
  std::memcpy(&size, bytes.data(), sizeof(size));
  bytes.insert(sizeof(size) + size, " ");
  ++size;
  std::memcpy(bytes.data(), &size, sizeof(size));
  WriteFile(WeightsPath(), bytes);
  RefreshDigest();
  const auto weights = Weights::Load(dir_.path(), config_, {});
  EXPECT_EQ(weights.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(weights.status().message()), HasSubstr("not aligned"));
}

TEST_F(WeightsTest, UnservableConfigIsRefusedFirst) {
  config_.arch.num_layers = 0;
  EXPECT_THAT(std::string(Weights::Load(dir_.path(), config_, {}).status().message()),
              HasSubstr("architecture.num_layers"));
}

}  // namespace
}  // namespace osdn
