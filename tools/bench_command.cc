// osdn-tools bench
#include <CLI/CLI.hpp>
#include <atomic>
#include <csignal>
#include <iostream>
#include <memory>
#include <string>

#include "tools/backend_flags.h"
#include "tools/bench.h"
#include "tools/bench_report.h"
#include "tools/command.h"
#include "tools/interrupt.h"

namespace osdn::tools {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;

struct BenchFlags {
  BenchOptions options;
  int64_t read_buffer_mib = BenchOptions().read_buffer_bytes / kMiB;
  bool json = false;
  bool no_prefill = false;
};

absl::Status RunBenchCommand(const BenchFlags& flags) {
  BenchOptions options = flags.options;
  options.read_buffer_bytes = flags.read_buffer_mib * kMiB;
  if (flags.no_prefill) options.prompts.clear();
  std::atomic<bool> stop = false;
  options.stop = &stop;
  const SignalBlock block({SIGINT, SIGTERM});
  const InterruptWatcher watcher(block, [&stop] { stop = true; });
  absl::StatusOr<BenchResult> result =
      RunBench(options, [](const std::string& what) { std::cerr << what << '\n'; });
  if (!result.ok()) return result.status();
  std::cout << (flags.json ? BenchToJson(*result) : BenchToText(*result));
  return absl::OkStatus();
}

}  // namespace

void AddBenchCommand(CLI::App& app, Action* action) {
  CLI::App* command = app.add_subcommand(
      "bench", "Measure decode and prefill beside this machine's own limits, in one run");
  auto flags = std::make_shared<BenchFlags>();
  BenchOptions& options = flags->options;
  command->add_option("--model", options.model_dir, "Model directory")->required();
  command->add_option("--against", options.against_dir,
                      "Another model, measured in turn with the first: ratios of the two");
  command->add_option("--batch", options.batches, "Sequences that decode together")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--position", options.positions, "Positions at which decoding starts")
      ->delimiter(',')
      ->capture_default_str();
  CLI::Option* prompts = command->add_option("--prompt", options.prompts, "Lengths of prompts")
                             ->delimiter(',')
                             ->capture_default_str();
  command->add_flag("--no-prefill", flags->no_prefill, "Decode only")->excludes(prompts);
  command
      ->add_option("--prefill-step", options.prefill_step,
                   "Most prompt tokens a forward call; the engine's is 512 with nobody decoding")
      ->capture_default_str();
  command->add_option("--repeat", options.repeats, "Rounds over all cases; figures are medians")
      ->capture_default_str();
  command->add_option("--seconds", options.seconds, "Of decoding, a case and round")
      ->capture_default_str();
  command
      ->add_option("--read-buffer-mib", flags->read_buffer_mib,
                   "Buffer of the read bandwidth; should not fit in the last-level cache")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->capture_default_str();
  bool* engine = &options.engine;
  command->add_flag_callback(
      "--no-engine", [engine] { *engine = false; },
      "Not the engine's loop: what it costs beside the model");
  command->add_flag("--json", flags->json, "As one JSON object");
  AddBackendFlags(command, &options.backend);
  command->callback([flags, action] { *action = [flags] { return RunBenchCommand(*flags); }; });
}

}  // namespace osdn::tools
