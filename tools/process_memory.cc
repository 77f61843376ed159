#include "tools/process_memory.h"

#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "tools/file_util.h"

namespace osdn::tools {

ProcessMemory ParseProcessStatus(std::string_view text) {
  constexpr int64_t kKiB = 1024;
  ProcessMemory memory;
  for (const absl::string_view line :
       absl::StrSplit(absl::string_view(text.data(), text.size()), '\n')) {
    // "VmRSS:     1234 kB"
    const std::vector<absl::string_view> words =
        absl::StrSplit(line, absl::ByAnyChar(" \t"), absl::SkipEmpty());
    int64_t value = 0;
    if (words.size() != 3 || !absl::SimpleAtoi(words[1], &value)) continue;
    if (words[0] == "VmRSS:") memory.resident_bytes = value * kKiB;
    if (words[0] == "RssAnon:") memory.anonymous_bytes = value * kKiB;
  }
  return memory;
}

ProcessMemory ReadProcessMemory() {
  const absl::StatusOr<std::string> text = ReadSmallFile("/proc/self/status");
  return text.ok() ? ParseProcessStatus(*text) : ProcessMemory();
}

}  // namespace osdn::tools
