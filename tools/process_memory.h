// Memory of this process.
#ifndef OSDN_TOOLS_PROCESS_MEMORY_H_
#define OSDN_TOOLS_PROCESS_MEMORY_H_

#include <cstdint>
#include <string_view>

namespace osdn::tools {

struct ProcessMemory {
  int64_t resident_bytes = 0;
  int64_t anonymous_bytes = 0;  // the part that belongs to no file
};

// From /proc/self/status; zeros where there is none.
ProcessMemory ReadProcessMemory();
ProcessMemory ParseProcessStatus(std::string_view text);

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_PROCESS_MEMORY_H_
