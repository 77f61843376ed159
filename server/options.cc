#include "server/options.h"

#include <limits>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/include/tensor.h"
#include "server/address.h"

namespace osdn {
namespace {

constexpr int64_t kMaxTokens = std::numeric_limits<int32_t>::max();

template <class... Ts>
struct Overloaded : Ts... {
  using Ts::operator()...;
};
template <class... Ts>
Overloaded(Ts...) -> Overloaded<Ts...>;

std::vector<OptionSpec> MakeTable() {
  using O = ServerOptions;
  return {
      {"--model", "model", "DIR", "model directory, as `osdn-tools convert` writes it (required)",
       TextOption{&O::model_dir}},
      {"--verify-checksums", "verify_checksums", "BOOL",
       "compare the sha256 of every model file with model.yaml before serving",
       BoolOption{&O::verify_checksums}},
      {"--backend", "backend", "NAME",
       "where to compute; auto takes cuda when its module finds a device, else cpu; reference is "
       "slow and for comparing",
       ChoiceOption{&O::backend, {"auto", "cpu", "cuda", "reference"}}},
      {"--threads", "threads", "N", "threads of the cpu backend; 0 is one a physical core",
       IntOption{&O::threads, 0, 1024}},
      {"--cpu-isa", "cpu_isa", "NAME",
       "instruction set of the cpu backend: auto is this CPU's best; a lower one gives the same "
       "bits "
       "on different machines",
       ChoiceOption{&O::cpu_isa,
                    {"auto", "amx", "avx512_bf16", "avx512", "avx2", "neon", "baseline"}}},
      {"--grpc-address", "grpc.address", "HOST:PORT",
       "where to listen for gRPC; port 0 takes a free one, which the log names",
       TextOption{&O::grpc_address}},
      {"--insecure", "grpc.insecure", "BOOL",
       "allow plaintext on an address that other machines can reach", BoolOption{&O::insecure}},
      {"--max-message-bytes", "grpc.max_message_bytes", "BYTES",
       "largest request message; a larger one is RESOURCE_EXHAUSTED",
       IntOption{&O::max_message_bytes, 1024, 1 << 30}},
      {"--keepalive-time", "grpc.keepalive_time", "DURATION",
       "ping a silent client this often; one that does not answer within 20s is gone and its "
       "requests end",
       DurationOption{&O::keepalive_time, absl::Seconds(1), absl::Hours(24)}},
      {"--tls-cert-file", "tls.cert_file", "FILE",
       "certificate chain (PEM) of every port, read again when it changes; `none` is plaintext",
       TextOption{&O::tls_cert_file}},
      {"--tls-key-file", "tls.key_file", "FILE", "private key (PEM) of the certificate",
       TextOption{&O::tls_key_file}},
      {"--tls-client-ca-file", "tls.client_ca_file", "FILE",
       "clients must show a certificate that one of these (PEM) signed; `none` asks for none",
       TextOption{&O::tls_client_ca_file}},
      {"--auth-keys-file", "auth.keys_file", "FILE",
       "API keys (YAML), read again when it changes; `none` lets everybody call",
       TextOption{&O::auth_keys_file}},
      {"--http-address", "http.address", "HOST:PORT",
       "where to listen for HTTP: OpenAI's API and the chat page; port 0 takes a free one, which "
       "the log names; `none` is off",
       TextOption{&O::http_address}},
      {"--http-max-connections", "http.max_connections", "N",
       "connections, and so streams, at once; beyond, those without a request give way, then 503",
       IntOption{&O::http_max_connections, 1, 65536}},
      {"--http-max-body-bytes", "http.max_body_bytes", "BYTES",
       "largest request body; a larger one is 413",
       IntOption{&O::http_max_body_bytes, 1024, 1 << 30}},
      {"--http-read-timeout", "http.read_timeout", "DURATION",
       "for the head of a request, and again for its body, to arrive",
       DurationOption{&O::http_read_timeout, absl::Milliseconds(100), absl::Hours(1)}},
      {"--http-idle-timeout", "http.idle_timeout", "DURATION",
       "a connection without a request is closed after so long",
       DurationOption{&O::http_idle_timeout, absl::Seconds(1), absl::Hours(24)}},
      {"--http-write-timeout", "http.write_timeout", "DURATION",
       "a client that takes nothing of its answer for so long is gone",
       DurationOption{&O::http_write_timeout, absl::Milliseconds(100), absl::Hours(24)}},
      {"--http-cors-origins", "http.cors_origins", "ORIGINS",
       "web pages of these origins may call, separated by commas, e.g. https://chat.example; `*` "
       "is "
       "all of them, `none` only the server's own",
       TextOption{&O::http_cors_origins}},
      {"--max-slots", "scheduler.max_slots", "N",
       "sequences that run at once; each holds one state, whose size the log names",
       IntOption{&O::max_slots, 1, 65536}},
      {"--max-prefill-tokens", "scheduler.max_prefill_tokens", "N",
       "prompt tokens read in one step while others decode: more is faster to the first token, "
       "less "
       "is smoother between tokens",
       IntOption{&O::max_prefill_tokens, kernels::kChunk, 65536}},
      {"--max-queued-requests", "scheduler.max_queued_requests", "N",
       "requests that may wait for a slot; beyond, RESOURCE_EXHAUSTED",
       IntOption{&O::max_queued_requests, 1, 1'000'000}},
      {"--max-queued-tokens", "scheduler.max_queued_tokens", "N",
       "prompt tokens of all waiting requests together, so also the longest prompt",
       IntOption{&O::max_queued_tokens, 1, kMaxTokens}},
      {"--max-swapped", "scheduler.max_swapped", "N",
       "sequences of readers that do not read which may give up their slots to waiting ones",
       IntOption{&O::max_swapped, 0, 1 << 20}},
      {"--swap-after", "scheduler.swap_after", "DURATION",
       "a reader that does not read for so long gives up its slot if others wait",
       DurationOption{&O::swap_after, absl::Milliseconds(1), absl::Hours(24)}},
      {"--ageing", "scheduler.ageing", "DURATION",
       "a request rises by one priority class for every so long in the queue",
       DurationOption{&O::ageing, absl::Milliseconds(1), absl::Hours(24)}},
      {"--prefix-cache-bytes", "prefix_cache.max_bytes", "BYTES",
       "host memory for states of prompts that were read, so that what begins alike is not read "
       "again; 0 is off",
       IntOption{&O::prefix_cache_bytes, 0, int64_t{1} << 50}},
      {"--prefix-cache-interval", "prefix_cache.interval", "N",
       "a state is kept every so many tokens of a long prompt; a multiple of 64",
       IntOption{&O::prefix_cache_interval, kernels::kChunk, 1 << 20}},
      {"--state-dir", "state.dir", "DIR",
       "where saved states are kept, a file each; `memory` keeps them until the server ends",
       TextOption{&O::state_dir}},
      {"--state-max-bytes", "state.max_bytes", "BYTES",
       "of all saved states; beyond, saving is RESOURCE_EXHAUSTED",
       IntOption{&O::state_max_bytes, 0, int64_t{1} << 50}},
      {"--state-max-count", "state.max_count", "N",
       "saved states; beyond, saving is RESOURCE_EXHAUSTED",
       IntOption{&O::state_max_count, 0, 10'000'000}},
      {"--state-max-transit-bytes", "state.max_transit_bytes", "BYTES",
       "host memory for states that calls bring, take or leave; beyond, RESOURCE_EXHAUSTED",
       IntOption{&O::state_max_transit_bytes, 0, int64_t{1} << 50}},
      {"--state-ttl", "state.ttl", "DURATION",
       "a saved state is deleted after so long, unless its request says sooner",
       DurationOption{&O::state_ttl, absl::Seconds(1), absl::Hours(24 * 3650)}},
      {"--state-key-file", "state.key_file", "FILE",
       "secret of 32 bytes or more: states are signed with it, and none without its signature is "
       "taken; `none` signs nothing",
       TextOption{&O::state_key_file}},
      {"--state-redis-address", "state.redis.address", "HOST:PORT",
       "keep saved states in Redis, which several servers may share; `none` keeps them in "
       "--state-dir",
       TextOption{&O::state_redis_address}},
      {"--state-redis-prefix", "state.redis.prefix", "NAME",
       "what the names of its keys begin with: servers with the same one share their states",
       TextOption{&O::state_redis_prefix}},
      {"--state-redis-user", "state.redis.user", "NAME", "whom the password is of",
       TextOption{&O::state_redis_user}},
      {"--state-redis-password-file", "state.redis.password_file", "FILE",
       "file with the password; `none` sends none", TextOption{&O::state_redis_password_file}},
      {"--state-redis-timeout", "state.redis.timeout", "DURATION",
       "for connecting and for each command; then the call is UNAVAILABLE",
       DurationOption{&O::state_redis_timeout, absl::Milliseconds(10), absl::Minutes(1)}},
      {"--max-tokens-default", "generation.max_tokens_default", "N",
       "stop.max_tokens of a request that does not set it",
       IntOption{&O::max_tokens_default, 1, kMaxTokens}},
      {"--max-tokens-limit", "generation.max_tokens_limit", "N",
       "largest stop.max_tokens a request may ask for",
       IntOption{&O::max_tokens_limit, 1, kMaxTokens}},
      {"--drain-propagation", "drain.propagation", "DURATION",
       "after SIGTERM, keep accepting for so long while health says NOT_SERVING, so that balancers "
       "notice; SIGINT skips it",
       DurationOption{&O::drain_propagation, absl::ZeroDuration(), absl::Hours(1)}},
      {"--drain-timeout", "drain.timeout", "DURATION",
       "then refuse new calls and let running ones finish for so long",
       DurationOption{&O::drain_timeout, absl::ZeroDuration(), absl::Hours(24)}},
      {"--log-level", "log.level", "LEVEL", "debug adds a line a request, never its content",
       ChoiceOption{&O::log_level, {"debug", "info", "warning", "error"}}},
      {"--log-format", "log.format", "FORMAT", "json is an object a line",
       ChoiceOption{&O::log_format, {"text", "json"}}},
  };
}

absl::Status Wanted(absl::string_view text, absl::string_view wanted) {
  return absl::InvalidArgumentError(absl::StrCat("\"", text, "\" is not ", wanted));
}

absl::Status SetBool(const BoolOption& option, absl::string_view text, ServerOptions* options) {
  if (text != "true" && text != "false") return Wanted(text, "true or false");
  options->*option.field = text == "true";
  return absl::OkStatus();
}

absl::Status SetInt(const IntOption& option, absl::string_view text, ServerOptions* options) {
  int64_t value = 0;
  if (!absl::SimpleAtoi(text, &value)) return Wanted(text, "a whole number");
  if (value < option.min || value > option.max) {
    return absl::InvalidArgumentError(
        absl::StrCat(value, " is outside [", option.min, ", ", option.max, "]"));
  }
  options->*option.field = value;
  return absl::OkStatus();
}

absl::Status SetDuration(const DurationOption& option, absl::string_view text,
                         ServerOptions* options) {
  absl::Duration value;
  if (!absl::ParseDuration(text, &value)) {
    return Wanted(text, "a duration with its unit, e.g. 500ms, 30s or 2m");
  }
  if (value < option.min || value > option.max) {
    return absl::InvalidArgumentError(absl::StrCat(absl::FormatDuration(value), " is outside [",
                                                   absl::FormatDuration(option.min), ", ",
                                                   absl::FormatDuration(option.max), "]"));
  }
  options->*option.field = value;
  return absl::OkStatus();
}

absl::Status SetChoice(const ChoiceOption& option, absl::string_view text, ServerOptions* options) {
  for (absl::string_view choice : option.choices) {
    if (text != choice) continue;
    options->*option.field = std::string(text);
    return absl::OkStatus();
  }
  return Wanted(text, absl::StrCat("one of ", absl::StrJoin(option.choices, ", ")));
}

// `anywhere`: other machines may reach it; else `remedy` says what would let them.
void CheckAddress(absl::string_view flag, const std::string& text, bool anywhere,
                  absl::string_view remedy, std::vector<std::string>* problems) {
  const absl::StatusOr<Address> address = ParseAddress(text);
  if (!address.ok()) {
    problems->push_back(absl::StrCat(flag, ": ", address.status().message()));
  } else if (!address->is_loopback() && !anywhere) {
    problems->push_back(absl::StrCat(
        flag, ": ", text,
        " can be reached from other machines, and the connection is not encrypted: ", remedy,
        ", or listen on 127.0.0.1"));
  }
}

absl::string_view SourceName(OptionSource source) {
  switch (source) {
    case OptionSource::kDefault:
      return "default";
    case OptionSource::kFile:
      return "file";
    case OptionSource::kFlag:
      return "flag";
  }
  return "unknown";
}

}  // namespace

absl::Span<const OptionSpec> OptionTable() {
  static const std::vector<OptionSpec> table = MakeTable();
  return table;
}

absl::Status SetOption(const OptionSpec& spec, absl::string_view text, ServerOptions* options) {
  return std::visit(
      Overloaded{[&](const TextOption& option) {
                   if (text.empty()) return absl::InvalidArgumentError("the value is empty");
                   options->*option.field = std::string(text);
                   return absl::OkStatus();
                 },
                 [&](const ChoiceOption& option) { return SetChoice(option, text, options); },
                 [&](const BoolOption& option) { return SetBool(option, text, options); },
                 [&](const IntOption& option) { return SetInt(option, text, options); },
                 [&](const DurationOption& option) { return SetDuration(option, text, options); }},
      spec.type);
}

std::string OptionText(const OptionSpec& spec, const ServerOptions& options) {
  return std::visit(
      Overloaded{[&](const TextOption& option) { return options.*option.field; },
                 [&](const ChoiceOption& option) { return options.*option.field; },
                 [&](const BoolOption& option) {
                   return std::string(options.*option.field ? "true" : "false");
                 },
                 [&](const IntOption& option) { return absl::StrCat(options.*option.field); },
                 [&](const DurationOption& option) {
                   return absl::FormatDuration(options.*option.field);
                 }},
      spec.type);
}

std::string OptionRange(const OptionSpec& spec) {
  return std::visit(
      Overloaded{[](const TextOption&) { return std::string(); },
                 [](const ChoiceOption& option) { return absl::StrJoin(option.choices, "|"); },
                 [](const BoolOption&) { return std::string("true|false"); },
                 [](const IntOption& option) { return absl::StrCat(option.min, "..", option.max); },
                 [](const DurationOption& option) {
                   return absl::StrCat(absl::FormatDuration(option.min), "..",
                                       absl::FormatDuration(option.max));
                 }},
      spec.type);
}

absl::Status CheckOptions(const ServerOptions& options) {
  std::vector<std::string> problems;
  if (options.model_dir.empty()) {
    problems.push_back("--model is required: the directory that `osdn-tools convert` wrote");
  }
  CheckAddress("--grpc-address", options.grpc_address, options.insecure || options.tls(),
               "give --tls-cert-file and --tls-key-file, or --insecure if plaintext is wanted",
               &problems);
  if (options.http_address != kOptionNone) {
    CheckAddress("--http-address", options.http_address, options.insecure || options.tls(),
                 "give --tls-cert-file and --tls-key-file, or --insecure if plaintext is wanted",
                 &problems);
  }
  if ((options.tls_cert_file == kOptionNone) != (options.tls_key_file == kOptionNone)) {
    problems.push_back("--tls-cert-file and --tls-key-file: one without the other");
  }
  if (options.tls_client_ca_file != kOptionNone && !options.tls()) {
    problems.push_back("--tls-client-ca-file: wants --tls-cert-file and --tls-key-file too");
  }
  if (options.max_tokens_default > options.max_tokens_limit) {
    problems.push_back(absl::StrCat("--max-tokens-default: ", options.max_tokens_default,
                                    " is more than --max-tokens-limit ", options.max_tokens_limit));
  }
  if (options.state_redis_address != kOptionNone) {
    const absl::StatusOr<Address> redis = ParseAddress(options.state_redis_address);
    if (!redis.ok()) {
      problems.push_back(absl::StrCat("--state-redis-address: ", redis.status().message()));
    }
    if (options.state_dir != kStatesInMemory) {
      problems.push_back("--state-redis-address and --state-dir: states have one place only");
    }
  }
  if (options.prefix_cache_interval % kernels::kChunk != 0) {
    problems.push_back(absl::StrCat("--prefix-cache-interval: ", options.prefix_cache_interval,
                                    " is not a multiple of ", kernels::kChunk));
  }
  if (problems.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrJoin(problems, "\n"));
}

std::vector<std::string> DescribeOptions(const ResolvedOptions& options) {
  std::vector<std::string> lines;
  const absl::Span<const OptionSpec> table = OptionTable();
  for (size_t i = 0; i < table.size(); ++i) {
    lines.push_back(absl::StrCat(table[i].path, " = ", OptionText(table[i], options.values), " (",
                                 SourceName(options.sources[i]), ")"));
  }
  return lines;
}

}  // namespace osdn
