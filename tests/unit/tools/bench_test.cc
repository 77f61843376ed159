#include "tools/bench.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "engine/weights.h"
#include "tests/unit/tools/checkpoint_fixture.h"
#include "tools/bench_report.h"
#include "tools/convert.h"
#include "tools/process_memory.h"

namespace osdn::tools {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::Contains;
using testing::DoubleEq;
using testing::HasSubstr;

TEST(BenchStatisticsTest, MedianAndPairedRatio) {
  EXPECT_EQ(Median({}), 0);
  EXPECT_EQ(Median({3}), 3);
  EXPECT_EQ(Median({9, 1, 2}), 2);
  EXPECT_EQ(Median({9, 1, 2, 4}), 3);
  // Twice as slow in every pair, although the medians drift by more than that.
  EXPECT_THAT(MedianRatio({2, 20, 200}, {1, 10, 100}), DoubleEq(2));
}

TEST(BenchStatisticsTest, CaseFigures) {
  CaseResult result;
  result.tokens = 4;
  result.work = 100;
  result.seconds = {2, 4, 2};
  EXPECT_THAT(result.tokens_per_s(), DoubleEq(2));
  EXPECT_EQ(result.fraction(), std::nullopt);
  EXPECT_EQ(result.against_ratio(), std::nullopt);
  result.ceilings = {100, 100, 50};  // fractions 0.5, 0.25, 1
  EXPECT_THAT(*result.fraction(), DoubleEq(0.5));
  result.against_seconds = {3, 6, 3};
  EXPECT_THAT(*result.against_ratio(), DoubleEq(1.5)) << "above 1: this model is the faster";
}

TEST(ProcessMemoryTest, ParsesStatus) {
  const ProcessMemory memory =
      ParseProcessStatus("Name:\tosdn-tools\nVmRSS:\t  1234 kB\nRssAnon:\t 1000 kB\nThreads:\t3\n");
  EXPECT_EQ(memory.resident_bytes, 1234 * 1024);
  EXPECT_EQ(memory.anonymous_bytes, 1000 * 1024);
  EXPECT_EQ(ParseProcessStatus("").resident_bytes, 0);
  EXPECT_GT(ReadProcessMemory().resident_bytes, 0);
}

class BenchTest : public testing::Test {
 protected:
  BenchTest() {
    options_.model_dir = Convert("tiny_apf_gate", kernels::DType::kF32);
    options_.backend.name = "cpu";
    options_.backend.threads = 2;
    options_.batches = {1, 3};
    options_.positions = {1000, 1000000};
    options_.prompts = {70};
    options_.prefill_step = 64;
    options_.repeats = 2;
    options_.seconds = 0.01;
    options_.read_buffer_bytes = 1 << 20;
    options_.gemm_sizes = {128};
    options_.engine = false;
  }

  std::string Convert(const std::string& golden, kernels::DType dtype) {
    ConvertOptions options;
    options.source = GoldenPath(golden);
    options.output_dir = dir_ / (golden + std::string(kernels::DTypeName(dtype)));
    options.dtype = dtype;
    const absl::StatusOr<ConvertReport> report = ConvertCheckpoint(options, nullptr);
    EXPECT_TRUE(report.ok()) << report.status();
    return options.output_dir;
  }

  json RunToJson() {
    const absl::StatusOr<BenchResult> result = RunBench(options_, nullptr);
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? json::parse(BenchToJson(*result)) : json();
  }

  TemporaryDirectory dir_;
  BenchOptions options_;
};

TEST_F(BenchTest, JsonHasTheFieldsThatOthersRead) {
  const json root = RunToJson();
  EXPECT_GT(root["read_gbps"].get<double>(), 0);
  EXPECT_GT(root["gemm_gflops"]["f32"].get<double>(), 0);
  EXPECT_TRUE(root["gemm_gflops"].contains("bf16") && root["gemm_gflops"].contains("int8"));
  EXPECT_GT(root["first_token_seconds"], root["load_seconds"]);

  // Layers: S 16x32, d 16, of 4 heads, three conv tails of 3; weights: all, the embeddings are
  // tied.
  const auto state = root["state_bytes_per_sequence"].get<double>();
  EXPECT_EQ(state, 2 * 4 * (4 * 16 * 32 + 64 + 3 * (64 + 64 + 128)));
  const absl::StatusOr<ModelConfig> config = LoadModelConfig(options_.model_dir);
  const absl::StatusOr<Weights> weights = Weights::Load(options_.model_dir, *config, {});
  ASSERT_EQ(root["decode"].size(), 4U);
  for (const json& entry : root["decode"]) {
    EXPECT_GT(entry["tokens_per_s"].get<double>(), 0);
    EXPECT_GT(entry["bandwidth_fraction"].get<double>(), 0);
    const auto batch = entry["batch"].get<double>();
    EXPECT_DOUBLE_EQ(entry["bytes_per_token"].get<double>(),
                     static_cast<double>(weights->bytes()) / batch + state);
    EXPECT_FALSE(entry.contains("against_ratio"));
  }
  EXPECT_EQ(root["decode"][1]["position"], 1000000);
  EXPECT_EQ(root["decode"][0]["latency_vs_first_position"], 1.0);
  ASSERT_EQ(root["prefill"].size(), 1U);
  EXPECT_EQ(root["prefill"][0]["prompt"], 70);
  EXPECT_GT(root["prefill"][0]["gemm_fraction"].get<double>(), 0);
  EXPECT_TRUE(root["engine"].empty()) << "not asked for";
}

TEST_F(BenchTest, TheEnginesOverheadIsItsPhases) {
  options_.prompts = {};
  options_.engine = true;
  const json root = RunToJson();
  ASSERT_EQ(root["engine"].size(), 2U * 3U) << "batches by kinds of sampling";
  for (const json& entry : root["engine"]) {
    EXPECT_EQ(entry["seconds_per_step"].size(), 2U);
    EXPECT_GT(entry["tokens_per_s"].get<double>(), 0);
    EXPECT_GT(entry["overhead_share"].get<double>(), 0);
    EXPECT_LT(entry["overhead_share"].get<double>(), 1);
    EXPECT_GT(entry["results_share"].get<double>(), 0);
    EXPECT_LE(entry["results_share"], entry["overhead_share"]);
  }
  EXPECT_EQ(root["engine"][5]["sampling"], "top_p 0.9");
}

TEST_F(BenchTest, OpsAddUpToThePass) {
  const json root = RunToJson();
  for (const char* kind : {"decode", "prefill"}) {
    for (const json& entry : root[kind]) {
      double sum = entry["outside_ops_share"];
      EXPECT_GE(sum, 0);
      std::vector<std::string> names;
      for (const json& op : entry["ops"]) {
        sum += op["share"].get<double>();
        names.push_back(op["op"]);
      }
      EXPECT_NEAR(sum, 1, 1e-9);
      // hidden 64: q, k, v, b, a, gate; lm_head is the tied table.
      EXPECT_THAT(names, AllOf(Contains("mixer"), Contains("linear 392x64"),
                               Contains("linear 97x64"), Contains("short conv")));
    }
  }
}

TEST_F(BenchTest, AgainstAnotherModel) {
  options_.against_dir = Convert("tiny", kernels::DType::kBF16);
  const absl::StatusOr<BenchResult> result = RunBench(options_, nullptr);
  ASSERT_TRUE(result.ok()) << result.status();
  const json root = json::parse(BenchToJson(*result));
  for (const json& entry : root["decode"]) EXPECT_GT(entry["against_ratio"].get<double>(), 0);
  EXPECT_GT(root["prefill"][0]["against_tokens_per_s"].get<double>(), 0);
  EXPECT_THAT(BenchToText(*result), HasSubstr("x the other"));
}

TEST_F(BenchTest, OtherBackendsSayThatThereAreNoCeilings) {
  options_.backend.name = "reference";
  options_.positions = {0};
  const absl::StatusOr<BenchResult> result = RunBench(options_, nullptr);
  ASSERT_TRUE(result.ok()) << result.status();
  const json root = json::parse(BenchToJson(*result));
  EXPECT_EQ(root["read_gbps"], nullptr);
  EXPECT_EQ(root["decode"][0]["bandwidth_fraction"], nullptr);
  EXPECT_EQ(root["prefill"][0]["gemm_fraction"], nullptr);
  EXPECT_THAT(root["no_ceilings"], HasSubstr("reference"));
  EXPECT_THAT(BenchToText(*result), HasSubstr("ceilings         none"));
}

TEST_F(BenchTest, BadOptionsAllAtOnce) {
  options_.batches = {1, -2};
  options_.positions = {-1};
  options_.prompts = {0};
  options_.repeats = 0;
  options_.seconds = 0;
  EXPECT_THAT(std::string(RunBench(options_, nullptr).status().message()),
              AllOf(HasSubstr("batch: -2"), HasSubstr("position: -1"), HasSubstr("prompt: 0"),
                    HasSubstr("repeat: 0"), HasSubstr("seconds: 0")));
  options_.batches = {};
  EXPECT_THAT(std::string(RunBench(options_, nullptr).status().message()),
              HasSubstr("batch: none given"));
}

TEST_F(BenchTest, ErrorsAndInterruption) {
  const std::atomic<bool> stop = true;
  options_.stop = &stop;
  EXPECT_EQ(RunBench(options_, nullptr).status().code(), absl::StatusCode::kCancelled);
  options_.stop = nullptr;
  options_.against_dir = dir_ / "absent";
  EXPECT_THAT(std::string(RunBench(options_, nullptr).status().message()), HasSubstr("absent"));
}

}  // namespace
}  // namespace osdn::tools
