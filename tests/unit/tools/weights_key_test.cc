#include "tools/weights_key.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

namespace osdn::tools {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

absl::StatusOr<SelectedWeights> Select(const std::vector<std::string>& names,
                                       const std::string& key = "") {
  static std::map<std::string, SourceTensor> tensors;  // SelectedTensor points into it
  tensors.clear();
  for (const std::string& name : names) tensors[name] = {};
  return SelectWeights(tensors, key);
}

std::vector<std::string> Names(const std::vector<std::string>& names, const std::string& key = "") {
  const absl::StatusOr<SelectedWeights> selected = Select(names, key);
  EXPECT_TRUE(selected.ok()) << selected.status();
  std::vector<std::string> found;
  if (!selected.ok()) return found;
  for (const SelectedTensor& tensor : selected->tensors) found.push_back(tensor.name);
  return found;
}

// A small model under a prefix.
std::vector<std::string> Model(const std::string& prefix, const std::string& backbone = "model.") {
  return {prefix + backbone + "embeddings.weight", prefix + backbone + "layers.0.attn_norm.weight",
          prefix + backbone + "norm.weight", prefix + "lm_head.weight"};
}

std::vector<std::string> operator+(std::vector<std::string> a, const std::vector<std::string>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

const auto kModel =
    UnorderedElementsAre("model.embeddings.weight", "model.layers.0.attn_norm.weight",
                         "model.norm.weight", "lm_head.weight");

TEST(WeightsKeyTest, FoundWhereverTheyAreNested) {
  for (const char* prefix : {"", "model.", "state_dict.", "module.", "state_dict.module.",
                             "model.module.", "a.b.c.", "_orig_mod.", "state_dict._orig_mod."}) {
    EXPECT_THAT(Names(Model(prefix)), kModel) << prefix;
  }
  EXPECT_THAT(Select(Model(""))->notices, IsEmpty());
  EXPECT_THAT(Select(Model("state_dict."))->notices,
              ElementsAre("the weights are those under state_dict"));
}

TEST(WeightsKeyTest, ABackboneAlone) {
  EXPECT_THAT(Names(Model("", "")), kModel);
  EXPECT_THAT(Names(Model("model.", "")), kModel);  // {"model": {"norm.weight": ...}}
  EXPECT_THAT(Names(Model("state_dict.", "")), kModel);
}

TEST(WeightsKeyTest, WrappersInsideOfNames) {
  EXPECT_THAT(Names({"model.embeddings.weight", "model.layers.0._orig_mod.attn_norm.weight",
                     "model.norm._checkpoint_wrapped_module.weight",
                     "_fsdp_wrapped_module.lm_head.weight"}),
              kModel);
  EXPECT_THAT(std::string(Select(Model("") + Model("_orig_mod.")).status().message()),
              HasSubstr("two tensors are called"));
}

TEST(WeightsKeyTest, EmaIsTakenWhenAskedFor) {
  const std::vector<std::string> both = Model("model.") + Model("ema.module.");
  EXPECT_EQ(Select(both)->prefix, "model.");
  EXPECT_THAT(Select(both)->notices, testing::Contains("4 tensors elsewhere are left out"));
  EXPECT_EQ(Select(both, "ema")->prefix, "ema.module.");
  EXPECT_EQ(Select(both, "ema.")->prefix, "ema.module.");
  EXPECT_THAT(Names(both, "ema.module"), kModel);
  EXPECT_THAT(Names(both, "model"), kModel);
  EXPECT_EQ(Select(Model("model_ema."))->prefix, "model_ema.");  // nothing else is there
}

TEST(WeightsKeyTest, SeveralModelsAreListed) {
  const auto status = Select(Model("student.") + Model("teacher.")).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("--weights-key: student, teacher"));
  EXPECT_THAT(Names(Model("student.") + Model("teacher."), "teacher"), kModel);
}

TEST(WeightsKeyTest, NothingUnderTheKey) {
  EXPECT_THAT(std::string(Select(Model("model."), "ema").status().message()),
              HasSubstr("--weights-key ema: no tensors there; the top level has model"));
}

TEST(WeightsKeyTest, TrainingStateIsLeftOut) {
  const absl::StatusOr<SelectedWeights> selected =
      Select(Model("") + std::vector<std::string>{"optimizer.state.0.exp_avg", "lr_scheduler.x"});
  ASSERT_TRUE(selected.ok()) << selected.status();
  EXPECT_EQ(selected->tensors.size(), 4U);
  EXPECT_THAT(selected->notices, ElementsAre("2 tensors of training state are left out"));
}

TEST(WeightsKeyTest, OtherFamiliesKeepTheirNames) {
  EXPECT_THAT(Names({"state_dict.module.wte", "state_dict.module.h.0.w"}),
              UnorderedElementsAre("wte", "h.0.w"));
  EXPECT_THAT(Names({"a.wte", "b.w"}), UnorderedElementsAre("a.wte", "b.w"));
  EXPECT_THAT(Names({"x.wte", "x.w", "y"}, "x"), UnorderedElementsAre("wte", "w"));
}

}  // namespace
}  // namespace osdn::tools
