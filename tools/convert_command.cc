// osdn-tools convert
#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>
#include <string>

#include "tools/command.h"
#include "tools/convert.h"
#include "tools/dtype_flag.h"
#include "tools/write_command.h"

namespace osdn::tools {
namespace {

absl::Status RunConvert(ConvertOptions options) {
  absl::StatusOr<ConvertReport> report;
  absl::Status status = RunInterruptibly(
      "converting", [&](const std::atomic<bool>* stop, const WriteProgress& progress) {
        options.stop = stop;
        report = ConvertCheckpoint(options, progress);
        return report.status();
      });
  if (!status.ok()) return status;
  for (const std::string& notice : report->notices) std::cerr << "note: " << notice << '\n';
  PrintWritten(options.output_dir, report->model);
  return absl::OkStatus();
}

}  // namespace

void AddConvertCommand(CLI::App& app, Action* action) {
  CLI::App* command = app.add_subcommand(
      "convert", "Make a model directory from a flash-linear-attention checkpoint");
  auto options = std::make_shared<ConvertOptions>();
  command->add_option("SRC_DIR", options->source_dir, "Checkpoint: config.json, *.safetensors, ...")
      ->required();
  command->add_option("OUT_DIR", options->output_dir, "Model directory to make")->required();
  AddDTypeFlag(command, &options->dtype,
               "Of the matrices: f32, bf16, int8 or int4 (default: bf16 from a BF16 checkpoint, "
               "else f32)");
  command->add_option("--name", options->name, "Model name (default: the last part of OUT_DIR)");
  command->add_option("--chat-template", options->chat_template,
                      "Chat template (default: SRC_DIR/chat_template.yaml where there is one)");
  command->add_flag("--overwrite", options->overwrite, "Replace an existing model directory");
  command->callback([options, action] { *action = [options] { return RunConvert(*options); }; });
}

}  // namespace osdn::tools
