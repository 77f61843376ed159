// osdn-tools compile-prompt
#include <grpcpp/client_context.h>

#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "osdn/v1/session.grpc.pb.h"
#include "tools/backend_flags.h"
#include "tools/command.h"
#include "tools/file_util.h"
#include "tools/local_server.h"

namespace osdn::tools {
namespace {

struct CompileFlags {
  EngineOptions engine;
  std::string text;
  std::string text_file;
  std::string system;
  std::string out;
};

absl::Status RunCompile(const CompileFlags& flags) {
  v1::SaveStateRequest request;
  request.mutable_state()->set_return_state(true);
  if (!flags.system.empty()) {
    v1::Message* message = request.mutable_prompt()->mutable_messages()->add_messages();
    message->set_role("system");
    message->set_content(flags.system);
  } else if (!flags.text_file.empty()) {
    absl::StatusOr<std::string> text = ReadSmallFile(flags.text_file);
    if (!text.ok()) return text.status();
    request.mutable_prompt()->set_text(*std::move(text));
  } else {
    request.mutable_prompt()->set_text(flags.text);
  }
  const absl::StatusOr<std::unique_ptr<LocalServer>> server = LocalServer::Start(flags.engine);
  if (!server.ok()) return server.status();
  const auto stub = v1::StateService::NewStub((*server)->channel());
  grpc::ClientContext context;
  v1::SaveStateResponse response;
  const grpc::Status status = stub->SaveState(&context, request, &response);
  if (!status.ok()) {
    return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  }
  if (absl::Status s = WriteSmallFile(flags.out, response.state_blob()); !s.ok()) return s;
  std::cerr << flags.out << ": the state after " << response.usage().prompt_tokens() << " tokens, "
            << response.state_blob().size() << " bytes\n";
  return absl::OkStatus();
}

}  // namespace

void AddCompilePromptCommand(CLI::App& app, Action* action) {
  CLI::App* command = app.add_subcommand(
      "compile-prompt", "Read a prompt once and write the state after it, to import or send along");
  auto flags = std::make_shared<CompileFlags>();
  command->add_option("--model", flags->engine.model_dir, "Model directory")->required();
  CLI::Option_group* prompt = command->add_option_group("prompt");
  prompt->add_option("--prompt", flags->text, "Text");
  prompt->add_option("--prompt-file", flags->text_file, "File with the text");
  prompt->add_option("--system", flags->system, "System message of a chat that goes on from it");
  prompt->require_option(1);
  command->add_option("--out", flags->out, "State file to write")->required();
  AddBackendFlags(command, &flags->engine.backend);
  command->callback([flags, action] { *action = [flags] { return RunCompile(*flags); }; });
}

}  // namespace osdn::tools
