// osdn-tools export
#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>

#include "absl/strings/str_format.h"
#include "tools/command.h"
#include "tools/dtype_flag.h"
#include "tools/export.h"
#include "tools/write_command.h"

namespace osdn::tools {
namespace {

absl::Status RunExport(ExportOptions options) {
  absl::StatusOr<ExportReport> report;
  absl::Status status = RunInterruptibly(
      "exporting", [&](const std::atomic<bool>* stop, const WriteProgress& progress) {
        options.stop = stop;
        report = ExportModel(options, progress);
        return report.status();
      });
  if (!status.ok()) return status;
  for (const std::string& notice : report->notices) std::cerr << "note: " << notice << '\n';
  std::cout << absl::StrFormat("%s: %d parameters, %s\n", options.output_dir, report->parameters,
                               kernels::DTypeName(report->dtype));
  return absl::OkStatus();
}

}  // namespace

void AddExportCommand(CLI::App& app, Action* action) {
  CLI::App* command = app.add_subcommand(
      "export", "Make a flash-linear-attention checkpoint from a model directory");
  auto options = std::make_shared<ExportOptions>();
  command->add_option("MODEL", options->model_dir, "Model directory")->required();
  command->add_option("OUT_DIR", options->output_dir, "Checkpoint to make: a new directory")
      ->required();
  AddDTypeFlag(command, &options->dtype,
               "Of the matrices: f32 or bf16 (default: the model's; f32 from int8 and int4)");
  command->callback([options, action] { *action = [options] { return RunExport(*options); }; });
}

}  // namespace osdn::tools
