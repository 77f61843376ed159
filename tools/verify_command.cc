// osdn-tools verify
#include <CLI/CLI.hpp>
#include <atomic>
#include <csignal>
#include <iostream>
#include <memory>
#include <optional>

#include "absl/strings/str_cat.h"
#include "tools/backend_flags.h"
#include "tools/command.h"
#include "tools/interrupt.h"
#include "tools/progress.h"
#include "tools/verify.h"

namespace osdn::tools {
namespace {

struct VerifyFlags {
  VerifyOptions options;
  bool json = false;
  bool tensors = false;
  bool exact = false;
  std::optional<double> max_kl;
};

absl::Status RunVerify(const VerifyFlags& flags) {
  VerifyOptions options = flags.options;
  std::atomic<bool> stop = false;
  options.stop = &stop;
  const SignalBlock block({SIGINT, SIGTERM});
  const InterruptWatcher watcher(block, [&stop] { stop = true; });
  absl::StatusOr<VerifyReport> report;
  {
    std::unique_ptr<Progress> progress;
    report = VerifyModels(options, [&](int64_t done, int64_t total) {
      if (progress == nullptr) progress = std::make_unique<Progress>("comparing", total);
      progress->Update(done, "tokens");
    });
  }
  if (!report.ok()) return report.status();
  std::cout << (flags.json ? VerifyToJson(*report) : VerifyToText(*report, flags.tensors))
            << std::flush;
  if (flags.exact && !report->identical()) {
    return absl::FailedPreconditionError("the two models are not identical (--exact)");
  }
  const double kl = report->outputs.against->mean_kl;
  if (flags.max_kl.has_value() && kl > *flags.max_kl) {
    return absl::FailedPreconditionError(
        absl::StrCat("mean KL ", kl, " is above --max-kl ", *flags.max_kl));
  }
  return absl::OkStatus();
}

}  // namespace

void AddVerifyCommand(CLI::App& app, Action* action) {
  CLI::App* command = app.add_subcommand(
      "verify", "Compare two model directories: settings, tensors, logits, perplexity");
  auto flags = std::make_shared<VerifyFlags>();
  VerifyOptions& options = flags->options;
  command->add_option("A", options.a_dir, "Model directory: the reference")->required();
  command->add_option("B", options.b_dir, "Model directory")->required();
  CLI::Option_group* input =
      command->add_option_group("input", "Tokens to compare on (default: 256 fixed ones)");
  input->add_option("--text", options.text_path,
                    "Text; documents are separated by form feeds; - is stdin");
  input->add_option("--ids-file", options.ids_path,
                    "Token ids instead of text, a document a line; - is stdin");
  input->require_option(0, 1);
  command->add_flag("--exact", flags->exact, "Fail unless every setting and weight is the same");
  command->add_option("--max-kl", flags->max_kl, "Fail when the mean KL is above, in nats");
  command->add_flag("--tensors", flags->tensors, "Show every tensor");
  command->add_flag("--json", flags->json, "As one JSON object");
  AddBackendFlags(command, &options.backend);
  command->callback([flags, action] { *action = [flags] { return RunVerify(*flags); }; });
}

}  // namespace osdn::tools
