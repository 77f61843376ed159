// osdn-tools score
#include <CLI/CLI.hpp>
#include <atomic>
#include <iostream>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/model_config.h"
#include "tools/backend_flags.h"
#include "tools/command.h"
#include "tools/file_util.h"
#include "tools/interrupt.h"
#include "tools/progress.h"
#include "tools/score.h"

namespace osdn::tools {
namespace {

struct ScoreFlags {
  ScoreOptions options;
  std::string ids_file;
};

absl::Status RunScore(const ScoreFlags& flags) {
  ScoreOptions options = flags.options;
  absl::StatusOr<ModelConfig> config = LoadModelConfig(options.model_dir);
  if (!config.ok()) return config.status();
  absl::StatusOr<std::string> text = ReadSmallFile(flags.ids_file);
  if (!text.ok()) return text.status();
  absl::StatusOr<std::vector<int32_t>> ids = ParseTokenIds(*text, config->arch.vocab_size);
  if (!ids.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(flags.ids_file, ": ", ids.status().message()));
  }
  options.ids = *std::move(ids);

  std::atomic<bool> stop = false;
  options.stop = &stop;
  const SignalBlock block({SIGINT, SIGTERM});
  const InterruptWatcher watcher(block, [&stop] { stop = true; });
  absl::StatusOr<ScoreReport> report;
  {
    Progress progress("scoring", static_cast<int64_t>(options.ids.size()));
    report = ScoreTokens(options, [&](int64_t done) { progress.Update(done, "tokens"); });
  }
  if (!report.ok()) return report.status();
  std::cerr << absl::StrFormat(
      "%d tokens, %d a call, %.2f s, %.1f tokens/s on %s\n", options.ids.size(), report->step,
      report->seconds, static_cast<double>(options.ids.size()) / report->seconds, report->backend);
  return absl::OkStatus();
}

}  // namespace

void AddScoreCommand(CLI::App& app, Action* action) {
  CLI::App* command =
      app.add_subcommand("score", "Write the logits of every position of a token sequence");
  auto flags = std::make_shared<ScoreFlags>();
  ScoreOptions& options = flags->options;
  command->add_option("--model", options.model_dir, "Model directory")->required();
  command->add_option("--ids-file", flags->ids_file, "Whitespace-separated token ids; - is stdin")
      ->required();
  command
      ->add_option("--logits-out", options.logits_path,
                   "safetensors file to write: one float32 tensor `logits` [tokens, vocab]")
      ->required();
  command
      ->add_option("--step", options.step,
                   "Tokens a forward call; 1 is the decode path (default: prefill in large spans)")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20));
  AddBackendFlags(command, &options.backend);
  command->callback([flags, action] { *action = [flags] { return RunScore(*flags); }; });
}

}  // namespace osdn::tools
