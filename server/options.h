// Every option of osdn-server, declared once: the table in options.cc serves flags, the YAML file,
// help, defaults and validation. Precedence: flag, then file, then default.
#ifndef OSDN_SERVER_OPTIONS_H_
#define OSDN_SERVER_OPTIONS_H_

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"

namespace osdn {

inline constexpr char kStatesInMemory[] = "memory";  // as state_dir
inline constexpr char kOptionNone[] = "none";        // of options that may be without

// Values of all options; the initialisers are the defaults. Help and ranges are in OptionTable().
struct ServerOptions {
  std::string model_dir;
  bool verify_checksums = true;
  std::string backend = "auto";
  int64_t threads = 0;
  std::string cpu_isa = "auto";
  std::string grpc_address = "127.0.0.1:50051";
  bool insecure = false;
  std::string tls_cert_file = kOptionNone;
  std::string tls_key_file = kOptionNone;
  std::string tls_client_ca_file = kOptionNone;
  std::string auth_keys_file = kOptionNone;
  int64_t max_message_bytes = 4 << 20;
  absl::Duration keepalive_time = absl::Seconds(60);
  std::string http_address = "127.0.0.1:8080";
  int64_t http_max_connections = 512;
  int64_t http_max_body_bytes = 4 << 20;
  absl::Duration http_read_timeout = absl::Seconds(30);
  absl::Duration http_idle_timeout = absl::Seconds(30);
  absl::Duration http_write_timeout = absl::Seconds(60);
  std::string http_cors_origins = kOptionNone;
  int64_t max_slots = 32;
  int64_t max_prefill_tokens = 256;
  int64_t max_queued_requests = 256;
  int64_t max_queued_tokens = 1 << 20;
  int64_t max_swapped = 64;
  absl::Duration swap_after = absl::Milliseconds(200);
  absl::Duration ageing = absl::Seconds(10);
  int64_t prefix_cache_bytes = int64_t{256} << 20;
  int64_t prefix_cache_interval = 512;
  std::string state_dir = kStatesInMemory;
  int64_t state_max_bytes = int64_t{1} << 30;
  int64_t state_max_count = 10'000;
  int64_t state_max_transit_bytes = int64_t{1} << 30;
  absl::Duration state_ttl = absl::Hours(24);
  std::string state_key_file = kOptionNone;
  std::string state_redis_address = kOptionNone;
  std::string state_redis_prefix = "osdn";
  std::string state_redis_user = "default";
  std::string state_redis_password_file = kOptionNone;
  absl::Duration state_redis_timeout = absl::Seconds(2);
  int64_t max_tokens_default = 256;
  int64_t max_tokens_limit = 32768;
  absl::Duration drain_propagation = absl::Seconds(5);
  absl::Duration drain_timeout = absl::Seconds(30);
  std::string log_level = "info";
  std::string log_format = "text";

  bool tls() const { return tls_cert_file != kOptionNone; }
};

// What an option holds and which values it takes.
struct TextOption {
  std::string ServerOptions::*field;
};
struct ChoiceOption {
  std::string ServerOptions::*field;
  std::vector<absl::string_view> choices;
};
struct BoolOption {
  bool ServerOptions::*field;
};
struct IntOption {
  int64_t ServerOptions::*field;
  int64_t min;
  int64_t max;
};
struct DurationOption {
  absl::Duration ServerOptions::*field;
  absl::Duration min;
  absl::Duration max;
};

struct OptionSpec {
  absl::string_view flag;        // "--max-slots"
  absl::string_view path;        // in the YAML file: "scheduler.max_slots"
  absl::string_view value_name;  // for help: "N"
  absl::string_view help;
  std::variant<TextOption, ChoiceOption, BoolOption, IntOption, DurationOption> type;
};

// In the order of --help and of the start-up log.
absl::Span<const OptionSpec> OptionTable();

// Where a value came from.
enum class OptionSource : uint8_t { kDefault, kFile, kFlag };

// Values and their sources; `sources[i]` is that of OptionTable()[i].
struct ResolvedOptions {
  ServerOptions values;
  std::vector<OptionSource> sources =
      std::vector<OptionSource>(OptionTable().size(), OptionSource::kDefault);
};

// Parses `text` into the option's field. INVALID_ARGUMENT with the value and what is wanted,
// without the option's name (the caller knows how the user spelt it).
absl::Status SetOption(const OptionSpec& spec, absl::string_view text, ServerOptions* options);

// The option's value as SetOption takes it.
std::string OptionText(const OptionSpec& spec, const ServerOptions& options);
// Which values it takes: "1..65536", "auto|cpu|cuda|reference".
std::string OptionRange(const OptionSpec& spec);

// What no single option can tell: required options, addresses, options that contradict each other.
// All problems at once.
absl::Status CheckOptions(const ServerOptions& options);

// One line an option: path = value (source).
std::vector<std::string> DescribeOptions(const ResolvedOptions& options);

// Options from a YAML text, `file` being its name for messages. Options whose source is kFlag keep
// their value (but the file's value is checked all the same). INVALID_ARGUMENT listing every
// problem at once: unknown and repeated keys, values out of range, each with file and line.
absl::Status ApplyYaml(absl::string_view text, absl::string_view file, ResolvedOptions* options);

struct CommandLine {
  enum class Action : uint8_t {
    kServe,
    kCheckConfig,  // --check-config: options are valid, nothing else is wanted
    kShowText,     // --help, --version: print `text`
  };
  Action action = Action::kServe;
  std::string text;
  std::string config_file;
  ResolvedOptions options;
};

// Flags, the file named by --config, defaults. INVALID_ARGUMENT naming option, value and range;
// NOT_FOUND for the file.
absl::StatusOr<CommandLine> ParseCommandLine(int argc, const char* const* argv);

}  // namespace osdn

#endif  // OSDN_SERVER_OPTIONS_H_
