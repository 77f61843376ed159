#include "tools/timed_backend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "engine/safetensors.h"
#include "tests/unit/tools/checkpoint_fixture.h"
#include "tools/convert.h"
#include "tools/model_runner.h"

namespace osdn::tools {
namespace {

using testing::UnorderedElementsAre;

class TimedBackendTest : public testing::Test {
 protected:
  TimedBackendTest() {
    ConvertOptions convert;
    convert.source = GoldenPath("tiny");
    convert.output_dir = dir_ / "model";
    EXPECT_TRUE(ConvertCheckpoint(convert, nullptr).ok());
    ModelRunner::Options options;
    options.model_dir = convert.output_dir;
    options.backend.name = "reference";
    options.model = {.max_rows = 8, .max_logit_rows = 2};
    options.slots = 2;
    auto runner = ModelRunner::Load(options);
    EXPECT_TRUE(runner.ok()) << runner.status();
    runner_ = *std::move(runner);
  }

  std::vector<float> Decode(int64_t position) {
    const std::vector<int32_t> tokens = {5, 6};
    std::vector<float> logits(size_t{2} * 97);
    const absl::Status status = runner_->Decode(tokens, position, absl::MakeSpan(logits));
    EXPECT_TRUE(status.ok()) << status;
    return logits;
  }

  TemporaryDirectory dir_;
  std::unique_ptr<ModelRunner> runner_;
};

TEST_F(TimedBackendTest, CountsEveryOpOfAPass) {
  Decode(0);
  TimedBackend& backend = runner_->backend();
  backend.StartRecording();
  Decode(1);
  Decode(2);
  const std::vector<OpTime> times = backend.StopRecording();
  std::vector<std::string> counts;
  for (const OpTime& time : times) {
    EXPECT_GT(time.seconds, 0) << time.name;
    counts.push_back(time.name + " " + std::to_string(time.calls));
  }
  // Two layers, two passes; hidden 64, MLP 96, vocabulary 97, 4 heads of 16.
  EXPECT_THAT(counts, UnorderedElementsAre("embedding 2", "rms norm 10", "linear 196x64 4",
                                           "linear 64x64 4", "linear 192x64 4", "linear 64x96 4",
                                           "short conv 12", "qk prepare 4", "gates 4", "mixer 4",
                                           "output norm 4", "swiglu 4", "gather rows 2",
                                           "linear 97x64 2", "copy 2"));
  for (size_t i = 1; i < times.size(); ++i) EXPECT_GE(times[i - 1].seconds, times[i].seconds);
  Decode(3);
  backend.StartRecording();
  EXPECT_TRUE(backend.StopRecording().empty());
}

TEST_F(TimedBackendTest, ResultsAreTheSameAndResetStartsAfresh) {
  const std::vector<float> plain = Decode(0);
  EXPECT_NE(Decode(1), plain) << "the state has moved on";
  for (const int32_t slot : {0, 1}) ASSERT_TRUE(runner_->Reset(slot).ok());
  runner_->backend().StartRecording();
  EXPECT_EQ(Decode(0), plain);
}

}  // namespace
}  // namespace osdn::tools
