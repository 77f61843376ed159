// What the commands that write a model directory have in common.
#ifndef OSDN_TOOLS_WRITE_COMMAND_H_
#define OSDN_TOOLS_WRITE_COMMAND_H_

#include <atomic>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "tools/model_writer.h"

namespace osdn::tools {

// Runs `write` with a progress bar labelled `label` and a flag that SIGINT and SIGTERM set.
absl::Status RunInterruptibly(
    const std::string& label,
    const std::function<absl::Status(const std::atomic<bool>* stop, const WriteProgress& progress)>&
        write);

// One line on standard output: directory, name, size; the rounding errors on standard error, those
// of every tensor with `all_errors`.
void PrintWritten(const std::string& output_dir, const ModelWriterReport& report, bool all_errors);

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_WRITE_COMMAND_H_
