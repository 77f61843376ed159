// osdn-tools: conversion, inspection and clients. Each subcommand is a *_command.cc file.
#include <CLI/CLI.hpp>
#include <exception>
#include <iostream>
#include <string>

#include "server/version.h"
#include "tools/command.h"

namespace {

constexpr int kExitFailure = 1;
constexpr int kExitUsage = 2;

int Run(int argc, char** argv) {
  CLI::App app("Tools for OSDN models and for osdn-server.", "osdn-tools");
  app.set_version_flag("--version", "osdn-tools " + std::string(osdn::Version()));
  app.require_subcommand(1);
  osdn::tools::Action action;
  osdn::tools::AddConvertCommand(app, &action);
  osdn::tools::AddExportCommand(app, &action);
  osdn::tools::AddVerifyCommand(app, &action);
  osdn::tools::AddQuantizeCommand(app, &action);
  osdn::tools::AddSynthCommand(app, &action);
  osdn::tools::AddInspectCommand(app, &action);
  osdn::tools::AddScoreCommand(app, &action);
  osdn::tools::AddBenchCommand(app, &action);
  osdn::tools::AddEvalCommand(app, &action);
#ifdef OSDN_HAVE_GRPC
  osdn::tools::AddGenerateCommand(app, &action);
  osdn::tools::AddChatCommand(app, &action);
  osdn::tools::AddStateCommand(app, &action);
  osdn::tools::AddCompilePromptCommand(app, &action);
  osdn::tools::AddHealthCommand(app, &action);
  osdn::tools::AddKeyCommand(app, &action);
#else
  app.footer(
      "Built without gRPC: generate, chat, state, compile-prompt, health and key are left out.");
#endif
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    // --help and --version arrive here too, with code 0.
    return app.exit(error) == 0 ? 0 : kExitUsage;
  }
  const absl::Status status = action();
  if (status.ok()) return 0;
  std::cerr << "osdn-tools: " << status.message() << '\n';
  return kExitFailure;
}

}  // namespace

int main(int argc, char** argv) {
  // Nothing of ours throws; what a library may throw (out of memory) ends with a message.
  try {
    return Run(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << "osdn-tools: " << error.what() << '\n';
    return kExitFailure;
  }
}
