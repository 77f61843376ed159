// Weights for tests in every type that a model file may hold.
#ifndef OSDN_TESTS_UNIT_KERNELS_HOST_WEIGHT_H_
#define OSDN_TESTS_UNIT_KERNELS_HOST_WEIGHT_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/include/tensor.h"
#include "tests/unit/kernels/test_backend.h"
#include "tests/unit/kernels/test_random.h"

namespace osdn::kernels {

// A random weight of any type, as a file would hold it, and the values it stands for.
class HostWeight {
 public:
  HostWeight(DType dtype, int64_t out_features, int64_t in_features, Random* random)
      : dtype_(dtype), out_(out_features), in_(in_features), values_(random->Normals(out_ * in_)) {
    if (dtype == DType::kBF16) RoundToHalves();
    if (dtype == DType::kI8) Quantize8();
    if (dtype == DType::kI4) Quantize4();
  }

  const std::vector<float>& values() const { return values_; }
  HostTensor tensor() const {
    HostTensor tensor{values_.data(), dtype_, {out_, in_}};
    if (dtype_ == DType::kBF16) tensor.data = halves_.data();
    if (IsQuantized(dtype_)) tensor.data = bytes_.data();
    if (dtype_ == DType::kI8) tensor.scales = scales_.data();
    if (dtype_ == DType::kI4) tensor.scales = halves_.data();
    return tensor;
  }

 private:
  void RoundToHalves() {
    for (float& value : values_) {
      halves_.push_back(ToBf16(value));
      value = FromBf16(halves_.back());
    }
  }

  float AbsMax(int64_t row, int64_t begin, int64_t end) const {
    float most = 1e-3F;
    for (int64_t i = begin; i < end; ++i) most = std::max(most, std::abs(values_[row * in_ + i]));
    return most;
  }

  void Quantize8() {
    for (int64_t row = 0; row < out_; ++row) {
      scales_.push_back(AbsMax(row, 0, in_) / 127);
      for (int64_t i = 0; i < in_; ++i) {
        float& value = values_[row * in_ + i];
        const auto q = static_cast<int8_t>(std::lround(value / scales_.back()));
        bytes_.push_back(static_cast<uint8_t>(q));
        value = scales_.back() * static_cast<float>(q);
      }
    }
  }

  void Quantize4() {
    const int64_t row_bytes = RowBytes(DType::kI4, in_);
    bytes_.resize(out_ * row_bytes);
    for (int64_t row = 0; row < out_; ++row) {
      for (int64_t begin = 0; begin < in_; begin += kInt4Group) {
        const int64_t end = std::min(begin + kInt4Group, in_);
        halves_.push_back(ToBf16(AbsMax(row, begin, end) / 7));
        const float scale = FromBf16(halves_.back());
        for (int64_t i = begin; i < end; ++i) {
          float& value = values_[row * in_ + i];
          const long q = std::clamp(std::lround(value / scale), -7L, 7L);
          bytes_[row * row_bytes + i / 2] |= static_cast<uint8_t>((q + 8) << (i % 2 * 4));
          value = scale * static_cast<float>(q);
        }
      }
    }
  }

  DType dtype_;
  int64_t out_;
  int64_t in_;
  std::vector<float> values_;
  std::vector<uint16_t> halves_;  // bf16 values, or the scales of int4
  std::vector<uint8_t> bytes_;    // quantized values
  std::vector<float> scales_;     // of int8
};

}  // namespace osdn::kernels

#endif  // OSDN_TESTS_UNIT_KERNELS_HOST_WEIGHT_H_
