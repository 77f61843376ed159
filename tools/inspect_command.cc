// osdn-tools inspect
#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>
#include <string>

#include "tools/command.h"
#include "tools/inspect.h"

namespace osdn::tools {
namespace {

struct InspectFlags {
  std::string model_dir;
  bool json = false;
  bool tensors = false;
  bool verify = false;
};

absl::Status RunInspect(const InspectFlags& flags) {
  absl::StatusOr<ModelSummary> summary = InspectModel(flags.model_dir, flags.verify);
  if (!summary.ok()) return summary.status();
  std::cout << (flags.json ? SummaryToJson(*summary, flags.tensors)
                           : SummaryToText(*summary, flags.tensors));
  return absl::OkStatus();
}

}  // namespace

void AddInspectCommand(CLI::App& app, Action* action) {
  CLI::App* command = app.add_subcommand("inspect", "Show what a model directory holds");
  auto flags = std::make_shared<InspectFlags>();
  command->add_option("MODEL", flags->model_dir, "Model directory")->required();
  command->add_flag("--json", flags->json, "As one JSON object");
  command->add_flag("--tensors", flags->tensors, "With every tensor");
  command->add_flag("--verify", flags->verify, "Compare every file with its sha256");
  command->callback([flags, action] { *action = [flags] { return RunInspect(*flags); }; });
}

}  // namespace osdn::tools
