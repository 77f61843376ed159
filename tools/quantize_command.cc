// osdn-tools quantize
#include <CLI/CLI.hpp>
#include <memory>
#include <optional>
#include <string>

#include "tools/command.h"
#include "tools/dtype_flag.h"
#include "tools/quantize.h"
#include "tools/write_command.h"

namespace osdn::tools {
namespace {

struct QuantizeFlags {
  QuantizeOptions options;
  std::optional<kernels::DType> dtype;
  bool all_errors = false;
};

absl::Status RunQuantize(const QuantizeFlags& flags) {
  QuantizeOptions options = flags.options;
  options.dtype = *flags.dtype;
  absl::StatusOr<ModelWriterReport> report;
  absl::Status status = RunInterruptibly(
      "quantizing", [&](const std::atomic<bool>* stop, const WriteProgress& progress) {
        options.stop = stop;
        report = QuantizeModel(options, progress);
        return report.status();
      });
  if (!status.ok()) return status;
  PrintWritten(options.output_dir, *report, flags.all_errors);
  return absl::OkStatus();
}

}  // namespace

void AddQuantizeCommand(CLI::App& app, Action* action) {
  CLI::App* command =
      app.add_subcommand("quantize", "Make a model directory of another dtype from one");
  auto flags = std::make_shared<QuantizeFlags>();
  QuantizeOptions& options = flags->options;
  command->add_option("MODEL", options.model_dir, "Model directory, f32 or bf16")->required();
  command->add_option("OUT_DIR", options.output_dir, "Model directory to make")->required();
  AddDTypeFlag(command, &flags->dtype, "Of the matrices: int8, int4, bf16 or f32")->required();
  command->add_option("--name", options.name, "Model name (default: the last part of OUT_DIR)");
  command->add_flag("--errors", flags->all_errors, "Show the rounding error of every tensor");
  command->add_flag("--overwrite,--force", options.overwrite,
                    "Replace an existing model directory");
  command->callback([flags, action] { *action = [flags] { return RunQuantize(*flags); }; });
}

}  // namespace osdn::tools
