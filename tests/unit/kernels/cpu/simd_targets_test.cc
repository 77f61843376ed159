// Every op on every SIMD target that is compiled and that this CPU has, not only the one that
// dispatch would choose.
#include "kernels/cpu/simd_targets.h"

#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
// After simd_targets.h
#include "hwy/highway.h"
#include "kernels/cpu/cpu_backend.h"
#include "tests/unit/kernels/op_harness.h"
#include "tests/unit/kernels/ops_under_test.h"

namespace osdn::kernels {
namespace {

class SimdTargetsTest : public ::testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override {
    hwy::SetSupportedTargetsForTest(GetParam());
    hwy::GetChosenTarget().Update(GetParam());
    absl::StatusOr<std::unique_ptr<Backend>> backend = CreateCpuBackend(2);
    ASSERT_TRUE(backend.ok()) << backend.status();
    backend_ = *std::move(backend);
  }
  void TearDown() override {
    hwy::SetSupportedTargetsForTest(0);
    hwy::GetChosenTarget().DeInit();
  }

  void Check(const OpList& ops) {
    for (const auto& op : ops) {
      const TestBatch batch = MakeBatch(5, {{64, 128}, {1, 64}, {17, 37}, {130, 61}}, &random_);
      CheckAgainstTruth(backend_.get(), *op, batch, &random_);
      CheckAlone(backend_.get(), *op, batch, &random_);
    }
  }

  std::unique_ptr<Backend> backend_;
  Random random_;
};

TEST_P(SimdTargetsTest, IsTheOneDescribed) {
  const std::string expected = std::string("cpu: ") + hwy::TargetName(GetParam()) + " via Highway";
  EXPECT_EQ(backend_->Describe().substr(0, expected.size()), expected);
}

TEST_P(SimdTargetsTest, LinearF32) { Check(LinearOps(DType::kF32, &random_)); }
TEST_P(SimdTargetsTest, LinearBf16) { Check(LinearOps(DType::kBF16, &random_)); }
TEST_P(SimdTargetsTest, RmsNorm) { Check(RmsNormOps(&random_)); }
TEST_P(SimdTargetsTest, OutputNorm) { Check(OutputNormOps(&random_)); }
TEST_P(SimdTargetsTest, SwiGlu) { Check(SwiGluOps()); }
TEST_P(SimdTargetsTest, ShortConv) { Check(ShortConvOps(&random_)); }
TEST_P(SimdTargetsTest, QkPrepare) { Check(QkPrepareOps()); }
TEST_P(SimdTargetsTest, Gates) { Check(GateOps(&random_)); }
TEST_P(SimdTargetsTest, Mixer) { Check(MixerOps()); }

INSTANTIATE_TEST_SUITE_P(All, SimdTargetsTest,
                         ::testing::ValuesIn(hwy::SupportedAndGeneratedTargets()),
                         [](const auto& param_info) { return hwy::TargetName(param_info.param); });

}  // namespace
}  // namespace osdn::kernels
