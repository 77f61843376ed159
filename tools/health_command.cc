// osdn-tools health: for container health checks; the exit code is the answer.
#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>
#include <string>

#include "tools/command.h"
#include "tools/inference_client.h"
#include "tools/server_flags.h"

namespace osdn::tools {
namespace {

struct HealthFlags {
  ServerFlags server;
  std::string service;
};

absl::Status RunHealth(const HealthFlags& flags) {
  absl::StatusOr<std::shared_ptr<grpc::Channel>> channel = OpenChannel(flags.server);
  if (!channel.ok()) return channel.status();
  const InferenceClient client(*std::move(channel), flags.server.address);
  if (absl::Status status = client.CheckHealth(flags.service); !status.ok()) return status;
  std::cout << "SERVING\n";
  return absl::OkStatus();
}

}  // namespace

void AddHealthCommand(CLI::App& app, Action* action) {
  CLI::App* command =
      app.add_subcommand("health", "Ask a server for its health: exit code 0 when it serves");
  auto flags = std::make_shared<HealthFlags>();
  AddServerFlags(command, &flags->server)->required();
  command->add_option("--service", flags->service,
                      "A service, e.g. osdn.v1.InferenceService (default: the whole server)");
  command->callback([flags, action] { *action = [flags] { return RunHealth(*flags); }; });
}

}  // namespace osdn::tools
