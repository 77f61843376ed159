// Reproducible random inputs for kernel tests.
#ifndef OSDN_TESTS_UNIT_KERNELS_TEST_RANDOM_H_
#define OSDN_TESTS_UNIT_KERNELS_TEST_RANDOM_H_

#include <cstdint>
#include <cstdlib>
#include <random>
#include <vector>

namespace osdn::kernels {

// The seed of every kernel test: OSDN_TEST_SEED, or a fixed one. Printed when a test fails.
inline uint64_t TestSeed() {
  const char* text = std::getenv("OSDN_TEST_SEED");
  return text == nullptr ? 20261123 : std::strtoull(text, nullptr, 10);
}

class Random {
 public:
  explicit Random(uint64_t seed = TestSeed()) : engine_(seed) {}

  double Uniform(double low, double high) {
    return std::uniform_real_distribution<double>(low, high)(engine_);
  }

  int64_t Integer(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(engine_);
  }

  std::vector<float> Uniforms(int64_t count, double low, double high) {
    std::vector<float> values(count);
    for (float& value : values) value = static_cast<float>(Uniform(low, high));
    return values;
  }

  std::vector<float> Normals(int64_t count, double deviation = 1) {
    std::normal_distribution<double> normal(0, deviation);
    std::vector<float> values(count);
    for (float& value : values) value = static_cast<float>(normal(engine_));
    return values;
  }

  std::mt19937_64& engine() { return engine_; }

 private:
  std::mt19937_64 engine_;
};

}  // namespace osdn::kernels

#endif  // OSDN_TESTS_UNIT_KERNELS_TEST_RANDOM_H_
