#include "tools/float_convert.h"

#include <bit>
#include <cmath>
#include <cstring>

namespace osdn::tools {
namespace {

template <typename T>
T LoadAs(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof(value));
  return value;
}

struct FromF32 {
  static constexpr size_t kBytes = 4;
  static float Load(const std::byte* at) { return LoadAs<float>(at); }
};
struct FromBf16 {
  static constexpr size_t kBytes = 2;
  static float Load(const std::byte* at) { return FloatFromBf16(LoadAs<uint16_t>(at)); }
};
struct FromF16 {
  static constexpr size_t kBytes = 2;
  static float Load(const std::byte* at) { return FloatFromF16(LoadAs<uint16_t>(at)); }
};

struct ToF32 {
  using Element = float;
  static float Store(float value) { return value; }
  static bool IsFinite(float value) { return std::isfinite(value); }
};
struct ToBf16 {
  using Element = uint16_t;
  static uint16_t Store(float value) { return Bf16FromFloat(value); }
  static bool IsFinite(uint16_t bits) { return (bits & 0x7F80) != 0x7F80; }
};

template <typename From, typename To>
std::optional<size_t> Convert(absl::Span<const std::byte> source, std::vector<std::byte>* out) {
  using Element = typename To::Element;
  const size_t count = source.size() / From::kBytes;
  out->resize(count * sizeof(Element));
  std::optional<size_t> bad;
  for (size_t i = 0; i < count; ++i) {
    const Element value = To::Store(From::Load(source.data() + i * From::kBytes));
    if (!To::IsFinite(value) && !bad.has_value()) bad = i;
    std::memcpy(out->data() + i * sizeof(Element), &value, sizeof(Element));
  }
  return bad;
}

template <typename From>
std::optional<size_t> ConvertFrom(absl::Span<const std::byte> source, kernels::DType to,
                                  std::vector<std::byte>* out) {
  return to == kernels::DType::kF32 ? Convert<From, ToF32>(source, out)
                                    : Convert<From, ToBf16>(source, out);
}

template <typename From>
void Widen(const std::byte* source, int64_t stride, absl::Span<float> out) {
  if (stride == 1) {  // the compiler vectorises this one
    for (size_t i = 0; i < out.size(); ++i) out[i] = From::Load(source + i * From::kBytes);
    return;
  }
  const int64_t step = stride * static_cast<int64_t>(From::kBytes);
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = From::Load(source + static_cast<int64_t>(i) * step);
  }
}

}  // namespace

std::optional<SourceDType> ParseSourceDType(std::string_view name) {
  if (name == "F32") return SourceDType::kF32;
  if (name == "BF16") return SourceDType::kBF16;
  if (name == "F16") return SourceDType::kF16;
  return std::nullopt;
}

size_t SourceDTypeSize(SourceDType dtype) { return dtype == SourceDType::kF32 ? 4 : 2; }

uint16_t Bf16FromFloat(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return static_cast<uint16_t>((bits >> 16) | 0x0040);
  // Half a step less one, plus one more where the kept part is odd: ties go to even.
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

float FloatFromBf16(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

float FloatFromF16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1F;
  const uint32_t mantissa = bits & 0x03FF;
  if (exponent == 0) {  // zero or subnormal: mantissa x 2^-24
    const float magnitude = std::ldexp(static_cast<float>(mantissa), -24);
    return sign != 0 ? -magnitude : magnitude;
  }
  if (exponent == 0x1F) return std::bit_cast<float>(sign | 0x7F800000 | (mantissa << 13));
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

void WidenElements(const std::byte* source, int64_t stride, SourceDType from,
                   absl::Span<float> out) {
  switch (from) {
    case SourceDType::kF32:
      return Widen<FromF32>(source, stride, out);
    case SourceDType::kBF16:
      return Widen<FromBf16>(source, stride, out);
    case SourceDType::kF16:
      return Widen<FromF16>(source, stride, out);
  }
}

std::optional<size_t> ConvertElements(absl::Span<const std::byte> source, SourceDType from,
                                      kernels::DType to, std::vector<std::byte>* out) {
  switch (from) {
    case SourceDType::kF32:
      return ConvertFrom<FromF32>(source, to, out);
    case SourceDType::kBF16:
      return ConvertFrom<FromBf16>(source, to, out);
    case SourceDType::kF16:
      break;
  }
  return ConvertFrom<FromF16>(source, to, out);
}

}  // namespace osdn::tools
