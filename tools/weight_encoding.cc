#include "tools/weight_encoding.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "tools/float_convert.h"
#include "tools/parallel.h"

namespace osdn::tools {
namespace {

using kernels::DType;
using kernels::kInt4Group;

constexpr float kInt8Limit = 127;
constexpr float kInt4Limit = 7;
constexpr int kInt4Zero = 8;
constexpr float kInt8Clips[] = {1.0F, 0.98F, 0.95F, 0.92F, 0.88F, 0.84F, 0.8F};
constexpr float kInt4Clips[] = {1.0F, 0.95F, 0.9F, 0.85F, 0.8F, 0.75F, 0.7F, 0.65F, 0.6F};
// Below this a scale's reciprocal overflows: such rows count as zero.
constexpr float kMinScale = std::numeric_limits<float>::min();

// Nearest whole number, ties to even, within +-limit (which is far below 2^22): adding and taking
// away 1.5 x 2^23 rounds, in the widest vectors that the compiler has.
float RoundClamped(float x, float limit) {
  constexpr float kMagic = 0x1.8p23F;
  return (std::clamp(x, -limit, limit) + kMagic) - kMagic;
}

float Reciprocal(float scale) { return scale >= kMinScale ? 1 / scale : 0; }

constexpr int kLanes = 8;  // independent sums, so that the loop vectorises

float SquaredError(const float* w, int64_t count, float scale, float limit) {
  const float inverse = Reciprocal(scale);
  float sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const float value = w[i + lane];
      const float error = value - RoundClamped(value * inverse, limit) * scale;
      sums[lane] += error * error;
    }
  }
  float sum = 0;
  for (; i < count; ++i) {
    const float error = w[i] - RoundClamped(w[i] * inverse, limit) * scale;
    sum += error * error;
  }
  for (const float lane : sums) sum += lane;
  return sum;
}

float AbsMax(const float* w, int64_t count) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      lanes[lane] = std::max(lanes[lane], std::fabs(w[i + lane]));
    }
  }
  float max = *std::max_element(lanes, lanes + kLanes);
  for (; i < count; ++i) max = std::max(max, std::fabs(w[i]));
  return max;
}

float ToBf16AndBack(float value) { return FloatFromBf16(Bf16FromFloat(value)); }

float Identity(float value) { return value; }

// The scale of the clip ratio with the least squared error; ties go to less clipping. `round` is
// applied to each scale before it is tried.
template <size_t kCount, class Round>
float BestScale(const float* w, int64_t count, float limit, const float (&clips)[kCount],
                const Round& round) {
  const float largest = AbsMax(w, count) / limit;
  float best = round(largest);
  if (best < kMinScale) return 0;
  float least = std::numeric_limits<float>::infinity();
  for (const float clip : clips) {
    const float scale = round(largest * clip);
    const float error = SquaredError(w, count, scale, limit);
    if (error < least) {
      least = error;
      best = scale;
    }
  }
  return best;
}

// The scale that fits the codes chosen with `scale` best, where it is better.
float Refit(const float* w, int64_t count, float limit, float scale) {
  const float inverse = Reciprocal(scale);
  double products = 0;
  double squares = 0;
  for (int64_t i = 0; i < count; ++i) {
    const float code = RoundClamped(w[i] * inverse, limit);
    products += static_cast<double>(w[i]) * code;
    squares += static_cast<double>(code) * code;
  }
  if (squares == 0) return scale;
  const float fitted = ToBf16AndBack(static_cast<float>(products / squares));
  if (!(fitted >= kMinScale)) return scale;
  return SquaredError(w, count, fitted, limit) < SquaredError(w, count, scale, limit) ? fitted
                                                                                      : scale;
}

RoundingError ErrorOf(double error, const float* w, int64_t count) {
  double signal = 0;
  for (int64_t i = 0; i < count; ++i) signal += static_cast<double>(w[i]) * w[i];
  return {error, signal};
}

RoundingError EncodeInt8Row(const float* w, int64_t columns, std::byte* data, std::byte* scales) {
  const float scale = BestScale(w, columns, kInt8Limit, kInt8Clips, Identity);
  const float inverse = Reciprocal(scale);
  for (int64_t i = 0; i < columns; ++i) {
    data[i] = static_cast<std::byte>(static_cast<int8_t>(RoundClamped(w[i] * inverse, kInt8Limit)));
  }
  std::memcpy(scales, &scale, sizeof(scale));
  return ErrorOf(SquaredError(w, columns, scale, kInt8Limit), w, columns);
}

RoundingError EncodeInt4Row(const float* w, int64_t columns, std::byte* data, std::byte* scales) {
  // A missing last half byte is a zero weight.
  std::fill_n(data, kernels::RowBytes(DType::kI4, columns), static_cast<std::byte>(0x88));
  double error = 0;
  for (int64_t begin = 0; begin < columns; begin += kInt4Group) {
    const int64_t count = std::min(kInt4Group, columns - begin);
    float scale = BestScale(w + begin, count, kInt4Limit, kInt4Clips, ToBf16AndBack);
    scale = Refit(w + begin, count, kInt4Limit, scale);
    const float inverse = Reciprocal(scale);
    for (int64_t i = begin; i < begin + count; ++i) {
      const int code = static_cast<int>(RoundClamped(w[i] * inverse, kInt4Limit)) + kInt4Zero;
      const int shift = i % 2 == 0 ? 0 : 4;
      const auto other = data[i / 2] & static_cast<std::byte>(0xF0 >> shift);
      data[i / 2] = other | static_cast<std::byte>(code << shift);
    }
    const uint16_t stored = Bf16FromFloat(scale);
    std::memcpy(scales + begin / kInt4Group * sizeof(stored), &stored, sizeof(stored));
    error += SquaredError(w + begin, count, scale, kInt4Limit);
  }
  return ErrorOf(error, w, columns);
}

RoundingError EncodeBf16Row(const float* w, int64_t columns, std::byte* data) {
  double error = 0;
  for (int64_t i = 0; i < columns; ++i) {
    const uint16_t bits = Bf16FromFloat(w[i]);
    std::memcpy(data + i * sizeof(bits), &bits, sizeof(bits));
    const double difference = static_cast<double>(FloatFromBf16(bits)) - w[i];
    error += difference * difference;
  }
  return ErrorOf(error, w, columns);
}

bool IsFiniteAs(DType to, float value) {
  // All exponent bits of a bf16 set: an infinity or a NaN.
  if (to == DType::kBF16) return (Bf16FromFloat(value) & 0x7F80) != 0x7F80;
  // Code times scale may round up, beyond the largest float32.
  constexpr float kMaxQuantized = std::numeric_limits<float>::max() / 2;
  return kernels::IsQuantized(to) ? std::fabs(value) <= kMaxQuantized : std::isfinite(value);
}

size_t ScaleBytes(DType dtype, int64_t columns) {
  if (dtype == DType::kI8) return sizeof(float);
  if (dtype == DType::kI4) return kernels::Int4Groups(columns) * sizeof(uint16_t);
  return 0;
}

}  // namespace

double RoundingError::relative_rms() const { return signal > 0 ? std::sqrt(error / signal) : 0; }

std::optional<size_t> EncodeRows(absl::Span<const float> values, int64_t columns, DType to,
                                 EncodedRows* out, RoundingError* total) {
  const auto bad = std::find_if(values.begin(), values.end(),
                                [to](float value) { return !IsFiniteAs(to, value); });
  if (bad != values.end()) return static_cast<size_t>(bad - values.begin());
  const int64_t rows = static_cast<int64_t>(values.size()) / columns;
  const int64_t row_bytes = kernels::RowBytes(to, columns);
  const size_t scale_bytes = ScaleBytes(to, columns);
  out->data.resize(static_cast<size_t>(rows * row_bytes));
  out->scales.resize(static_cast<size_t>(rows) * scale_bytes);
  if (to == DType::kF32) {
    std::memcpy(out->data.data(), values.data(), out->data.size());
    return std::nullopt;
  }
  std::vector<RoundingError> errors(static_cast<size_t>(rows));
  constexpr int64_t kMinValuesAShare = 1 << 15;
  ParallelShares(rows, kMinValuesAShare / columns, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* w = values.data() + row * columns;
      std::byte* data = out->data.data() + row * row_bytes;
      std::byte* scales = out->scales.data() + static_cast<size_t>(row) * scale_bytes;
      RoundingError& error = errors[static_cast<size_t>(row)];
      if (to == DType::kBF16) error = EncodeBf16Row(w, columns, data);
      if (to == DType::kI8) error = EncodeInt8Row(w, columns, data, scales);
      if (to == DType::kI4) error = EncodeInt4Row(w, columns, data, scales);
    }
  });
  for (const RoundingError& error : errors)
    total->Add(error);  // in row order: the same bits always
  return std::nullopt;
}

void DecodeRows(const kernels::HostTensor& tensor, int64_t first, absl::Span<float> out) {
  const int64_t columns = tensor.elements() / tensor.shape[0];
  const int64_t row_bytes = kernels::RowBytes(tensor.dtype, columns);
  const int64_t groups = kernels::Int4Groups(columns);
  const int64_t rows = static_cast<int64_t>(out.size()) / columns;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t row = first + r;
    const auto* data = static_cast<const uint8_t*>(tensor.data) + row * row_bytes;
    float* w = out.data() + r * columns;
    switch (tensor.dtype) {
      case DType::kF32:
        std::memcpy(w, data, static_cast<size_t>(row_bytes));
        break;
      case DType::kBF16:
        for (int64_t i = 0; i < columns; ++i) {
          w[i] = FloatFromBf16(reinterpret_cast<const uint16_t*>(data)[i]);
        }
        break;
      case DType::kI8: {
        const float scale = static_cast<const float*>(tensor.scales)[row];
        for (int64_t i = 0; i < columns; ++i) w[i] = static_cast<int8_t>(data[i]) * scale;
        break;
      }
      case DType::kI4: {
        const auto* scales = static_cast<const uint16_t*>(tensor.scales) + row * groups;
        for (int64_t i = 0; i < columns; ++i) {
          const int code = (data[i / 2] >> (i % 2 * 4)) & 0xF;
          w[i] = static_cast<float>(code - kInt4Zero) * FloatFromBf16(scales[i / kInt4Group]);
        }
        break;
      }
    }
  }
}

}  // namespace osdn::tools
