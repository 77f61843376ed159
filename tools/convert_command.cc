// osdn-tools convert
#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>
#include <string>

#include "absl/strings/str_join.h"
#include "tools/command.h"
#include "tools/convert.h"
#include "tools/dtype_flag.h"
#include "tools/write_command.h"

namespace osdn::tools {
namespace {

struct ConvertFlags {
  ConvertOptions options;
  bool dry_run = false;
  bool all_errors = false;
};

absl::Status RunConvert(const ConvertFlags& flags) {
  ConvertOptions options = flags.options;
  absl::StatusOr<ConvertReport> report;
  absl::Status status = RunInterruptibly(
      "converting", [&](const std::atomic<bool>* stop, const WriteProgress& progress) {
        options.stop = stop;
        report = ConvertCheckpoint(options, progress);
        return report.status();
      });
  if (!status.ok()) return status;
  for (const std::string& notice : report->notices) std::cerr << "note: " << notice << '\n';
  PrintWritten(options.output_dir, report->model, flags.all_errors);
  return absl::OkStatus();
}

// The table goes out even if the tensors do not fit: that is when it is wanted.
absl::Status RunDry(const ConvertOptions& options) {
  absl::StatusOr<ConversionPlan> plan = PlanConversion(options);
  if (!plan.ok()) return plan.status();
  std::cout << PlanToText(*plan) << std::flush;
  for (const std::string& notice : plan->notices) std::cerr << "note: " << notice << '\n';
  return plan->fit;
}

}  // namespace

void AddConvertCommand(CLI::App& app, Action* action) {
  CLI::App* command = app.add_subcommand("convert", "Make a model directory from a checkpoint");
  auto flags = std::make_shared<ConvertFlags>();
  ConvertOptions* options = &flags->options;
  command
      ->add_option("SOURCE", options->source,
                   "Directory (safetensors, pytorch_model.bin, distributed checkpoint) or one file "
                   "of weights (.safetensors, .pt, .pth, .bin)")
      ->required();
  command->add_option("OUT_DIR", options->output_dir, "Model directory to make")->required();
  AddDTypeFlag(command, &options->dtype,
               "Of the matrices: f32, bf16, int8 or int4 (default: bf16 from a BF16 checkpoint, "
               "else f32)");
  command->add_option("--config", options->config,
                      "config.json, with the tokenizer beside it (default: in or beside SOURCE)");
  command->add_option("--weights-key", options->weights_key,
                      "Where in the checkpoint the weights are, as \"ema\" or \"state_dict.model\" "
                      "(default: found by their names)");
  command->add_option(
      "--map", options->name_map,
      "Name map: a YAML file, or a built-in one: " + absl::StrJoin(NameMap::BuiltInNames(), ", ") +
          " (default: found by the names)");
  command->add_flag("--ignore-checksums", options->ignore_checksums,
                    "Read torch.save files whose checksums are wrong");
  command->add_option("--name", options->name, "Model name (default: the last part of OUT_DIR)");
  command->add_option("--chat-template", options->chat_template,
                      "Chat template (default: chat_template.yaml beside config.json)");
  command->add_flag("--overwrite,--force", options->overwrite,
                    "Replace an existing model directory");
  command->add_flag("--errors", flags->all_errors, "Show the rounding error of every tensor");
  command->add_flag("--dry-run", flags->dry_run,
                    "Only print what becomes of every tensor; write nothing");
  command->callback([flags, action] {
    *action = [flags] { return flags->dry_run ? RunDry(flags->options) : RunConvert(*flags); };
  });
}

}  // namespace osdn::tools
