// The subcommands of osdn-tools. Each Add*Command declares one subcommand with its options; when
// the command line names it, parsing puts its work into `*action`, which main then runs. Exit
// codes: 0 when the action returns OK, 1 when it fails, 2 for a command line that does not parse.
#ifndef OSDN_TOOLS_COMMAND_H_
#define OSDN_TOOLS_COMMAND_H_

#include <functional>

#include "absl/status/status.h"

namespace CLI {
class App;
}  // namespace CLI

namespace osdn::tools {

using Action = std::function<absl::Status()>;

void AddConvertCommand(CLI::App& app, Action* action);
void AddExportCommand(CLI::App& app, Action* action);
void AddVerifyCommand(CLI::App& app, Action* action);
void AddQuantizeCommand(CLI::App& app, Action* action);
void AddSynthCommand(CLI::App& app, Action* action);
void AddInspectCommand(CLI::App& app, Action* action);
void AddScoreCommand(CLI::App& app, Action* action);
void AddBenchCommand(CLI::App& app, Action* action);
void AddEvalCommand(CLI::App& app, Action* action);
void AddGenerateCommand(CLI::App& app, Action* action);
void AddChatCommand(CLI::App& app, Action* action);
void AddStateCommand(CLI::App& app, Action* action);
void AddCompilePromptCommand(CLI::App& app, Action* action);
void AddHealthCommand(CLI::App& app, Action* action);
void AddKeyCommand(CLI::App& app, Action* action);

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_COMMAND_H_
