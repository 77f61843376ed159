// osdn-tools health: for container health checks; the exit code is the answer.
#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>
#include <string>

#include "tools/command.h"
#include "tools/inference_client.h"

namespace osdn::tools {
namespace {

struct HealthFlags {
  std::string address;
  std::string service;
};

absl::Status RunHealth(const HealthFlags& flags) {
  const InferenceClient client(flags.address);
  if (absl::Status status = client.CheckHealth(flags.service); !status.ok()) return status;
  std::cout << "SERVING\n";
  return absl::OkStatus();
}

}  // namespace

void AddHealthCommand(CLI::App& app, Action* action) {
  CLI::App* command =
      app.add_subcommand("health", "Ask a server for its health: exit code 0 when it serves");
  auto flags = std::make_shared<HealthFlags>();
  command->add_option("--address", flags->address, "Server, HOST:PORT")->required();
  command->add_option("--service", flags->service,
                      "A service, e.g. osdn.v1.InferenceService (default: the whole server)");
  command->callback([flags, action] { *action = [flags] { return RunHealth(*flags); }; });
}

}  // namespace osdn::tools
