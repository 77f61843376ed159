// osdn-tools convert
#include <CLI/CLI.hpp>
#include <atomic>
#include <iostream>
#include <memory>
#include <string>

#include "absl/strings/str_format.h"
#include "tools/command.h"
#include "tools/convert.h"
#include "tools/interrupt.h"
#include "tools/progress.h"

namespace osdn::tools {
namespace {

struct ConvertFlags {
  ConvertOptions options;
  std::string dtype;
};

absl::Status RunConvert(const ConvertFlags& flags) {
  ConvertOptions options = flags.options;
  if (flags.dtype == "f32") options.dtype = kernels::DType::kF32;
  if (flags.dtype == "bf16") options.dtype = kernels::DType::kBF16;
  std::atomic<bool> stop = false;
  options.stop = &stop;
  const SignalBlock block({SIGINT, SIGTERM});
  const InterruptWatcher watcher(block, [&stop] { stop = true; });

  absl::StatusOr<ConvertReport> report;
  {
    std::unique_ptr<Progress> progress;
    report = ConvertCheckpoint(options, [&](int64_t done, int64_t total, std::string_view tensor) {
      if (progress == nullptr) progress = std::make_unique<Progress>("converting", total);
      progress->Update(done, tensor);
    });
  }
  if (!report.ok()) return report.status();
  for (const std::string& notice : report->notices) std::cerr << "note: " << notice << '\n';
  std::cout << absl::StrFormat("%s: %s, %d parameters, %s, %d bytes\n", options.output_dir,
                               report->config.name, report->parameters,
                               kernels::DTypeName(report->config.dtype), report->weight_bytes);
  return absl::OkStatus();
}

}  // namespace

void AddConvertCommand(CLI::App& app, Action* action) {
  CLI::App* command = app.add_subcommand(
      "convert", "Make a model directory from a flash-linear-attention checkpoint");
  auto flags = std::make_shared<ConvertFlags>();
  ConvertOptions& options = flags->options;
  command->add_option("SRC_DIR", options.source_dir, "Checkpoint: config.json, *.safetensors, ...")
      ->required();
  command->add_option("OUT_DIR", options.output_dir, "Model directory to make")->required();
  command
      ->add_option("--dtype", flags->dtype,
                   "Of the matrices: f32 or bf16 (default: bf16 from a BF16 checkpoint, else f32)")
      ->check(CLI::IsMember({"f32", "bf16"}));
  command->add_option("--name", options.name, "Model name (default: the last part of OUT_DIR)");
  command->add_option("--chat-template", options.chat_template,
                      "Chat template (default: SRC_DIR/chat_template.yaml where there is one)");
  command->add_flag("--overwrite", options.overwrite, "Replace an existing model directory");
  command->callback([flags, action] { *action = [flags] { return RunConvert(*flags); }; });
}

}  // namespace osdn::tools
