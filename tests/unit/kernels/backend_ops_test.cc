// Every op of every backend against the float64 reference, over odd sizes and mixed batches.
#include <numeric>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/unit/kernels/host_weight.h"
#include "tests/unit/kernels/op_harness.h"
#include "tests/unit/kernels/ops_under_test.h"
#include "tests/unit/kernels/test_backend.h"

// Sanitizers end the process at an allocation that fails, which is what one test here wants to see
// reported instead. Unused in other builds.
extern "C" const char* __asan_default_options() { return "allocator_may_return_null=1"; }
extern "C" const char* __tsan_default_options() { return "allocator_may_return_null=1"; }

namespace osdn::kernels {
namespace {

class BackendOpsTest : public BackendTest {
 protected:
  void Check(const OpList& ops) {
    for (const auto& op : ops) {
      for (const TestBatch& batch : OddBatches(&random())) {
        CheckAgainstTruth(&backend(), *op, batch, &random());
      }
    }
  }
};

TEST_P(BackendOpsTest, LinearF32) { Check(LinearOps(DType::kF32, &random())); }
TEST_P(BackendOpsTest, LinearBf16) { Check(LinearOps(DType::kBF16, &random())); }
TEST_P(BackendOpsTest, LinearInt8) { Check(LinearOps(DType::kI8, &random())); }
TEST_P(BackendOpsTest, LinearInt4) { Check(LinearOps(DType::kI4, &random())); }
TEST_P(BackendOpsTest, RmsNorm) { Check(RmsNormOps(&random())); }
TEST_P(BackendOpsTest, OutputNorm) { Check(OutputNormOps(&random())); }
TEST_P(BackendOpsTest, SwiGlu) { Check(SwiGluOps()); }
TEST_P(BackendOpsTest, ShortConv) { Check(ShortConvOps(&random())); }
TEST_P(BackendOpsTest, QkPrepare) { Check(QkPrepareOps()); }
TEST_P(BackendOpsTest, Gates) { Check(GateOps(&random())); }
TEST_P(BackendOpsTest, Mixer) { Check(MixerOps()); }

TEST_P(BackendOpsTest, EmbedIsExact) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kI8, DType::kI4}) {
    for (const int64_t dim : {1, 16, 33, 130}) {
      SCOPED_TRACE(std::string(DTypeName(dtype)) + ", dim " + std::to_string(dim));
      constexpr int64_t kVocab = 71;
      const HostWeight host(dtype, kVocab, dim, &random());
      const std::vector<float>& table = host.values();
      const auto weight = backend().PrepareLinear(host.tensor());
      ASSERT_TRUE(weight.ok()) << weight.status();
      EXPECT_EQ((*weight)->out_features(), kVocab);
      EXPECT_EQ((*weight)->in_features(), dim);
      EXPECT_EQ((*weight)->dtype(), dtype);

      std::vector<int32_t> ids = {0, kVocab - 1, 5, 5};
      for (int i = 0; i < 61; ++i) {
        ids.push_back(static_cast<int32_t>(random().Integer(0, kVocab - 1)));
      }
      const auto rows = static_cast<int64_t>(ids.size());
      DeviceFloats y(&backend(), std::vector<float>(rows * dim));
      const absl::Status status = backend().Embed(**weight, {ids, y.data()});
      ASSERT_TRUE(status.ok()) << status;
      std::vector<float> expected;
      for (const int32_t id : ids) {
        expected.insert(expected.end(), table.begin() + id * dim, table.begin() + (id + 1) * dim);
      }
      EXPECT_TRUE(SameBits(y.Read(), expected));
    }
  }
}

TEST_P(BackendOpsTest, GatherRowsIsExact) {
  for (const int64_t dim : {1, 16, 33, 130}) {
    SCOPED_TRACE("dim " + std::to_string(dim));
    constexpr int64_t kRows = 67;
    const std::vector<float> x = random().Normals(kRows * dim);
    std::vector<int64_t> indices = {kRows - 1, 0, 3, 3};
    for (int i = 0; i < 15; ++i) indices.push_back(random().Integer(0, kRows - 1));
    DeviceFloats device_x(&backend(), x);
    DeviceFloats y(&backend(), std::vector<float>(indices.size() * dim));
    const absl::Status status = backend().GatherRows({indices, dim, device_x.data(), y.data()});
    ASSERT_TRUE(status.ok()) << status;
    std::vector<float> expected;
    for (const int64_t index : indices) {
      expected.insert(expected.end(), x.begin() + index * dim, x.begin() + (index + 1) * dim);
    }
    EXPECT_TRUE(SameBits(y.Read(), expected));
  }
}

TEST_P(BackendOpsTest, BuffersAreZeroedAlignedAndCopyable) {
  for (const size_t bytes : {size_t{1}, size_t{63}, size_t{4096}, size_t{100'001}}) {
    absl::StatusOr<Buffer> buffer = backend().Allocate(bytes);
    ASSERT_TRUE(buffer.ok()) << buffer.status();
    EXPECT_GE(buffer->bytes(), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % 64, 0U);
    std::vector<char> host(bytes, 'x');
    ASSERT_TRUE(backend().CopyToHost(host.data(), buffer->data(), bytes).ok());
    EXPECT_EQ(host, std::vector<char>(bytes, '\0'));
    std::iota(host.begin(), host.end(), '\1');
    ASSERT_TRUE(backend().CopyFromHost(buffer->data(), host.data(), bytes).ok());
    std::vector<char> back(bytes);
    ASSERT_TRUE(backend().CopyToHost(back.data(), buffer->data(), bytes).ok());
    EXPECT_EQ(back, host);
    absl::StatusOr<Buffer> other = backend().Allocate(bytes);
    ASSERT_TRUE(other.ok()) << other.status();
    ASSERT_TRUE(backend().CopyOnDevice(other->data(), buffer->data(), bytes).ok());
    std::fill(back.begin(), back.end(), 'x');
    ASSERT_TRUE(backend().CopyToHost(back.data(), other->data(), bytes).ok());
    EXPECT_EQ(back, host);
  }
}

TEST_P(BackendOpsTest, AllocateRefusesWhatNoMachineHas) {
  const absl::StatusOr<Buffer> buffer = backend().Allocate(size_t{1} << 60);
  ASSERT_EQ(buffer.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(std::string(buffer.status().message()).find("1152921504606846976"), std::string::npos);
}

TEST_P(BackendOpsTest, FillWritesExactlyCount) {
  DeviceFloats x(&backend(), std::vector<float>(100, 1.0F));
  ASSERT_TRUE(backend().Fill(x.data() + 3, 7.5F, 35).ok());
  std::vector<float> expected(100, 1.0F);
  std::fill_n(expected.begin() + 3, 35, 7.5F);
  EXPECT_EQ(x.Read(), expected);
}

INSTANTIATE_TEST_SUITE_P(All, BackendOpsTest, ::testing::ValuesIn(TestBackends()),
                         TestBackendLabel);

}  // namespace
}  // namespace osdn::kernels
