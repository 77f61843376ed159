// Every op on every instruction set that this CPU has, not only the best.
#include "kernels/cpu/isa.h"

#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/cpu_backend.h"
#include "tests/unit/kernels/op_harness.h"
#include "tests/unit/kernels/ops_under_test.h"

namespace osdn::kernels {
namespace {

class InstructionSetTest : public ::testing::TestWithParam<cpu::Isa> {
 protected:
  void SetUp() override {
    absl::StatusOr<std::unique_ptr<Backend>> backend =
        CreateCpuBackend(2, cpu::IsaName(GetParam()));
    ASSERT_TRUE(backend.ok()) << backend.status();
    backend_ = *std::move(backend);
  }
  void TearDown() override { cpu::SelectSimdTarget(cpu::SupportedIsas().back()); }

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

TEST_P(InstructionSetTest, IsTheOneDescribed) {
  const std::string expected = "cpu: " + std::string(cpu::IsaName(GetParam())) + " (";
  EXPECT_EQ(backend_->Describe().substr(0, expected.size()), expected);
}

TEST_P(InstructionSetTest, LinearF32) { Check(LinearOps(DType::kF32, &random_)); }
TEST_P(InstructionSetTest, LinearBf16) { Check(LinearOps(DType::kBF16, &random_)); }
TEST_P(InstructionSetTest, LinearInt8) { Check(LinearOps(DType::kI8, &random_)); }
TEST_P(InstructionSetTest, LinearInt4) { Check(LinearOps(DType::kI4, &random_)); }
TEST_P(InstructionSetTest, RmsNorm) { Check(RmsNormOps(&random_)); }
TEST_P(InstructionSetTest, OutputNorm) { Check(OutputNormOps(&random_)); }
TEST_P(InstructionSetTest, SwiGlu) { Check(SwiGluOps()); }
TEST_P(InstructionSetTest, ShortConv) { Check(ShortConvOps(&random_)); }
TEST_P(InstructionSetTest, QkPrepare) { Check(QkPrepareOps()); }
TEST_P(InstructionSetTest, Gates) { Check(GateOps(&random_)); }
TEST_P(InstructionSetTest, Mixer) { Check(MixerOps()); }

INSTANTIATE_TEST_SUITE_P(All, InstructionSetTest, ::testing::ValuesIn(cpu::SupportedIsas()),
                         [](const auto& param_info) {
                           return std::string(cpu::IsaName(param_info.param));
                         });

TEST(IsaTest, NamesWhatThisCpuHas) {
  const absl::Status status = CreateCpuBackend(1, "mmx").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  for (const cpu::Isa isa : cpu::SupportedIsas()) {
    EXPECT_NE(status.message().find(std::string(cpu::IsaName(isa))), std::string::npos) << status;
  }
  EXPECT_EQ(*cpu::ParseIsa("auto"), cpu::SupportedIsas().back());
}

}  // namespace
}  // namespace osdn::kernels
