// The backends under test, in one place, and device memory with guards for their tests.
#ifndef OSDN_TESTS_UNIT_KERNELS_TEST_BACKEND_H_
#define OSDN_TESTS_UNIT_KERNELS_TEST_BACKEND_H_

#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "tests/unit/kernels/test_random.h"

namespace osdn::kernels {

struct TestBackend {
  std::string label;  // [A-Za-z0-9_]+, part of the test's name
  BackendOptions options;
};

std::ostream& operator<<(std::ostream& out, const TestBackend& backend);

// reference and cpu with one and with several threads; or those that OSDN_TEST_BACKENDS names
// (comma-separated backend names, e.g. "cuda" on a machine with a GPU).
std::vector<TestBackend> TestBackends();

std::string TestBackendLabel(const ::testing::TestParamInfo<TestBackend>& info);

// A test run once a backend, with fresh random numbers.
class BackendTest : public ::testing::TestWithParam<TestBackend> {
 protected:
  void SetUp() override;
  void TearDown() override;

  Backend& backend() { return *backend_; }
  Random& random() { return random_; }

 private:
  std::unique_ptr<Backend> backend_;
  Random random_;
};

// Floats in a backend's memory between two guards. Fails the test when an allocation or a copy
// fails, or when a guard was overwritten.
class DeviceFloats {
 public:
  DeviceFloats(Backend* backend, const std::vector<float>& values);

  float* data() { return buffer_.floats() + kGuard; }
  std::vector<float> Read() const;

 private:
  static constexpr int64_t kGuard = 16;  // one buffer alignment
  static constexpr float kGuardValue = 54321.0F;

  Backend* backend_;
  Buffer buffer_;
};

// float -> bf16, rounding to nearest even, and back.
uint16_t ToBf16(float value);
float FromBf16(uint16_t bits);

// Whether two float arrays are equal bit for bit; names the first difference.
::testing::AssertionResult SameBits(const std::vector<float>& actual,
                                    const std::vector<float>& expected);

// Whether |actual - expected| <= tolerance everywhere; names the worst index. NaN is never close.
::testing::AssertionResult Close(const std::vector<float>& actual,
                                 const std::vector<double>& expected,
                                 const std::vector<double>& tolerance);

// Close with one tolerance: `relative` x max |expected|.
::testing::AssertionResult CloseToMax(const std::vector<float>& actual,
                                      const std::vector<double>& expected, double relative);

}  // namespace osdn::kernels

#endif  // OSDN_TESTS_UNIT_KERNELS_TEST_BACKEND_H_
