// A row's bits depend on its own span alone: not on company, not on cuts at chunk borders.
#include <memory>
#include <utility>

#include "gtest/gtest.h"
#include "tests/unit/kernels/op_harness.h"
#include "tests/unit/kernels/ops_under_test.h"
#include "tests/unit/kernels/test_backend.h"

namespace osdn::kernels {
namespace {

class BatchInvarianceTest : public BackendTest {
 protected:
  // Products of more than 16 rows are cuBLASLt's on cuda: it picks its algorithm by shape, so that
  // bits may depend on the number of rows (docs/architecture.md).
  void CheckProducts(const OpList& ops) {
    if (GetParam().options.name != "cuda") return Check(ops);
    for (const auto& op : ops) {
      CheckAlone(&backend(), *op, MakeBatch(16, {}, &random()), &random());
      CheckAlone(&backend(), *op, MakeBatch(3, {{5, 128}, {1, 64}, {7, 60}}, &random()), &random());
      CheckCutAtChunks(&backend(), *op, {15, 58}, &random());
    }
  }

  void Check(const OpList& ops) {
    for (const auto& op : ops) {
      CheckAlone(&backend(), *op, MakeBatch(17, {}, &random()), &random());
      CheckAlone(&backend(), *op,
                 MakeBatch(5, {{64, 128}, {1, 64}, {17, 37}, {130, 61}}, &random()), &random());
      for (const PrefillSpan& prefill :
           {PrefillSpan{129, 0}, PrefillSpan{150, 64}, PrefillSpan{100, 37}, PrefillSpan{66, 63}}) {
        CheckCutAtChunks(&backend(), *op, prefill, &random());
      }
    }
  }
};

TEST_P(BatchInvarianceTest, LinearF32) { CheckProducts(LinearOps(DType::kF32, &random())); }
TEST_P(BatchInvarianceTest, LinearBf16) { CheckProducts(LinearOps(DType::kBF16, &random())); }
TEST_P(BatchInvarianceTest, LinearInt8) { CheckProducts(LinearOps(DType::kI8, &random())); }
TEST_P(BatchInvarianceTest, LinearInt4) { CheckProducts(LinearOps(DType::kI4, &random())); }
TEST_P(BatchInvarianceTest, RmsNorm) { Check(RmsNormOps(&random())); }
TEST_P(BatchInvarianceTest, OutputNorm) { Check(OutputNormOps(&random())); }
TEST_P(BatchInvarianceTest, SwiGlu) { Check(SwiGluOps()); }
TEST_P(BatchInvarianceTest, ShortConv) { Check(ShortConvOps(&random())); }
TEST_P(BatchInvarianceTest, QkPrepare) { Check(QkPrepareOps()); }
TEST_P(BatchInvarianceTest, Gates) { Check(GateOps(&random())); }
TEST_P(BatchInvarianceTest, Mixer) { Check(MixerOps()); }

INSTANTIATE_TEST_SUITE_P(All, BatchInvarianceTest, ::testing::ValuesIn(TestBackends()),
                         TestBackendLabel);

// The cpu backend's bits do not depend on the number of its threads either.
TEST(ThreadInvarianceTest, CpuGivesTheSameBitsForEveryThreadCount) {
  Random random;
  absl::StatusOr<BackendChoice> one =
      CreateBackend({.name = "cpu", .threads = 1, .cpu_isa = "auto", .module_dir = ""});
  absl::StatusOr<BackendChoice> three =
      CreateBackend({.name = "cpu", .threads = 3, .cpu_isa = "auto", .module_dir = ""});
  ASSERT_TRUE(one.ok()) << one.status();
  ASSERT_TRUE(three.ok()) << three.status();
  const TestBatch batch = MakeBatch(5, {{64, 128}, {2, 63}, {130, 61}}, &random);
  const OpList lists[] = {LinearOps(DType::kF32, &random),
                          LinearOps(DType::kBF16, &random),
                          LinearOps(DType::kI8, &random),
                          LinearOps(DType::kI4, &random),
                          RmsNormOps(&random),
                          ShortConvOps(&random),
                          MixerOps()};
  for (const OpList& ops : lists) {
    for (const auto& op : ops) {
      CheckSameBits(one->backend.get(), three->backend.get(), *op, batch, &random);
    }
  }
}

}  // namespace
}  // namespace osdn::kernels
