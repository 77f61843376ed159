#include "engine/tensor_specs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/safetensors.h"
#include "tests/unit/engine/test_support.h"

namespace osdn {
namespace {

using ::testing::ElementsAre;
using testing_support::GoldenArchitecture;
using testing_support::SmallArchitecture;
using testing_support::TestData;

std::map<std::string, TensorSpec> ByName(const ArchitectureConfig& arch) {
  std::map<std::string, TensorSpec> specs;
  for (const TensorSpec& spec : TensorSpecs(arch)) {
    EXPECT_TRUE(specs.emplace(spec.name, spec).second) << spec.name << " listed twice";
  }
  return specs;
}

// The list is exactly what fla-layout checkpoints hold.
TEST(TensorSpecsTest, MatchGoldenCheckpoints) {
  for (const char* name : {"tiny", "tiny_apf_gate"}) {
    SCOPED_TRACE(name);
    const auto file =
        SafetensorsFile::Open(TestData(absl::StrCat("golden/", name, "/model.safetensors")));
    ASSERT_TRUE(file.ok()) << file.status();
    const auto specs = ByName(GoldenArchitecture(name));
    EXPECT_EQ(specs.size(), file->tensors().size());
    for (const auto& [tensor, entry] : file->tensors()) {
      ASSERT_TRUE(specs.contains(tensor)) << tensor;
      EXPECT_EQ(specs.at(tensor).shape, entry.shape) << tensor;
    }
  }
}

TEST(TensorSpecsTest, SwitchesAddAndRemoveTensors) {
  const ArchitectureConfig base = SmallArchitecture();
  const size_t layers = static_cast<size_t>(base.num_layers);
  const size_t count = TensorSpecs(base).size();
  ArchitectureConfig arch = base;
  arch.tie_embeddings = true;
  EXPECT_EQ(TensorSpecs(arch).size(), count - 1);
  arch = base;
  arch.use_gate = true;
  EXPECT_EQ(TensorSpecs(arch).size(), count + layers);
  arch = base;
  arch.apf = Apf::kScalar;
  EXPECT_EQ(TensorSpecs(arch).size(), count + 2 * layers);
  arch = base;
  arch.conv_bias = true;
  EXPECT_EQ(TensorSpecs(arch).size(), count + 3 * layers);
  arch = base;
  arch.use_short_conv = false;
  arch.conv_bias = true;  // means nothing without convolutions
  EXPECT_EQ(TensorSpecs(arch).size(), count - 3 * layers);
  arch = base;
  arch.use_beta = false;
  EXPECT_EQ(TensorSpecs(arch).size(), count - layers);
}

TEST(TensorSpecsTest, ShapesAndKinds) {
  ArchitectureConfig arch = SmallArchitecture();  // hidden 24, 3 heads, K 5, V 7
  arch.apf = Apf::kScalar;
  arch.use_gate = true;
  const auto specs = ByName(arch);
  const std::string attn = "model.layers.1.attn.";
  EXPECT_THAT(specs.at(attn + "q_proj.weight").shape, ElementsAre(15, 24));
  EXPECT_THAT(specs.at(attn + "v_proj.weight").shape, ElementsAre(21, 24));
  EXPECT_THAT(specs.at(attn + "g_proj.weight").shape, ElementsAre(21, 24));
  EXPECT_THAT(specs.at(attn + "o_proj.weight").shape, ElementsAre(24, 21));
  EXPECT_THAT(specs.at(attn + "k_conv1d.weight").shape, ElementsAre(15, 1, 4));
  EXPECT_THAT(specs.at(attn + "a_proj.bias").shape, ElementsAre(3));
  EXPECT_THAT(specs.at(attn + "o_norm.weight").shape, ElementsAre(7));
  EXPECT_THAT(specs.at("model.layers.0.mlp.down_proj.weight").shape, ElementsAre(24, 19));

  for (const auto& [name, spec] : specs) {
    if (absl::StrContains(name, "norm") || absl::StrContains(name, "conv") ||
        absl::StrContains(name, "a_proj") || absl::StrContains(name, "b_proj")) {
      EXPECT_EQ(spec.kind, TensorKind::kVector) << name << " is sensitive: float32";
    } else {
      EXPECT_EQ(spec.kind, TensorKind::kMatrix) << name;
    }
  }
}

TEST(TensorSpecsTest, StoredFormOfEveryDType) {
  using kernels::DType;
  const TensorSpec matrix = {"model.layers.0.mlp.down_proj.weight", {24, 65}, TensorKind::kMatrix};
  const TensorSpec head = {"lm_head.weight", {31, 24}, TensorKind::kMatrix};
  const TensorSpec vector = {"model.norm.weight", {24}, TensorKind::kVector};
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kI8, DType::kI4}) {
    EXPECT_EQ(StoredDType(vector, dtype), DType::kF32);
    EXPECT_EQ(StoredDType(matrix, dtype), dtype);
    EXPECT_EQ(StoredDType(head, dtype), dtype == DType::kI4 ? DType::kI8 : dtype);
  }
  EXPECT_EQ(StoredBytes(matrix, DType::kF32), 24 * 65 * 4);
  EXPECT_EQ(StoredBytes(matrix, DType::kBF16), 24 * 65 * 2);
  EXPECT_EQ(StoredBytes(matrix, DType::kI8), 24 * 65 + 24 * 4);
  EXPECT_EQ(StoredBytes(matrix, DType::kI4), 24 * 33 + 24 * 3 * 2);

  const std::vector<StoredTensor> entries = StoredTensors(matrix, DType::kI4);
  ASSERT_EQ(entries.size(), 2U);
  EXPECT_EQ(entries[0].dtype, "U8");
  EXPECT_THAT(entries[0].shape, ElementsAre(24, 33));
  EXPECT_EQ(entries[1].name, matrix.name + ".scale");
  EXPECT_EQ(entries[1].dtype, "BF16");
  EXPECT_THAT(entries[1].shape, ElementsAre(24, 3));
}

}  // namespace
}  // namespace osdn
