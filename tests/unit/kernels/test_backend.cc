#include "tests/unit/kernels/test_backend.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <iostream>
#include <sstream>
#include <utility>

namespace osdn::kernels {

std::ostream& operator<<(std::ostream& out, const TestBackend& backend) {
  return out << backend.label;
}

std::vector<TestBackend> TestBackends() {
  const char* chosen = std::getenv("OSDN_TEST_BACKENDS");
  if (chosen == nullptr) {
    return {{"reference", {.name = "reference", .threads = 0, .cpu_isa = "auto", .module_dir = ""}},
            {"cpu_1_thread", {.name = "cpu", .threads = 1, .cpu_isa = "auto", .module_dir = ""}},
            {"cpu_3_threads", {.name = "cpu", .threads = 3, .cpu_isa = "auto", .module_dir = ""}}};
  }
  std::vector<TestBackend> backends;
  std::istringstream names(chosen);
  for (std::string name; std::getline(names, name, ',');) {
    backends.push_back({name, {.name = name, .threads = 0, .cpu_isa = "auto", .module_dir = ""}});
  }
  return backends;
}

std::string TestBackendLabel(const ::testing::TestParamInfo<TestBackend>& info) {
  return info.param.label;
}

void BackendTest::SetUp() {
  absl::StatusOr<BackendChoice> choice = CreateBackend(GetParam().options);
  ASSERT_TRUE(choice.ok()) << choice.status();
  backend_ = std::move(choice->backend);
}

void BackendTest::TearDown() {
  if (HasFailure()) std::cout << "Reproduce with OSDN_TEST_SEED=" << TestSeed() << "\n";
}

DeviceFloats::DeviceFloats(Backend* backend, const std::vector<float>& values) : backend_(backend) {
  std::vector<float> guarded(values.size() + 2 * kGuard, kGuardValue);
  std::copy(values.begin(), values.end(), guarded.begin() + kGuard);
  absl::StatusOr<Buffer> buffer = backend->Allocate(guarded.size() * sizeof(float));
  if (!buffer.ok()) {
    ADD_FAILURE() << buffer.status();
    return;
  }
  buffer_ = *std::move(buffer);
  const absl::Status copied =
      backend->CopyFromHost(buffer_.data(), guarded.data(), buffer_.bytes());
  EXPECT_TRUE(copied.ok()) << copied;
}

std::vector<float> DeviceFloats::Read() const {
  std::vector<float> guarded(buffer_.bytes() / sizeof(float));
  const absl::Status copied = backend_->CopyToHost(guarded.data(), buffer_.data(), buffer_.bytes());
  EXPECT_TRUE(copied.ok()) << copied;
  const auto begin = guarded.begin() + kGuard;
  const auto end = guarded.end() - kGuard;
  const auto is_guard = [](float value) { return value == kGuardValue; };
  EXPECT_TRUE(std::all_of(guarded.begin(), begin, is_guard)) << "written before the array";
  EXPECT_TRUE(std::all_of(end, guarded.end(), is_guard)) << "written behind the array";
  return {begin, end};
}

uint16_t ToBf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

float FromBf16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

::testing::AssertionResult SameBits(const std::vector<float>& actual,
                                    const std::vector<float>& expected) {
  if (actual.size() != expected.size()) {
    return ::testing::AssertionFailure()
           << "sizes differ: " << actual.size() << ", want " << expected.size();
  }
  int64_t differences = 0;
  size_t first = 0;
  for (size_t i = actual.size(); i-- > 0;) {
    if (std::bit_cast<uint32_t>(actual[i]) == std::bit_cast<uint32_t>(expected[i])) continue;
    ++differences;
    first = i;
  }
  if (differences == 0) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure()
         << differences << " of " << actual.size() << " differ in bits, first at " << first << ": "
         << std::hexfloat << actual[first] << ", want " << expected[first];
}

::testing::AssertionResult Close(const std::vector<float>& actual,
                                 const std::vector<double>& expected,
                                 const std::vector<double>& tolerance) {
  if (actual.size() != expected.size() || tolerance.size() != expected.size()) {
    return ::testing::AssertionFailure() << "sizes differ: " << actual.size() << ", want "
                                         << expected.size() << ", tolerances " << tolerance.size();
  }
  size_t worst = 0;
  double worst_ratio = 0;
  int64_t outside = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double error = std::abs(actual[i] - expected[i]);
    if (error <= tolerance[i]) continue;
    ++outside;
    const double ratio = std::isnan(error) ? INFINITY : error / tolerance[i];
    if (ratio > worst_ratio) {
      worst = i;
      worst_ratio = ratio;
    }
  }
  if (outside == 0) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure()
         << outside << " of " << actual.size() << " outside, worst at " << worst << ": "
         << actual[worst] << ", want " << expected[worst] << " +- " << tolerance[worst] << " ("
         << worst_ratio << " x the tolerance)";
}

::testing::AssertionResult CloseToMax(const std::vector<float>& actual,
                                      const std::vector<double>& expected, double relative) {
  double max = 0;
  for (const double value : expected) max = std::max(max, std::abs(value));
  return Close(actual, expected, std::vector<double>(expected.size(), relative * max));
}

}  // namespace osdn::kernels
