// osdn-tools key: a new API key for a client, and its entry for the server's file.
#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/api_keys.h"
#include "tools/command.h"

namespace osdn::tools {
namespace {

struct KeyFlags {
  std::string name;
  std::vector<std::string> scopes = {"generate", "state"};
};

absl::Status RunKey(const KeyFlags& flags) {
  const absl::StatusOr<NewApiKey> made = MakeApiKey();
  if (!made.ok()) return made.status();
  const std::string entry =
      absl::StrCat("  - name: ", flags.name, "\n    sha256: ", made->sha256, "\n    scopes: [",
                   absl::StrJoin(flags.scopes, ", "), "]\n");
  // What the server would say of it, now and not when it is there.
  const auto parsed = ParseApiKeys(absl::StrCat("keys:\n", entry), "key");
  if (!parsed.ok()) return parsed.status();
  std::cerr << "The key, which is told only now; give it to the client:\n";
  std::cout << made->key << '\n';
  std::cerr << "Its entry in the file of --auth-keys-file, below \"keys:\":\n" << entry;
  return absl::OkStatus();
}

}  // namespace

void AddKeyCommand(CLI::App& app, Action* action) {
  CLI::App* command = app.add_subcommand("key", "Make an API key for a client of osdn-server");
  auto flags = std::make_shared<KeyFlags>();
  command->add_option("NAME", flags->name, "Whose key it is")->required();
  command->add_option("--scopes", flags->scopes, "generate, state, admin")
      ->delimiter(',')
      ->capture_default_str();
  command->callback([flags, action] { *action = [flags] { return RunKey(*flags); }; });
}

}  // namespace osdn::tools
