// osdn-tools eval perplexity
#include <CLI/CLI.hpp>
#include <atomic>
#include <csignal>
#include <iostream>
#include <memory>
#include <string>

#include "tools/backend_flags.h"
#include "tools/command.h"
#include "tools/interrupt.h"
#include "tools/perplexity.h"
#include "tools/progress.h"

namespace osdn::tools {
namespace {

struct PerplexityFlags {
  PerplexityOptions options;
  bool json = false;
};

absl::Status RunPerplexity(const PerplexityFlags& flags) {
  PerplexityOptions options = flags.options;
  std::atomic<bool> stop = false;
  options.stop = &stop;
  const SignalBlock block({SIGINT, SIGTERM});
  const InterruptWatcher watcher(block, [&stop] { stop = true; });
  absl::StatusOr<PerplexityReport> report;
  {
    std::unique_ptr<Progress> progress;
    report = MeasurePerplexity(options, [&](int64_t done, int64_t total) {
      if (progress == nullptr) progress = std::make_unique<Progress>("evaluating", total);
      progress->Update(done, "tokens");
    });
  }
  if (!report.ok()) return report.status();
  std::cout << (flags.json ? PerplexityToJson(*report) : PerplexityToText(*report));
  return absl::OkStatus();
}

}  // namespace

void AddEvalCommand(CLI::App& app, Action* action) {
  CLI::App* eval = app.add_subcommand("eval", "Measure a model's quality");
  eval->require_subcommand(1);
  CLI::App* command = eval->add_subcommand(
      "perplexity", "How well a model predicts a text, and how close it is to another");
  auto flags = std::make_shared<PerplexityFlags>();
  PerplexityOptions& options = flags->options;
  command->add_option("--model", options.model_dir, "Model directory")->required();
  command->add_option("--against", options.against_dir,
                      "Reference, usually the same weights in float32: KL and perplexity ratio");
  CLI::Option_group* input = command->add_option_group("input", "What is predicted");
  input->add_option("--text", options.text_path,
                    "Text; documents are separated by form feeds; - is stdin");
  input->add_option("--ids-file", options.ids_path,
                    "Token ids instead of text, a document a line; - is stdin");
  input->require_option(1);
  command->add_flag("--json", flags->json, "As one JSON object");
  AddBackendFlags(command, &options.backend);
  command->callback([flags, action] { *action = [flags] { return RunPerplexity(*flags); }; });
}

}  // namespace osdn::tools
