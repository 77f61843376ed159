// Decode, prefill, load and memory of a model, beside what the machine can do at most in the same
// run. docs/benchmarks.md says how to read the figures.
#ifndef OSDN_TOOLS_BENCH_H_
#define OSDN_TOOLS_BENCH_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/model_config.h"
#include "engine/sampling_params.h"
#include "kernels/backend.h"
#include "tools/timed_backend.h"

namespace osdn::tools {

struct BenchOptions {
  std::string model_dir;
  std::string against_dir;                    // measured beside it, case by case; empty: nothing
  std::vector<int32_t> batches = {1, 4, 16};  // sequences that decode together
  std::vector<int64_t> positions = {1000, 100000};  // absolute, at which decoding starts
  std::vector<int64_t> prompts = {512, 2048, 8192};
  int64_t prefill_step =
      512;  // most prompt tokens a forward call, as the engine runs an idle server
  int repeats = 3;
  double seconds = 0.4;  // of decoding a case and repeat, about
  bool engine = true;    // measure the engine's loop too
  // Of the ceilings: kernels::cpu::Ceilings::Options.
  int64_t read_buffer_bytes = int64_t{1} << 30;
  std::vector<int64_t> gemm_sizes = {1024, 2048, 3072};
  kernels::BackendOptions backend;
  const std::atomic<bool>* stop = nullptr;  // as in ModelWriterOptions
};

// INVALID_ARGUMENT naming every option that is out of range.
absl::Status ValidateBenchOptions(const BenchOptions& options);

struct OpShare {
  std::string op;
  double share = 0;  // of the time of the pass
  double milliseconds = 0;
  int64_t calls = 0;
};

// One case; samples are in the order of the repeats. Ceilings are those measured just before and
// just after each sample, averaged.
struct CaseResult {
  int32_t batch = 0;                    // decode
  int64_t position = 0;                 // decode
  int64_t prompt = 0;                   // prefill
  double work = 0;                      // decode: bytes a step; prefill: operations a prompt
  double tokens = 0;                    // a step, or a prompt
  std::vector<double> seconds;          // a step, or a prompt
  std::vector<double> against_seconds;  // empty without --against
  std::vector<double> ceilings;         // bytes or operations a second; empty where unknown
  std::vector<OpShare> ops;             // of one more pass, which is timed op by op
  double outside_ops = 0;               // share of that pass

  double tokens_per_s() const;
  std::optional<double> fraction() const;       // of the ceiling
  std::optional<double> against_ratio() const;  // tokens/s of this model over the other's
};

// Decoding through the engine. Samples are in the order of the repeats; shares are of the step.
struct EngineCase {
  int32_t batch = 0;
  std::string sampling;
  SamplingParams params;
  std::vector<double> seconds;               // a step
  std::vector<double> overhead;              // all but the forward pass: the sum of the following
  std::vector<double> plan, admit, results;  // as in StepTimes
};

struct BenchResult {
  ModelConfig config;
  std::string backend;      // Backend::Describe()
  std::string no_ceilings;  // why there are none; empty when there are
  int64_t read_buffer_bytes = 0;
  std::vector<double> read_samples;  // bytes a second
  std::vector<double> gemm_f32, gemm_bf16, gemm_int8;
  kernels::DType gemm_dtype = kernels::DType::kF32;  // whose peak prefill is compared with

  int64_t weight_bytes = 0;       // of all tensors
  int64_t step_weight_bytes = 0;  // of those that a decode step reads
  int64_t state_bytes_per_sequence = 0;
  int64_t slot_bytes = 0;                // of the slots of this run
  double load_seconds = 0;               // config, mapping and preparing weights, slots
  double first_token_seconds = 0;        // from the start of loading to the first logits
  double checksum_seconds = 0;           // what verifying the files adds
  int64_t resident_bytes = 0;            // of the process after the first token
  int64_t resident_anonymous_bytes = 0;  // the part that is not the file's mapping

  std::vector<CaseResult> decode;
  std::vector<CaseResult> prefill;
  std::vector<EngineCase> engine;
};

using BenchProgress = std::function<void(const std::string& what)>;

// `progress` may be empty. Errors: the options', loading's, the backend's; CANCELLED.
absl::StatusOr<BenchResult> RunBench(const BenchOptions& options, const BenchProgress& progress);

double Median(absl::Span<const double> samples);  // 0 when there are none
// Median of a[i] / b[i]: paired, so that what drifts between repeats cancels.
double MedianRatio(absl::Span<const double> a, absl::Span<const double> b);

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_BENCH_H_
