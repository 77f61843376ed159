// Element conversion between the floating-point types of safetensors files.
#ifndef OSDN_TOOLS_FLOAT_CONVERT_H_
#define OSDN_TOOLS_FLOAT_CONVERT_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "absl/types/span.h"
#include "kernels/include/tensor.h"

namespace osdn::tools {

enum class SourceDType : uint8_t { kF32, kBF16, kF16 };

// From a safetensors dtype name; nullopt for the ones that are not read.
std::optional<SourceDType> ParseSourceDType(std::string_view name);
size_t SourceDTypeSize(SourceDType dtype);

// Round to nearest, ties to even. Subnormals are kept, infinities stay, a NaN stays a (quiet) NaN;
// a finite value above the largest bf16 by half a step or more becomes an infinity.
uint16_t Bf16FromFloat(float value);
float FloatFromBf16(uint16_t bits);
float FloatFromF16(uint16_t bits);  // exact

// Widens out.size() elements of `from` to float32. They lie `stride` elements apart from `source`
// on, at any alignment.
void WidenElements(const std::byte* source, int64_t stride, SourceDType from,
                   absl::Span<float> out);

// Converts `source` (whole elements of `from`, any alignment) and puts the bytes of `to` in `*out`,
// replacing its contents. Returns the index of the first element that is not finite in `to`, if
// any.
std::optional<size_t> ConvertElements(absl::Span<const std::byte> source, SourceDType from,
                                      kernels::DType to, std::vector<std::byte>* out);

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_FLOAT_CONVERT_H_
