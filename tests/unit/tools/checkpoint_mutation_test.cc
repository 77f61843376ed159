// Damaged checkpoints of every kind: whatever is changed in them, the readers answer with a Status
// or with tensors that can be read, and never crash. The changes are random but the same each time.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "tests/unit/tools/checkpoint_fixture.h"
#include "tools/checkpoint.h"
#include "tools/checkpoint_config.h"
#include "tools/float_convert.h"
#include "tools/weights_key.h"

namespace osdn::tools {
namespace {

constexpr int kRounds = 200;

std::string Mutate(std::string text, std::mt19937* random) {
  const auto below = [&](size_t limit) { return (*random)() % std::max<size_t>(limit, 1); };
  const size_t at = below(text.size());
  const size_t length = std::min(below(16) + 1, text.size() - at);
  switch (below(5)) {
    case 0:  // truncated
      text.resize(at);
      break;
    case 1:  // single bits
      for (size_t i = 0; i < length; ++i) {
        text[below(text.size())] ^= static_cast<char>(1U << below(8));
      }
      break;
    case 2:  // a run of one byte, often an extreme one
      text.replace(at, length, std::string(length, static_cast<char>(below(2) == 0 ? 0xFF : 0)));
      break;
    case 3:  // something from elsewhere
      text.replace(at, length, text.substr(below(text.size() - length), length));
      break;
    default:  // left out
      text.erase(at, length);
  }
  return text;
}

// Reads everything that a checkpoint claims to have.
bool ReadsWhole(const std::string& path) {
  absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(path);
  if (!checkpoint.ok()) {
    EXPECT_FALSE(checkpoint.status().message().empty());
    return false;
  }
  bool sound = SelectWeights(checkpoint->tensors(), "").ok();
  for (const auto& [name, tensor] : checkpoint->tensors()) {
    sound = checkpoint->CheckStorages(tensor).ok() && sound;
    if (tensor.shape.empty() || !ParseSourceDType(tensor.dtype).has_value()) continue;
    // A view with strides of 0 may claim to be larger than memory: what convert asks for is
    // bounded by the config.
    if (tensor.elements() < 1 << 20) FloatsOf(tensor);
  }
  return sound;
}

class MutationTest : public testing::TestWithParam<const char*> {};

TEST_P(MutationTest, NeverCrashes) {
  const std::filesystem::path file(GetParam());
  const TemporaryDirectory dir;
  std::filesystem::copy(TestDataPath("checkpoints/" + file.parent_path().string()),
                        dir / "checkpoint", std::filesystem::copy_options::recursive);
  const std::string path = dir / ("checkpoint/" + file.filename().string());
  const std::string good = ReadText(path);
  ASSERT_TRUE(ReadsWhole(dir / "checkpoint"));
  std::mt19937 random(7);
  int refused = 0;
  for (int round = 0; round < kRounds; ++round) {
    WriteText(path, Mutate(good, &random));
    if (!ReadsWhole(dir / "checkpoint")) ++refused;
  }
  // Plain weights can change and stay sound; structure mostly cannot.
  EXPECT_GT(refused, kRounds / 10);
}

INSTANTIATE_TEST_SUITE_P(Files, MutationTest,
                         testing::Values("fla_plain/model.safetensors",
                                         "fla_options/pytorch_model.bin", "fla_dcp/.metadata",
                                         "fla_dcp/__0_0.distcp"));

// Several changes at once, in the one file that is nothing but a pickle.
TEST(CheckpointMutationTest, PickleAlone) {
  const std::string archive = ReadText(TestDataPath("checkpoints/fla_dcp/.metadata"));
  const TemporaryDirectory dir;
  std::filesystem::copy(TestDataPath("checkpoints/fla_dcp"), dir / "dcp");
  std::mt19937 random(11);
  for (int round = 0; round < kRounds; ++round) {
    std::string text = archive;
    for (int i = 0; i < 3; ++i) text = Mutate(std::move(text), &random);
    WriteText(dir / "dcp/.metadata", text);
    ReadsWhole(dir / "dcp");
  }
}

TEST(CheckpointMutationTest, Config) {
  const std::string good = ReadText(TestDataPath("checkpoints/fla_options/config.json"));
  ASSERT_TRUE(ParseCheckpointConfig(good).ok());
  std::mt19937 random(13);
  int refused = 0;
  for (int round = 0; round < kRounds; ++round) {
    if (!ParseCheckpointConfig(Mutate(good, &random)).ok()) ++refused;
  }
  EXPECT_GT(refused, kRounds / 10);
}

}  // namespace
}  // namespace osdn::tools
