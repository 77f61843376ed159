// osdn-tools chat
#include <CLI/CLI.hpp>
#include <csignal>
#include <functional>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "tools/chat_session.h"
#include "tools/command.h"
#include "tools/generation_flags.h"
#include "tools/inference_client.h"
#include "tools/interrupt.h"
#include "tools/line_reader.h"
#include "tools/server_flags.h"

namespace osdn::tools {
namespace {

constexpr char kHelp[] =
    "  /help          this list\n"
    "  /reset         forget the conversation, keep the system message\n"
    "  /system TEXT   start over with this system message (none: without one)\n"
    "  /quit          leave (or Ctrl-D)\n"
    "  Ctrl-C         stop the answer\n";

struct ChatFlags {
  ServerFlags server;
  std::string system;
  GenerationFlags generation;
};

// The loop between a person (or a pipe) and a session. On a pipe each line is a message, answers go
// to standard output, one after the other, and the first error ends the program.
class ChatLoop {
 public:
  ChatLoop(ChatSession* session, LineReader* reader) : session_(session), reader_(reader) {}

  absl::Status Run() {
    while (std::optional<std::string> line = reader_->Read("> ")) {
      const absl::string_view text = absl::StripAsciiWhitespace(*line);
      if (text.empty()) continue;
      if (text == "/quit") return absl::OkStatus();
      absl::Status status = text.front() == '/' ? Command(text) : Ask(*line);
      if (status.ok()) continue;
      if (!reader_->interactive()) return status;
      std::cerr << "osdn-tools: " << status.message() << '\n';
    }
    if (reader_->interactive()) std::cout << '\n';
    return absl::OkStatus();
  }

 private:
  absl::Status Command(absl::string_view text) {
    const std::pair<absl::string_view, absl::string_view> parts =
        absl::StrSplit(text, absl::MaxSplits(' ', 1));
    if (parts.first == "/help") {
      std::cout << kHelp << std::flush;
      return absl::OkStatus();
    }
    if (parts.first == "/reset") {
      session_->Reset();
      return absl::OkStatus();
    }
    if (parts.first == "/system") {
      return session_->SetSystem(std::string(absl::StripAsciiWhitespace(parts.second)));
    }
    return absl::InvalidArgumentError(
        absl::StrCat("unknown command ", parts.first, "; /help lists them"));
  }

  absl::Status Ask(const std::string& user) {
    absl::StatusOr<v1::Finished> finished =
        session_->Ask(user, [](std::string_view text) { std::cout << text << std::flush; });
    std::cout << std::endl;
    if (absl::IsCancelled(finished.status()) && reader_->interactive()) {
      std::cerr << "[stopped]\n";
      return absl::OkStatus();
    }
    if (!finished.ok()) return finished.status();
    if (reader_->interactive()) std::cerr << '[' << StatsLine(*finished) << "]\n";
    return absl::OkStatus();
  }

  ChatSession* const session_;
  LineReader* const reader_;
};

absl::Status RunChat(const ChatFlags& flags) {
  const SignalBlock block({SIGINT});
  absl::StatusOr<std::shared_ptr<grpc::Channel>> channel = OpenChannel(flags.server);
  if (!channel.ok()) return channel.status();
  const InferenceClient client(*std::move(channel), flags.server.address);
  ChatSession session(&client, flags.generation);
  LineReader reader;
  const bool interactive = reader.interactive();
  const InterruptWatcher watcher(block, [&session, interactive] {
    if (session.Cancel() || !interactive) return;
    std::cerr << "\n(Ctrl-D or /quit to leave)\n> " << std::flush;
  });

  absl::StatusOr<v1::GetModelResponse> model = session.Connect();
  if (!model.ok()) return model.status();
  if (absl::Status status = session.SetSystem(flags.system); !status.ok()) return status;
  if (interactive) {
    std::cout << "Chatting with " << model->name() << " at " << flags.server.address
              << "; /help for commands.\n";
  }
  return ChatLoop(&session, &reader).Run();
}

}  // namespace

void AddChatCommand(CLI::App& app, Action* action) {
  CLI::App* command = app.add_subcommand("chat", "Talk with a served model");
  auto flags = std::make_shared<ChatFlags>();
  AddServerFlags(command, &flags->server)->required();
  command->add_option("--system", flags->system, "System message");
  AddGenerationFlags(command, &flags->generation);
  command->callback([flags, action] { *action = [flags] { return RunChat(*flags); }; });
}

}  // namespace osdn::tools
