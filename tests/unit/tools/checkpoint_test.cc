#include "tools/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/unit/tools/checkpoint_fixture.h"
#include "tools/check_tensors.h"

namespace osdn::tools {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::SizeIs;

std::string OpenError(const std::string& dir) {
  const absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(dir);
  EXPECT_FALSE(checkpoint.ok());
  return std::string(checkpoint.status().message());
}

class ShardTest : public testing::Test {
 protected:
  ShardTest() {
    WriteTensors(dir_ / "a.safetensors", {{"x", FloatTensor({2}, {1, 2})}});
    WriteTensors(dir_ / "b.safetensors",
                 {{"y", FloatTensor({1}, {3})}, {"z", FloatTensor({1}, {4})}});
    map_ = {{"x", "a.safetensors"}, {"y", "b.safetensors"}, {"z", "b.safetensors"}};
  }

  void WriteIndex() {
    const json index = {{"metadata", {{"total_size", 16}}}, {"weight_map", map_}};
    WriteText(dir_ / "model.safetensors.index.json", index.dump());
  }

  TemporaryDirectory dir_;
  json map_;
};

TEST_F(ShardTest, FindsTensorsInTheirShards) {
  WriteIndex();
  const absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(dir_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_THAT(checkpoint->tensors(), SizeIs(3));
  ASSERT_NE(checkpoint->Find("z"), nullptr);
  EXPECT_THAT(FloatsOf(*checkpoint->Find("z")), testing::ElementsAre(4));
  EXPECT_EQ(checkpoint->Find("w"), nullptr);
}

TEST_F(ShardTest, ListsEveryContradiction) {
  map_["y"] = "a.safetensors";
  map_.erase("z");
  map_["w"] = "b.safetensors";
  map_["v"] = "c.safetensors";
  WriteIndex();
  const std::string error = OpenError(dir_.path());
  EXPECT_THAT(error, HasSubstr("y: the index says a.safetensors, not there"));
  EXPECT_THAT(error, HasSubstr("y: the index says a.safetensors, found in b.safetensors"));
  EXPECT_THAT(error, HasSubstr("z: in b.safetensors but not in the index"));
  EXPECT_THAT(error, HasSubstr("w: the index says b.safetensors, not there"));
  EXPECT_THAT(error, HasSubstr("c.safetensors"));
}

TEST_F(ShardTest, ShardNamesCannotLeaveTheDirectory) {
  for (const char* name : {"../a.safetensors", "/etc/passwd", "..", ".", "", "sub/a.safetensors"}) {
    map_["x"] = name;
    WriteIndex();
    EXPECT_THAT(OpenError(dir_.path()), HasSubstr("not a plain file name")) << name;
  }
  map_["x"] = 5;
  WriteIndex();
  EXPECT_THAT(OpenError(dir_.path()), HasSubstr("not a plain file name"));
}

TEST_F(ShardTest, DamagedIndex) {
  for (const char* text : {"", "{}", R"({"weight_map": {}})", R"({"weight_map": []})", "[]"}) {
    WriteText(dir_ / "model.safetensors.index.json", text);
    EXPECT_THAT(OpenError(dir_.path()), HasSubstr("model.safetensors.index.json")) << text;
  }
}

TEST(CheckpointTest, SingleFileIsPreferred) {
  const TemporaryDirectory dir;
  WriteTensors(dir / "model.safetensors", {{"x", FloatTensor({1}, {1})}});
  WriteText(dir / "model.safetensors.index.json", "not read");
  EXPECT_TRUE(Checkpoint::Open(dir.path()).ok());
}

TEST(CheckpointTest, NoWeights) {
  const TemporaryDirectory dir;
  EXPECT_EQ(Checkpoint::Open(dir.path()).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(OpenError(dir.path()), Not(HasSubstr("name one of its files")));
  WriteText(dir / "pytorch_model.bin", "x");
  EXPECT_THAT(OpenError(dir.path()), HasSubstr("pytorch_model.bin: not a file of torch.save"));
}

TEST(CheckpointTest, OneFileOfAnyName) {
  const TemporaryDirectory dir;
  WriteTensors(dir / "best.safetensors", {{"x", FloatTensor({1}, {1})}});
  EXPECT_TRUE(Checkpoint::Open(dir.path()).ok());
  WriteTensors(dir / "last.safetensors", {{"x", FloatTensor({1}, {2})}});
  EXPECT_THAT(OpenError(dir.path()), HasSubstr("name one of its files as the source: "));
  const absl::StatusOr<Checkpoint> last = Checkpoint::Open(dir / "last.safetensors");
  ASSERT_TRUE(last.ok()) << last.status();
  EXPECT_THAT(FloatsOf(*last->Find("x")), testing::ElementsAre(2));
}

TEST(CheckpointTest, TruncatedFile) {
  const TemporaryDirectory dir;
  WriteTensors(dir / "model.safetensors", {{"x", FloatTensor({4}, {1, 2, 3, 4})}});
  std::filesystem::resize_file(dir / "model.safetensors", 70);
  EXPECT_THAT(OpenError(dir.path()), HasSubstr("model.safetensors"));
}

class CheckTensorsTest : public testing::Test {
 protected:
  absl::Status Check(const TensorMap& tensors, bool tied) {
    WriteTensors(dir_ / "model.safetensors", tensors);
    absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(dir_.path());
    if (!checkpoint.ok()) return checkpoint.status();
    notices_.clear();
    return CheckTensors(checkpoint->tensors(), specs_, tied, &notices_);
  }

  const std::vector<TensorSpec> specs_ = {{"model.embeddings.weight", {2, 1}, TensorKind::kMatrix},
                                          {"model.norm.weight", {3}, TensorKind::kVector}};
  const TensorMap good_ = {{"model.embeddings.weight", FloatTensor({2, 1}, {1, 2})},
                           {"model.norm.weight", FloatTensor({3}, {1, 1, 1})}};
  std::vector<std::string> notices_;
  TemporaryDirectory dir_;
};

TEST_F(CheckTensorsTest, Matches) {
  EXPECT_TRUE(Check(good_, false).ok());
  EXPECT_THAT(notices_, IsEmpty());
}

TEST_F(CheckTensorsTest, ListsAllProblemsWithBothShapes) {
  TensorMap tensors = good_;
  tensors.erase("model.norm.weight");
  tensors["model.embeddings.weight"] = {"I32", {1, 2}, std::vector<std::byte>(8)};
  tensors["extra.bias"] = FloatTensor({1, 1}, {0});
  const absl::Status status = Check(tensors, false);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  const std::string error(status.message());
  EXPECT_THAT(error, HasSubstr("(4 problems)"));
  EXPECT_THAT(error, HasSubstr("missing: model.norm.weight [3]"));
  EXPECT_THAT(error, HasSubstr("model.embeddings.weight: shape [1,2], config wants [2,1]"));
  EXPECT_THAT(error, HasSubstr("model.embeddings.weight: dtype I32, want F32, BF16 or F16"));
  EXPECT_THAT(error, HasSubstr("unexpected: extra.bias [1,1]"));
}

TEST_F(CheckTensorsTest, HeadOfATiedModel) {
  TensorMap tensors = good_;
  tensors["lm_head.weight"] = tensors["model.embeddings.weight"];
  EXPECT_TRUE(Check(tensors, true).ok());
  ASSERT_THAT(notices_, SizeIs(1));
  EXPECT_THAT(notices_[0], HasSubstr("lm_head.weight"));
  EXPECT_THAT(std::string(Check(tensors, false).message()),
              HasSubstr("unexpected: lm_head.weight"));
  tensors["lm_head.weight"] = FloatTensor({2, 1}, {1, 3});
  EXPECT_THAT(std::string(Check(tensors, true).message()),
              HasSubstr("lm_head.weight differs from model.embeddings.weight"));
}

}  // namespace
}  // namespace osdn::tools
