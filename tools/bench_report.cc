#include "tools/bench_report.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace osdn::tools {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kGiga = 1e9;
constexpr double kMega = 1e6;

Json OrNull(std::optional<double> value) { return value.has_value() ? Json(*value) : Json(); }

// Billions a second, or null.
Json Rate(const std::vector<double>& samples) {
  return samples.empty() ? Json() : Json(Median(samples) / kGiga);
}

Json OpsJson(const CaseResult& result) {
  Json ops = Json::array();
  for (const OpShare& op : result.ops) {
    ops.push_back(
        {{"op", op.op}, {"share", op.share}, {"ms", op.milliseconds}, {"calls", op.calls}});
  }
  return ops;
}

// How the batch's first position compares with this one, by the repeats' pairs: latency over
// latency.
double PositionRatio(const BenchResult& result, const CaseResult& measured) {
  for (const CaseResult& first : result.decode) {
    if (first.batch == measured.batch) return MedianRatio(measured.seconds, first.seconds);
  }
  return 0;
}

void AddAgainst(const CaseResult& result, Json* json) {
  if (!result.against_ratio().has_value()) return;
  (*json)["against_tokens_per_s"] = result.tokens / Median(result.against_seconds);
  (*json)["against_ratio"] = *result.against_ratio();
}

std::string Percent(std::optional<double> value) {
  constexpr double kHundred = 100;
  return value.has_value() ? absl::StrFormat("%.1f%%", *value * kHundred) : "-";
}

std::string GigaText(const std::vector<double>& samples, const char* unit) {
  return samples.empty() ? "not measured"
                         : absl::StrFormat("%.1f %s", Median(samples) / kGiga, unit);
}

std::string AgainstText(const CaseResult& result) {
  const std::optional<double> ratio = result.against_ratio();
  return ratio.has_value() ? absl::StrFormat("  %.3fx the other", *ratio) : "";
}

// "mixer 12.3%, linear 5632x1024 40.0%, ..., outside ops 0.4%"
std::string OpsText(const CaseResult& result) {
  std::string text;
  for (const OpShare& op : result.ops) {
    absl::StrAppend(&text, op.op, " ", Percent(op.share), ", ");
  }
  return absl::StrCat(text, "outside ops ", Percent(result.outside_ops));
}

void AppendMachine(const BenchResult& result, std::string* text) {
  absl::StrAppendFormat(text, "backend          %s\n", result.backend);
  if (!result.no_ceilings.empty()) {
    absl::StrAppendFormat(text, "ceilings         none: %s\n", result.no_ceilings);
    return;
  }
  absl::StrAppendFormat(text, "read bandwidth   %s, all threads, a buffer of %.0f MB\n",
                        GigaText(result.read_samples, "GB/s"),
                        static_cast<double>(result.read_buffer_bytes) / kMega);
  absl::StrAppendFormat(text, "oneDNN products  f32 %s, bf16 %s, int8 %s\n",
                        GigaText(result.gemm_f32, "GFLOP/s"), GigaText(result.gemm_bf16, "GFLOP/s"),
                        GigaText(result.gemm_int8, "GOP/s"));
}

void AppendLoad(const BenchResult& result, std::string* text) {
  absl::StrAppendFormat(text,
                        "load             %.3f s, first token after %.3f s; checksums add %.3f s\n",
                        result.load_seconds, result.first_token_seconds, result.checksum_seconds);
  const int64_t above = result.resident_bytes - result.weight_bytes - result.slot_bytes;
  absl::StrAppendFormat(text,
                        "memory           %.1f MB resident = weights %.1f + slots %.1f + %.1f MB; "
                        "%.1f MB of it anonymous\n",
                        static_cast<double>(result.resident_bytes) / kMega,
                        static_cast<double>(result.weight_bytes) / kMega,
                        static_cast<double>(result.slot_bytes) / kMega,
                        static_cast<double>(above) / kMega,
                        static_cast<double>(result.resident_anonymous_bytes) / kMega);
  absl::StrAppendFormat(text, "state            %.2f MB a sequence, at any position\n",
                        static_cast<double>(result.state_bytes_per_sequence) / kMega);
}

void AppendEngine(const BenchResult& result, std::string* text) {
  if (result.engine.empty()) return;
  absl::StrAppendFormat(text, "\n%-8s%-10s%-12s%10s%11s%12s%8s%8s%9s\n", "engine", "batch",
                        "sampling", "tokens/s", "ms a step", "not model", "plan", "slots",
                        "results");
  for (const EngineCase& c : result.engine) {
    constexpr double kMilliseconds = 1e3;
    absl::StrAppendFormat(
        text, "%-8s%-10d%-12s%10.1f%11.3f%12s%8s%8s%9s\n", "", c.batch, c.sampling,
        c.batch / Median(c.seconds), Median(c.seconds) * kMilliseconds, Percent(Median(c.overhead)),
        Percent(Median(c.plan)), Percent(Median(c.admit)), Percent(Median(c.results)));
  }
}

}  // namespace

std::string BenchToText(const BenchResult& result) {
  std::string text = absl::StrFormat("model            %s, %s, %.1f MB of weights\n",
                                     result.config.name, kernels::DTypeName(result.config.dtype),
                                     static_cast<double>(result.weight_bytes) / kMega);
  AppendMachine(result, &text);
  AppendLoad(result, &text);
  absl::StrAppendFormat(&text, "\n%-8s%-10s%-10s%10s%11s%12s%13s%12s\n", "decode", "batch",
                        "position", "tokens/s", "ms a step", "MB a token", "of bandwidth",
                        "vs first");
  for (const CaseResult& c : result.decode) {
    constexpr double kMilliseconds = 1e3;
    absl::StrAppendFormat(&text, "%-8s%-10d%-10d%10.1f%11.3f%12.1f%13s%12.3f%s\n", "", c.batch,
                          c.position, c.tokens_per_s(), Median(c.seconds) * kMilliseconds,
                          c.work / c.tokens / kMega, Percent(c.fraction()),
                          PositionRatio(result, c), AgainstText(c));
  }
  if (!result.prefill.empty()) {
    absl::StrAppendFormat(
        &text, "\n%-8s%-10s%12s%16s\n", "prefill", "prompt", "tokens/s",
        absl::StrCat("of ", std::string(kernels::DTypeName(result.gemm_dtype)), " peak"));
  }
  for (const CaseResult& c : result.prefill) {
    absl::StrAppendFormat(&text, "%-8s%-10d%12.1f%16s%s\n", "", c.prompt, c.tokens_per_s(),
                          Percent(c.fraction()), AgainstText(c));
  }
  AppendEngine(result, &text);
  absl::StrAppend(&text, "\nby op\n");
  for (const CaseResult& c : result.decode) {
    absl::StrAppendFormat(&text, "  decode, batch %d, position %d: %s\n", c.batch, c.position,
                          OpsText(c));
  }
  for (const CaseResult& c : result.prefill) {
    absl::StrAppendFormat(&text, "  prefill, %d tokens: %s\n", c.prompt, OpsText(c));
  }
  return text;
}

std::string BenchToJson(const BenchResult& result) {
  Json root;
  root["model"] = result.config.name;
  root["dtype"] = kernels::DTypeName(result.config.dtype);
  root["backend"] = result.backend;
  root["read_gbps"] = Rate(result.read_samples);
  root["read_buffer_bytes"] = result.read_buffer_bytes;
  root["gemm_gflops"] = {{"f32", Rate(result.gemm_f32)},
                         {"bf16", Rate(result.gemm_bf16)},
                         {"int8", Rate(result.gemm_int8)}};
  root["gemm_dtype"] = kernels::DTypeName(result.gemm_dtype);
  if (!result.no_ceilings.empty()) root["no_ceilings"] = result.no_ceilings;
  root["weight_bytes"] = result.weight_bytes;
  root["state_bytes_per_sequence"] = result.state_bytes_per_sequence;
  root["slot_bytes"] = result.slot_bytes;
  root["load_seconds"] = result.load_seconds;
  root["first_token_seconds"] = result.first_token_seconds;
  root["checksum_seconds"] = result.checksum_seconds;
  root["resident_bytes"] = result.resident_bytes;
  root["resident_anonymous_bytes"] = result.resident_anonymous_bytes;
  root["decode"] = Json::array();
  for (const CaseResult& c : result.decode) {
    Json entry = {{"batch", c.batch},
                  {"position", c.position},
                  {"tokens_per_s", c.tokens_per_s()},
                  {"bytes_per_token", c.work / c.tokens},
                  {"bandwidth_fraction", OrNull(c.fraction())},
                  {"seconds_per_step", c.seconds},
                  {"latency_vs_first_position", PositionRatio(result, c)},
                  {"ops", OpsJson(c)},
                  {"outside_ops_share", c.outside_ops}};
    AddAgainst(c, &entry);
    root["decode"].push_back(std::move(entry));
  }
  root["prefill"] = Json::array();
  for (const CaseResult& c : result.prefill) {
    Json entry = {{"prompt", c.prompt},
                  {"tokens_per_s", c.tokens_per_s()},
                  {"gemm_fraction", OrNull(c.fraction())},
                  {"seconds", c.seconds},
                  {"ops", OpsJson(c)},
                  {"outside_ops_share", c.outside_ops}};
    AddAgainst(c, &entry);
    root["prefill"].push_back(std::move(entry));
  }
  root["engine"] = Json::array();
  for (const EngineCase& c : result.engine) {
    root["engine"].push_back({{"batch", c.batch},
                              {"sampling", c.sampling},
                              {"tokens_per_s", c.batch / Median(c.seconds)},
                              {"seconds_per_step", c.seconds},
                              {"overhead_share", Median(c.overhead)},
                              {"plan_share", Median(c.plan)},
                              {"admit_share", Median(c.admit)},
                              {"results_share", Median(c.results)}});
  }
  // Names come from a file and may hold bytes that are not UTF-8: replaced rather than thrown at.
  return root.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace osdn::tools
