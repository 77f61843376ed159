#include "tools/name_map.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "tests/unit/tools/checkpoint_fixture.h"

namespace osdn::tools {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Pair;
using testing::UnorderedElementsAre;

class NameMapTest : public testing::Test {
 protected:
  NameMapTest() { std::iota(numbers_.begin(), numbers_.end(), 0.0F); }

  void Add(const std::string& name, std::vector<int64_t> shape) {
    int64_t elements = 1;
    for (const int64_t dim : shape) elements *= dim;
    sources_[name] = WholeTensor("F32", std::move(shape),
                                 {reinterpret_cast<const std::byte*>(numbers_.data()),
                                  static_cast<size_t>(elements) * sizeof(float)});
  }

  absl::StatusOr<MappedWeights> Apply(const std::string& yaml) {
    const absl::StatusOr<NameMap> map = NameMap::Parse(yaml, "map.yaml");
    if (!map.ok()) return map.status();
    SelectedWeights weights;
    for (const auto& [name, tensor] : sources_) weights.tensors.push_back({name, name, &tensor});
    return map->Apply(weights);
  }

  // The mapped tensors' elements.
  std::map<std::string, std::vector<float>> Elements(const std::string& yaml) {
    const absl::StatusOr<MappedWeights> mapped = Apply(yaml);
    EXPECT_TRUE(mapped.ok()) << mapped.status();
    std::map<std::string, std::vector<float>> elements;
    if (!mapped.ok()) return elements;
    for (const auto& [name, tensor] : mapped->tensors) elements[name] = FloatsOf(tensor);
    return elements;
  }

  std::string Error(const std::string& yaml) {
    const absl::Status status = Apply(yaml).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    return std::string(status.message());
  }

  std::vector<float> numbers_ = std::vector<float>(24);
  std::map<std::string, SourceTensor> sources_;
};

TEST_F(NameMapTest, RenamesTurnsAndLeavesTheRest) {
  Add("h.12.wq", {2, 3});
  Add("h.12.conv", {2, 3});
  Add("h.12.norm", {1, 2});
  Add("h.12.rotary", {4});
  Add("other", {1});
  EXPECT_THAT(Elements(R"(
rules:
  - {match: 'h\.(\d+)\.w(.)', to: 'layers.\1.\2_proj', transpose: true}
  - {match: 'h\.(\d+)\.conv', to: 'layers.\1.conv', unsqueeze: 1}
  - {match: 'h\.(\d+)\.norm', to: 'layers.\1.norm', squeeze: 0}
  - {match: '.*rotary', ignore: true}
)"),
              UnorderedElementsAre(Pair("layers.12.q_proj", ElementsAre(0, 3, 1, 4, 2, 5)),
                                   Pair("layers.12.conv", ElementsAre(0, 1, 2, 3, 4, 5)),
                                   Pair("layers.12.norm", ElementsAre(0, 1)),
                                   Pair("other", ElementsAre(0))));
}

TEST_F(NameMapTest, FirstRuleThatFitsTheWholeNameDecides) {
  Add("a.b", {1});
  EXPECT_THAT(Elements("rules: [{match: a, to: x}, {match: 'a\\..', to: y}, {match: '.*', to: z}]"),
              UnorderedElementsAre(Pair("y", ElementsAre(0))));
}

TEST_F(NameMapTest, Splits) {
  Add("qkv", {4, 2});
  EXPECT_THAT(Elements("rules: [{match: qkv, split: [q, k, v], sizes: [1, 1, 2]}]"),
              UnorderedElementsAre(Pair("q", ElementsAre(0, 1)), Pair("k", ElementsAre(2, 3)),
                                   Pair("v", ElementsAre(4, 5, 6, 7))));
  EXPECT_THAT(
      Elements("rules: [{match: qkv, split: [q, k], dim: 1}]"),
      UnorderedElementsAre(Pair("q", ElementsAre(0, 2, 4, 6)), Pair("k", ElementsAre(1, 3, 5, 7))));
  EXPECT_THAT(Error("rules: [{match: qkv, split: [a, b, c]}]"),
              HasSubstr("qkv: dimension 0 of shape [4,2] cannot be cut in 3 parts"));
  EXPECT_THAT(Error("rules: [{match: qkv, split: [a, b], dim: 2}]"), HasSubstr("dimension 2"));
}

TEST_F(NameMapTest, JoinsInOrderOfTheirParts) {
  for (const char* name : {"w.0", "w.1", "w.10", "w.2"}) Add(name, {1, 2});
  sources_.erase("w.10");
  EXPECT_THAT(Elements("rules: [{match: 'w\\.(\\d+)', concat: w, part: '\\1', dim: 1}]"),
              UnorderedElementsAre(Pair("w", ElementsAre(0, 1, 0, 1, 0, 1))));
  Add("w.10", {1, 2});
  EXPECT_THAT(Error("rules: [{match: 'w\\.(\\d+)', concat: w, part: '\\1'}]"),
              HasSubstr("w: part 2 (w.2) is followed by part 10 (w.10)"));
  sources_.erase("w.10");
  Add("w.3", {1, 3});
  EXPECT_THAT(Error("rules: [{match: 'w\\.(\\d+)', concat: w, part: '\\1'}]"),
              HasSubstr("w: cannot join F32[1,3] to F32[1,2] in dimension 0"));
}

TEST_F(NameMapTest, ListsAllThatCannotBeDone) {
  Add("a", {2, 2});
  Add("b", {2});
  Add("c", {2});
  EXPECT_THAT(Error("rules: [{match: 'a|b', to: x}, {match: c, to: y, transpose: true}]"),
              AllOf(HasSubstr("(2 problems)"), HasSubstr("b: another tensor is called x already"),
                    HasSubstr("c: only matrices can be transposed, not shape [2]")));
}

TEST_F(NameMapTest, TableAndUnusedRules) {
  Add("a", {4, 1});
  Add("b", {2});
  const absl::StatusOr<MappedWeights> mapped = Apply(
      "rules: [{match: a, transpose: true, split: [x, y], dim: 1}, {match: b, ignore: true},"
      " {match: nothing, to: z}]");
  ASSERT_TRUE(mapped.ok()) << mapped.status();
  ASSERT_EQ(mapped->table.size(), 3U);
  EXPECT_EQ(mapped->table[1].target, "y");
  EXPECT_EQ(mapped->table[1].operation, "transposed, part 2 of 2");
  EXPECT_THAT(mapped->table[1].shape, ElementsAre(1, 2));
  EXPECT_EQ(mapped->table[2].operation, "ignored");
  EXPECT_THAT(mapped->notices, ElementsAre("map.yaml: no tensor is called nothing"));
}

TEST_F(NameMapTest, FilesThatMakeNoSense) {
  const std::vector<std::pair<std::string, std::string>> files = {
      {"", "map.yaml"},
      {"rules: 5", "rules: must be a list"},
      {"rules: [{to: x}]", "rules[0].match"},
      {"rules: [{match: a}]", "exactly one of to, split, concat and ignore"},
      {"rules: [{match: a, to: x, ignore: true}]", "exactly one of"},
      {"rules: [{match: '(', to: x}]", "rules[0].match"},
      {"rules: [{match: a, to: '\\1'}]", "rules[0].match"},
      {"rules: [{match: a, to: x, dim: 99}]", "rules[0].dim"},
      {"rules: [{match: a, split: [x, y], sizes: [1]}]", "1 of them for 2 names"},
      {"rules: [{match: a, split: [x, y], sizes: [1, -2]}]", "rules[0].sizes"},
      {"rules: [{match: a, concat: x}]", "rules[0].part"},
      {"rules: [{match: a, to: x, part: 1}]", "rules[0].part"},
      {"rules: [{match: a, too: x}]", "rules[0].too: unknown key"},
      {"rules: []\nmore: 1", "more: unknown key"},
      {"rules: [", "map.yaml"},
  };
  for (const auto& [yaml, problem] : files) EXPECT_THAT(Error(yaml), HasSubstr(problem)) << yaml;
}

TEST_F(NameMapTest, BuiltInMapsAreSound) {
  EXPECT_FALSE(NameMap::BuiltInNames().empty());
  for (const std::string& name : NameMap::BuiltInNames()) {
    EXPECT_TRUE(NameMap::Load(name).ok()) << name;
  }
  EXPECT_THAT(std::string(NameMap::Load("/no/such/map").status().message()),
              HasSubstr("built-in maps: fla-fused-mlp"));
}

}  // namespace
}  // namespace osdn::tools
