#include "tools/write_command.h"

#include <csignal>
#include <iostream>
#include <memory>

#include "absl/strings/str_format.h"
#include "tools/interrupt.h"
#include "tools/progress.h"

namespace osdn::tools {

absl::Status RunInterruptibly(
    const std::string& label,
    const std::function<absl::Status(const std::atomic<bool>* stop, const WriteProgress& progress)>&
        write) {
  std::atomic<bool> stop = false;
  const SignalBlock block({SIGINT, SIGTERM});
  const InterruptWatcher watcher(block, [&stop] { stop = true; });
  std::unique_ptr<Progress> progress;
  return write(&stop, [&](int64_t done, int64_t total, std::string_view tensor) {
    if (progress == nullptr) progress = std::make_unique<Progress>(label, total);
    progress->Update(done, tensor);
  });
}

void PrintWritten(const std::string& output_dir, const ModelWriterReport& report, bool all_errors) {
  if (all_errors) std::cerr << RoundingTable(report.roundings);
  const std::string rounding = RoundingText(report.roundings);
  if (!rounding.empty()) std::cerr << rounding << '\n';
  std::cout << absl::StrFormat("%s: %s, %d parameters, %s, %d bytes\n", output_dir,
                               report.config.name, report.parameters,
                               kernels::DTypeName(report.config.dtype), report.weight_bytes);
}

}  // namespace osdn::tools
