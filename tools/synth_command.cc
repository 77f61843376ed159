// osdn-tools synth
#include <CLI/CLI.hpp>
#include <memory>
#include <optional>
#include <string>

#include "tools/command.h"
#include "tools/dtype_flag.h"
#include "tools/synth.h"
#include "tools/write_command.h"

namespace osdn::tools {
namespace {

struct SynthFlags {
  SynthOptions options;
  std::optional<kernels::DType> dtype;
};

absl::Status RunSynth(const SynthFlags& flags) {
  SynthOptions options = flags.options;
  options.dtype = flags.dtype.value_or(options.dtype);
  absl::StatusOr<ModelWriterReport> report;
  absl::Status status = RunInterruptibly(
      "writing", [&](const std::atomic<bool>* stop, const WriteProgress& progress) {
        options.stop = stop;
        report = SynthesizeModel(options, progress);
        return report.status();
      });
  if (!status.ok()) return status;
  PrintWritten(options.output_dir, *report, /*all_errors=*/false);
  return absl::OkStatus();
}

}  // namespace

void AddSynthCommand(CLI::App& app, Action* action) {
  CLI::App* command = app.add_subcommand(
      "synth", "Make a model directory of random weights, for measurements of speed and memory");
  auto flags = std::make_shared<SynthFlags>();
  SynthOptions& options = flags->options;
  command->add_option("OUT_DIR", options.output_dir, "Model directory to make")->required();
  command
      ->add_option("--config", options.config_path,
                   "Shape: a YAML file like models/configs/osdn-340m.yaml")
      ->required();
  AddDTypeFlag(command, &flags->dtype, "Of the matrices: f32, bf16, int8 or int4 (default: bf16)");
  command->add_option("--seed", options.seed, "Of the random numbers")->capture_default_str();
  command->add_flag("--delta-net", options.delta_net,
                    "Without the preconditioner: eta 0, no APF; the other weights stay the same");
  command->add_option("--tokenizer", options.tokenizer_path,
                      "tokenizer.model to put in (default: none; the model takes token ids)");
  command->add_option("--name", options.name, "Model name (default: the config's)");
  command->add_flag("--overwrite,--force", options.overwrite,
                    "Replace an existing model directory");
  command->callback([flags, action] { *action = [flags] { return RunSynth(*flags); }; });
}

}  // namespace osdn::tools
