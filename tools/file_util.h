// Small files: configs, prompts, token id lists.
#ifndef OSDN_TOOLS_FILE_UTIL_H_
#define OSDN_TOOLS_FILE_UTIL_H_

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace osdn::tools {

inline constexpr size_t kMaxSmallFileBytes = size_t{256} << 20;

// The whole file; "-" is standard input. NOT_FOUND and the like name the path; RESOURCE_EXHAUSTED
// above `max_bytes`.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path,
                                          size_t max_bytes = kMaxSmallFileBytes);
// The same, or nullopt when there is no such file.
absl::StatusOr<std::optional<std::string>> ReadSmallFileIfExists(const std::string& path);

// Writes, syncs and closes.
absl::Status WriteSmallFile(const std::string& path, std::string_view text);

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_FILE_UTIL_H_
