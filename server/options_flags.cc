// The command line side of server/options.h.
#include <CLI/CLI.hpp>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "server/options.h"
#include "server/version.h"

namespace osdn {
namespace {

constexpr char kFooter[] = R"(
Every option may stand in the YAML file under the path in brackets; flags win over the file.
Exit codes: 0 clean shutdown, 1 runtime failure (model, backend, port), 2 wrong usage or
configuration, 130 second signal while draining.)";

std::string HelpText(const OptionSpec& spec) {
  const std::string text = OptionText(spec, ServerOptions{});
  const std::string range = OptionRange(spec);
  return absl::StrCat(spec.help, " [", spec.path, text.empty() ? "" : "; default ", text,
                      range.empty() ? "" : "; ", range, "]");
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::error_code ignored;
  std::ifstream stream(path, std::ios::binary);
  if (!stream || std::filesystem::is_directory(path, ignored)) {
    return absl::NotFoundError(absl::StrCat("--config: cannot read ", path));
  }
  return std::string{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

// The flags as given; nullopt where one was not.
struct Flags {
  std::vector<std::optional<std::string>> values;
  std::string config_file;
  bool check_config = false;
  bool version = false;
};

void AddFlags(CLI::App* app, Flags* flags) {
  app->add_option("--config", flags->config_file, "YAML file of options")->type_name("FILE");
  const absl::Span<const OptionSpec> table = OptionTable();
  flags->values.resize(table.size());
  for (size_t i = 0; i < table.size(); ++i) {
    std::optional<std::string>* value = &flags->values[i];
    const auto set = [value](const CLI::results_t& results) {
      *value = results.empty() ? "" : results.front();
      return true;
    };
    CLI::Option* option = app->add_option(std::string(table[i].flag), set, HelpText(table[i]));
    option->type_name(std::string(table[i].value_name));
    // `--insecure` alone means true.
    if (std::holds_alternative<BoolOption>(table[i].type)) option->expected(0, 1);
  }
  app->add_flag("--check-config", flags->check_config,
                "check options and file, print what would be in force, and exit");
  app->add_flag("--version", flags->version, "print the version and exit");
  app->footer(kFooter);
}

absl::Status ApplyFlags(const Flags& flags, ResolvedOptions* options) {
  const absl::Span<const OptionSpec> table = OptionTable();
  for (size_t i = 0; i < table.size(); ++i) {
    if (!flags.values[i].has_value()) continue;
    std::string text = *flags.values[i];
    if (text.empty() && std::holds_alternative<BoolOption>(table[i].type)) text = "true";
    if (absl::Status s = SetOption(table[i], text, &options->values); !s.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(table[i].flag, ": ", s.message()));
    }
    options->sources[i] = OptionSource::kFlag;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<CommandLine> ParseCommandLine(int argc, const char* const* argv) {
  CommandLine result;
  Flags flags;
  CLI::App app("Serves an OSDN language model over gRPC.", "osdn-server");
  try {
    AddFlags(&app, &flags);
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    result.action = CommandLine::Action::kShowText;
    result.text = app.help();
    return result;
  } catch (const CLI::Error& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(error.what(), "\nosdn-server --help lists them."));
  }
  if (flags.version) {
    result.action = CommandLine::Action::kShowText;
    result.text = absl::StrCat("osdn-server ", Version(), "\n");
    return result;
  }
  if (flags.check_config) result.action = CommandLine::Action::kCheckConfig;
  result.config_file = flags.config_file;

  if (absl::Status s = ApplyFlags(flags, &result.options); !s.ok()) return s;
  if (!flags.config_file.empty()) {
    absl::StatusOr<std::string> text = ReadFile(flags.config_file);
    if (!text.ok()) return text.status();
    if (absl::Status s = ApplyYaml(*text, flags.config_file, &result.options); !s.ok()) return s;
  }
  if (absl::Status s = CheckOptions(result.options.values); !s.ok()) return s;
  return result;
}

}  // namespace osdn
