// osdn-tools state inspect | verify
#include <CLI/CLI.hpp>
#include <iostream>
#include <limits>
#include <memory>
#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/model_config.h"
#include "engine/snapshot.h"
#include "nlohmann/json.hpp"
#include "server/state_access.h"
#include "tools/command.h"
#include "tools/file_util.h"

namespace osdn::tools {
namespace {

struct StateFlags {
  std::string file;
  std::string model_dir;
  std::string key_file;
  bool json = false;
};

// The blob of an exported file or of one in a server's state.dir, which has three lines before it.
absl::StatusOr<std::string> ReadBlob(const std::string& path) {
  constexpr absl::string_view kStoreMagic = "OSDN state file ";
  absl::StatusOr<std::string> data = ReadSmallFile(path, std::numeric_limits<size_t>::max());
  if (!data.ok() || absl::string_view(*data).substr(0, kStoreMagic.size()) != kStoreMagic) {
    return data;
  }
  size_t at = 0;
  for (int line = 0; line < 3; ++line) {
    at = data->find('\n', at);
    if (at == data->npos) return absl::DataLossError(absl::StrCat(path, ": truncated"));
    ++at;
  }
  return data->substr(at);
}

absl::Status Naming(const std::string& path, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
}

void Show(const SnapshotInfo& info, bool as_json) {
  const nlohmann::ordered_json fields = {
      {"version", info.version},
      {"bytes", info.blob_bytes},
      {"sha256", info.sha256},
      {"signed", info.is_signed},
      {"model_id", info.identity.model_id},
      {"dtype", info.identity.dtype},
      {"layout", info.identity.layout},
      {"state_bytes", info.identity.state_bytes},
      {"logits_bytes", info.logits_bytes},
      {"position", info.position},
      {"pending_token", info.pending_token},
      {"seed", info.seed},
      {"random_index", info.random_index},
      {"history_hash", info.history_hash},
      {"recent_tokens", info.recent_tokens},
      {"open_role", info.open_role},
  };
  if (as_json) {
    constexpr bool kAsciiOnly = true;  // for the terminal's sake, as below
    std::cout << fields.dump(2, ' ', kAsciiOnly, nlohmann::json::error_handler_t::replace) << '\n';
    return;
  }
  for (const auto& [name, value] : fields.items()) {
    // A file may say anything, also what a terminal would take for a command.
    std::cout << name << ": "
              << (value.is_string() ? absl::CHexEscape(value.get<std::string>()) : value.dump())
              << '\n';
  }
}

absl::Status RunInspect(const StateFlags& flags) {
  const absl::StatusOr<std::string> blob = ReadBlob(flags.file);
  if (!blob.ok()) return blob.status();
  const absl::StatusOr<SnapshotInfo> info = InspectSnapshot(*blob);
  if (!info.ok()) return Naming(flags.file, info.status());
  Show(*info, flags.json);
  return absl::OkStatus();
}

absl::Status RunVerify(const StateFlags& flags) {
  const absl::StatusOr<std::string> blob = ReadBlob(flags.file);
  if (!blob.ok()) return blob.status();
  const absl::StatusOr<ModelConfig> config = LoadModelConfig(flags.model_dir);
  if (!config.ok()) return config.status();
  std::string key;
  if (!flags.key_file.empty()) {
    absl::StatusOr<std::string> read = ReadStateKey(flags.key_file);
    if (!read.ok()) return read.status();
    key = *std::move(read);
  }
  const absl::StatusOr<SequenceSnapshot> snapshot = DecodeSnapshot(*blob, IdentityOf(*config), key);
  if (!snapshot.ok()) return Naming(flags.file, snapshot.status());
  std::cout << flags.file << ": whole" << (key.empty() ? "" : ", signed with this key")
            << ", goes on from position " << snapshot->image->position << " of model "
            << config->name << '\n';
  return absl::OkStatus();
}

}  // namespace

void AddStateCommand(CLI::App& app, Action* action) {
  CLI::App* state = app.add_subcommand("state", "Look into files of exported or saved states");
  state->require_subcommand(1);
  auto flags = std::make_shared<StateFlags>();
  CLI::App* inspect = state->add_subcommand("inspect", "Check the checksum, show what it says");
  inspect->add_option("FILE", flags->file, "State file")->required();
  inspect->add_flag("--json", flags->json, "As one JSON object");
  inspect->callback([flags, action] { *action = [flags] { return RunInspect(*flags); }; });
  CLI::App* verify =
      state->add_subcommand("verify", "Fail unless a server of this model would go on from it");
  verify->add_option("FILE", flags->file, "State file")->required();
  verify->add_option("--model", flags->model_dir, "Model directory")->required();
  verify->add_option("--key-file", flags->key_file, "It must be signed with this key too");
  verify->callback([flags, action] { *action = [flags] { return RunVerify(*flags); }; });
}

}  // namespace osdn::tools
