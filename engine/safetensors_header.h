// Internal to engine/safetensors*.cc: the JSON header of a safetensors file, as written there.
#ifndef OSDN_ENGINE_SAFETENSORS_HEADER_H_
#define OSDN_ENGINE_SAFETENSORS_HEADER_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace osdn::internal {

// As in the official library.
inline constexpr uint64_t kMaxHeaderBytes = 100'000'000;

struct RawTensor {
  std::string dtype;
  std::vector<uint64_t> shape;
  uint64_t begin = 0;  // from the start of the data section
  uint64_t end = 0;
};

struct RawHeader {
  std::map<std::string, RawTensor> tensors;
  std::map<std::string, std::string> metadata;
};

// Takes exactly the header's grammar and nothing more: memory stays proportional to the text,
// nesting is bounded, keys may not repeat. The values are not checked against anything.
// INVALID_ARGUMENT saying where.
absl::StatusOr<RawHeader> ParseHeader(std::string_view text);

// The header as JSON, in offset order.
std::string HeaderToJson(const RawHeader& header);

// Size of a tensor; nullopt when it overflows a signed 64-bit integer.
std::optional<uint64_t> TensorBytes(std::string_view dtype, const std::vector<uint64_t>& shape);

}  // namespace osdn::internal

#endif  // OSDN_ENGINE_SAFETENSORS_HEADER_H_
