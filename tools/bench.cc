#include "tools/bench.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/tensor_specs.h"
#include "kernels/cpu/ceilings.h"
#include "tools/bench_engine.h"
#include "tools/model_runner.h"
#include "tools/process_memory.h"

namespace osdn::tools {
namespace {

using Clock = std::chrono::steady_clock;
using kernels::DType;
using kernels::cpu::Ceilings;

constexpr int32_t kMaxBatch = 4096;
constexpr int64_t kMaxPrompt = 1 << 24;
constexpr int64_t kMaxPosition = int64_t{1} << 50;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// The same for every model and run: what is measured must not depend on luck.
std::vector<int32_t> RandomTokens(int64_t count, int64_t vocab) {
  std::mt19937 random(1);
  std::uniform_int_distribution<int32_t> token(0, static_cast<int32_t>(vocab - 1));
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  for (int32_t& id : tokens) id = token(random);
  return tokens;
}

bool IsTokenTable(const TensorSpec& spec) {
  return spec.name == "model.embeddings.weight" || spec.name == "lm_head.weight";
}

// Bytes of the tensors that every decode step reads whole: all but the embeddings, unless those are
// lm_head too.
int64_t StepWeightBytes(const ModelConfig& config) {
  int64_t bytes = 0;
  for (const TensorSpec& spec : TensorSpecs(config.arch)) {
    if (spec.name == "model.embeddings.weight" && !config.arch.tie_embeddings) continue;
    bytes += StoredBytes(spec, StoredDType(spec, config.dtype));
  }
  return bytes;
}

// Multiply-adds count two. Products with weights only: every layer for every token, lm_head once.
double PrefillOperations(const ArchitectureConfig& arch, int64_t tokens) {
  double layers = 0;
  for (const TensorSpec& spec : TensorSpecs(arch)) {
    if (spec.shape.size() != 2 || IsTokenTable(spec)) continue;
    layers += 2 * static_cast<double>(spec.shape[0]) * static_cast<double>(spec.shape[1]);
  }
  const double head = 2 * static_cast<double>(arch.vocab_size * arch.hidden_size);
  return layers * static_cast<double>(tokens) + head;
}

// The model under test, its logits and its tokens.
class Subject {
 public:
  static absl::StatusOr<std::unique_ptr<Subject>> Load(const std::string& model_dir,
                                                       const BenchOptions& options) {
    const int32_t slots = *std::max_element(options.batches.begin(), options.batches.end());
    absl::StatusOr<std::unique_ptr<ModelRunner>> runner =
        ModelRunner::Load({.model_dir = model_dir,
                           .backend = options.backend,
                           .model = {.max_rows = std::max(options.prefill_step, int64_t{slots}),
                                     .max_logit_rows = slots},
                           .slots = slots,
                           .verify_checksums = false});
    if (!runner.ok()) return runner.status();
    auto subject = std::unique_ptr<Subject>(new Subject(*std::move(runner), options));
    const int64_t vocab = subject->runner_->config().arch.vocab_size;
    const int64_t longest = options.prompts.empty()
                                ? 0
                                : *std::max_element(options.prompts.begin(), options.prompts.end());
    subject->tokens_ = RandomTokens(std::max({longest, int64_t{slots}, kernels::kChunk}), vocab);
    subject->logits_.resize(static_cast<size_t>(slots * vocab));
    return subject;
  }

  ModelRunner& runner() { return *runner_; }

  // Seconds of a prompt from position 0, as the engine runs it: spans of prefill_step, logits of
  // the last row only.
  absl::StatusOr<double> Prefill(int64_t prompt, int32_t slot) {
    const auto vocab = static_cast<size_t>(runner_->config().arch.vocab_size);
    const Clock::time_point start = Clock::now();
    for (int64_t at = 0; at < prompt; at += options_.prefill_step) {
      const int64_t rows = std::min(options_.prefill_step, prompt - at);
      const int64_t last_row = rows - 1;
      const bool last = at + rows == prompt;
      absl::Status status = runner_->Forward(
          absl::MakeConstSpan(tokens_).subspan(static_cast<size_t>(at), static_cast<size_t>(rows)),
          at, slot, last ? absl::MakeConstSpan(&last_row, 1) : absl::Span<const int64_t>(),
          absl::MakeSpan(logits_).first(last ? vocab : 0));
      if (!status.ok()) return status;
    }
    return SecondsSince(start);
  }

  // Seconds of `steps` steps of the first `batch` slots.
  absl::StatusOr<double> Decode(int32_t batch, int64_t position, int64_t steps) {
    const auto vocab = static_cast<size_t>(runner_->config().arch.vocab_size);
    const auto tokens = absl::MakeConstSpan(tokens_).first(static_cast<size_t>(batch));
    const auto logits = absl::MakeSpan(logits_).first(static_cast<size_t>(batch) * vocab);
    const Clock::time_point start = Clock::now();
    for (int64_t i = 0; i < steps; ++i) {
      absl::Status status = runner_->Decode(tokens, position + i, logits);
      if (!status.ok()) return status;
    }
    return SecondsSince(start);
  }

  // Gives every slot a past, so that states hold what they hold in use.
  absl::Status FillSlots() {
    for (int32_t slot = 0; slot < runner_->pool().capacity(); ++slot) {
      absl::StatusOr<double> seconds = Prefill(kernels::kChunk, slot);
      if (!seconds.ok()) return seconds.status();
    }
    return absl::OkStatus();
  }

 private:
  Subject(std::unique_ptr<ModelRunner> runner, const BenchOptions& options)
      : runner_(std::move(runner)), options_(options) {}

  std::unique_ptr<ModelRunner> runner_;
  const BenchOptions& options_;
  std::vector<int32_t> tokens_;
  std::vector<float> logits_;
};

void SetOps(std::vector<OpTime> times, double seconds, CaseResult* result) {
  double inside = 0;
  for (OpTime& time : times) {
    constexpr double kMilliseconds = 1e3;
    result->ops.push_back({.op = std::move(time.name),
                           .share = time.seconds / seconds,
                           .milliseconds = time.seconds * kMilliseconds,
                           .calls = time.calls});
    inside += time.seconds;
  }
  result->outside_ops = 1 - inside / seconds;
}

class Bench {
 public:
  Bench(const BenchOptions& options, const BenchProgress& progress)
      : options_(options), progress_(progress) {}

  absl::StatusOr<BenchResult> Run() {
    if (absl::Status s = LoadModels(); !s.ok()) return s;
    if (absl::Status s = MakeCeilings(); !s.ok()) return s;
    for (int repeat = 0; repeat < options_.repeats; ++repeat) {
      const std::string round = absl::StrCat("repeat ", repeat + 1, " of ", options_.repeats, ": ");
      if (absl::Status s = DecodeCases(round); !s.ok()) return s;
      if (absl::Status s = PrefillCases(round); !s.ok()) return s;
    }
    if (absl::Status s = Breakdowns(); !s.ok()) return s;
    if (absl::Status s = EngineCases(); !s.ok()) return s;
    return std::move(result_);
  }

 private:
  absl::Status Say(const std::string& what) {
    if (options_.stop != nullptr && options_.stop->load()) {
      return absl::CancelledError("interrupted; nothing is reported");
    }
    if (progress_) progress_(what);
    return absl::OkStatus();
  }

  absl::Status LoadModels() {
    if (absl::Status s = Say(absl::StrCat("loading ", options_.model_dir)); !s.ok()) return s;
    const Clock::time_point start = Clock::now();
    absl::StatusOr<std::unique_ptr<Subject>> subject = Subject::Load(options_.model_dir, options_);
    if (!subject.ok()) return subject.status();
    subject_ = *std::move(subject);
    result_.load_seconds = SecondsSince(start);
    if (absl::StatusOr<double> s = subject_->Prefill(1, 0); !s.ok()) return s.status();
    result_.first_token_seconds = SecondsSince(start);
    const ProcessMemory memory = ReadProcessMemory();
    result_.resident_bytes = memory.resident_bytes;
    result_.resident_anonymous_bytes = memory.anonymous_bytes;

    ModelRunner& runner = subject_->runner();
    const Clock::time_point verify = Clock::now();
    absl::StatusOr<Weights> weights =
        Weights::Load(options_.model_dir, runner.config(), {.verify_checksums = true});
    if (!weights.ok()) return weights.status();
    result_.checksum_seconds = SecondsSince(verify);
    result_.config = runner.config();
    result_.backend = runner.backend().Describe();
    result_.weight_bytes = static_cast<int64_t>(runner.weights().bytes());
    result_.step_weight_bytes = StepWeightBytes(runner.config());
    result_.state_bytes_per_sequence = static_cast<int64_t>(runner.pool().layout().slot_bytes());
    result_.slot_bytes = result_.state_bytes_per_sequence * runner.pool().capacity();
    if (absl::Status s = subject_->FillSlots(); !s.ok()) return s;
    MakeCases();

    if (options_.against_dir.empty()) return absl::OkStatus();
    if (absl::Status s = Say(absl::StrCat("loading ", options_.against_dir)); !s.ok()) return s;
    subject = Subject::Load(options_.against_dir, options_);
    if (!subject.ok()) return subject.status();
    against_ = *std::move(subject);
    return against_->FillSlots();
  }

  void MakeCases() {
    for (const int32_t batch : options_.batches) {
      for (const int64_t position : options_.positions) {
        CaseResult result;
        result.batch = batch;
        result.position = position;
        result.work = static_cast<double>(result_.step_weight_bytes +
                                          batch * result_.state_bytes_per_sequence);
        result.tokens = batch;
        result_.decode.push_back(std::move(result));
      }
    }
    for (const int64_t prompt : options_.prompts) {
      CaseResult result;
      result.prompt = prompt;
      result.work = PrefillOperations(result_.config.arch, prompt);
      result.tokens = static_cast<double>(prompt);
      result_.prefill.push_back(std::move(result));
    }
  }

  absl::Status MakeCeilings() {
    const DType dtype = result_.config.dtype;
    result_.gemm_dtype = dtype == DType::kI4 ? DType::kI8 : dtype;
    const std::string_view backend = subject_->runner().backend().name();
    if (backend != "cpu") {
      result_.no_ceilings = absl::StrCat("ceilings are measured for the cpu backend only, this is ",
                                         std::string(backend));
      return absl::OkStatus();
    }
    if (absl::Status s = Say("measuring the machine"); !s.ok()) return s;
    absl::StatusOr<std::unique_ptr<Ceilings>> ceilings =
        Ceilings::Create({.threads = options_.backend.threads,
                          .buffer_bytes = static_cast<size_t>(options_.read_buffer_bytes),
                          .gemm_sizes = options_.gemm_sizes});
    if (!ceilings.ok()) return ceilings.status();
    ceilings_ = *std::move(ceilings);
    result_.read_buffer_bytes = static_cast<int64_t>(ceilings_->buffer_bytes());
    for (const DType type : {DType::kF32, DType::kBF16, DType::kI8}) GemmCeiling(type);
    return absl::OkStatus();
  }

  // 0 where there is none.
  double ReadCeiling() {
    if (ceilings_ == nullptr) return 0;
    result_.read_samples.push_back(ceilings_->ReadBandwidth());
    return result_.read_samples.back();
  }

  double GemmCeiling(DType dtype) {
    if (ceilings_ == nullptr) return 0;
    const absl::StatusOr<double> peak = ceilings_->GemmPeak(dtype);
    if (!peak.ok()) return 0;
    std::vector<double>& samples = dtype == DType::kF32    ? result_.gemm_f32
                                   : dtype == DType::kBF16 ? result_.gemm_bf16
                                                           : result_.gemm_int8;
    samples.push_back(*peak);
    return *peak;
  }

  static void AddCeiling(double before, double after, CaseResult* result) {
    if (before > 0 && after > 0) result->ceilings.push_back((before + after) / 2);
  }

  absl::Status DecodeCases(const std::string& round) {
    double before = ReadCeiling();
    for (CaseResult& result : result_.decode) {
      absl::Status status =
          Say(absl::StrCat(round, "decode, batch ", result.batch, ", position ", result.position));
      if (!status.ok()) return status;
      status = DecodeSample(subject_.get(), &result, &result.seconds);
      if (!status.ok()) return status;
      const double after = ReadCeiling();
      AddCeiling(before, after, &result);
      before = after;
      if (against_ == nullptr) continue;
      status = DecodeSample(against_.get(), &result, &result.against_seconds);
      if (!status.ok()) return status;
      before = ReadCeiling();
    }
    return absl::OkStatus();
  }

  // Warms up, which also says how many steps make a sample.
  absl::Status DecodeSample(Subject* subject, CaseResult* result, std::vector<double>* samples) {
    constexpr int64_t kMinSteps = 3;
    constexpr int64_t kMaxSteps = 2000;
    absl::StatusOr<double> seconds = subject->Decode(result->batch, result->position, 2);
    if (!seconds.ok()) return seconds.status();
    const double wanted = options_.seconds / (*seconds / 2);
    const auto steps =
        static_cast<int64_t>(std::clamp(wanted, double{kMinSteps}, double{kMaxSteps}));
    seconds = subject->Decode(result->batch, result->position + 2, steps);
    if (!seconds.ok()) return seconds.status();
    samples->push_back(*seconds / static_cast<double>(steps));
    return absl::OkStatus();
  }

  absl::Status PrefillCases(const std::string& round) {
    double before = result_.prefill.empty() ? 0 : GemmCeiling(result_.gemm_dtype);
    for (CaseResult& result : result_.prefill) {
      absl::Status status = Say(absl::StrCat(round, "prefill of ", result.prompt, " tokens"));
      if (!status.ok()) return status;
      // The first call of a shape may prepare it; one step of the prompt's size is enough.
      if (absl::StatusOr<double> s = subject_->Prefill(WarmUpTokens(result), 0); !s.ok()) {
        return s.status();
      }
      absl::StatusOr<double> seconds = subject_->Prefill(result.prompt, 0);
      if (!seconds.ok()) return seconds.status();
      result.seconds.push_back(*seconds);
      const double after = GemmCeiling(result_.gemm_dtype);
      AddCeiling(before, after, &result);
      before = after;
      if (against_ == nullptr) continue;
      if (absl::StatusOr<double> s = against_->Prefill(WarmUpTokens(result), 0); !s.ok()) {
        return s.status();
      }
      seconds = against_->Prefill(result.prompt, 0);
      if (!seconds.ok()) return seconds.status();
      result.against_seconds.push_back(*seconds);
      before = GemmCeiling(result_.gemm_dtype);
    }
    return absl::OkStatus();
  }

  int64_t WarmUpTokens(const CaseResult& result) const {
    return std::min(result.prompt, options_.prefill_step);
  }

  // Passes of their own: the clock around each op is not in the figures above.
  absl::Status Breakdowns() {
    constexpr int64_t kSteps = 8;
    constexpr int64_t kMaxPromptTokens = 2048;
    TimedBackend& backend = subject_->runner().backend();
    for (CaseResult& result : result_.decode) {
      if (absl::Status s = Say("breakdown by op"); !s.ok()) return s;
      absl::StatusOr<double> seconds = subject_->Decode(result.batch, result.position, 2);
      if (!seconds.ok()) return seconds.status();
      backend.StartRecording();
      seconds = subject_->Decode(result.batch, result.position, kSteps);
      std::vector<OpTime> times = backend.StopRecording();
      if (!seconds.ok()) return seconds.status();
      SetOps(std::move(times), *seconds, &result);
    }
    for (CaseResult& result : result_.prefill) {
      if (absl::Status s = Say("breakdown by op"); !s.ok()) return s;
      backend.StartRecording();
      absl::StatusOr<double> seconds =
          subject_->Prefill(std::min(result.prompt, kMaxPromptTokens), 0);
      std::vector<OpTime> times = backend.StopRecording();
      if (!seconds.ok()) return seconds.status();
      SetOps(std::move(times), *seconds, &result);
    }
    return absl::OkStatus();
  }

  // Last, without the models above: it loads its own.
  absl::Status EngineCases() {
    if (!options_.engine) return absl::OkStatus();
    if (absl::Status s = Say("loading the engine"); !s.ok()) return s;
    subject_.reset();
    against_.reset();
    absl::StatusOr<std::unique_ptr<EngineBench>> bench = EngineBench::Create(options_);
    if (!bench.ok()) return bench.status();
    result_.engine = EngineBench::Cases(options_);
    for (int repeat = 0; repeat < options_.repeats; ++repeat) {
      for (EngineCase& measured : result_.engine) {
        absl::Status status =
            Say(absl::StrCat("repeat ", repeat + 1, " of ", options_.repeats, ": engine, batch ",
                             measured.batch, ", ", measured.sampling));
        if (!status.ok()) return status;
        status = (*bench)->Measure(EngineSteps(measured.batch), &measured);
        if (!status.ok()) return status;
      }
    }
    return absl::OkStatus();
  }

  // As many as decode without the engine in the time that is wanted.
  int64_t EngineSteps(int32_t batch) const {
    constexpr double kMin = 16;
    constexpr double kMax = 2000;
    for (const CaseResult& result : result_.decode) {
      if (result.batch != batch) continue;
      return static_cast<int64_t>(
          std::clamp(options_.seconds / Median(result.seconds), kMin, kMax));
    }
    return static_cast<int64_t>(kMin);
  }

  const BenchOptions& options_;
  const BenchProgress& progress_;
  BenchResult result_;
  std::unique_ptr<Subject> subject_;
  std::unique_ptr<Subject> against_;
  std::unique_ptr<Ceilings> ceilings_;
};

template <class T>
void CheckRange(const char* name, const std::vector<T>& values, T min, T max,
                std::vector<std::string>* problems) {
  for (const T value : values) {
    if (value >= min && value <= max) continue;
    problems->push_back(absl::StrCat(name, ": ", value, " is outside [", min, ", ", max, "]"));
  }
}

}  // namespace

absl::Status ValidateBenchOptions(const BenchOptions& options) {
  std::vector<std::string> problems;
  CheckRange<int32_t>("batch", options.batches, 1, kMaxBatch, &problems);
  CheckRange<int64_t>("position", options.positions, 0, kMaxPosition, &problems);
  CheckRange<int64_t>("prompt", options.prompts, 1, kMaxPrompt, &problems);
  CheckRange<int64_t>("prefill-step", {options.prefill_step}, 1, 1 << 16, &problems);
  CheckRange<int64_t>("repeat", {options.repeats}, 1, 1000, &problems);
  if (!(options.seconds > 0 && options.seconds <= 60)) {
    problems.push_back(absl::StrCat("seconds: ", options.seconds, " is outside (0, 60]"));
  }
  CheckRange<int64_t>("read-buffer", {options.read_buffer_bytes}, 1, int64_t{1} << 40, &problems);
  if (options.batches.empty()) problems.emplace_back("batch: none given");
  if (options.positions.empty()) problems.emplace_back("position: none given");
  if (problems.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrJoin(problems, "; "));
}

double Median(absl::Span<const double> samples) {
  if (samples.empty()) return 0;
  std::vector<double> sorted(samples.begin(), samples.end());
  std::sort(sorted.begin(), sorted.end());
  const size_t middle = sorted.size() / 2;
  return sorted.size() % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

double MedianRatio(absl::Span<const double> a, absl::Span<const double> b) {
  std::vector<double> ratios;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) ratios.push_back(a[i] / b[i]);
  return Median(ratios);
}

double CaseResult::tokens_per_s() const { return tokens / Median(seconds); }

std::optional<double> CaseResult::fraction() const {
  if (ceilings.size() != seconds.size() || ceilings.empty()) return std::nullopt;
  std::vector<double> rates;
  for (const double sample : seconds) rates.push_back(work / sample);
  return MedianRatio(rates, ceilings);
}

std::optional<double> CaseResult::against_ratio() const {
  if (against_seconds.empty()) return std::nullopt;
  return MedianRatio(against_seconds, seconds);
}

absl::StatusOr<BenchResult> RunBench(const BenchOptions& options, const BenchProgress& progress) {
  if (absl::Status status = ValidateBenchOptions(options); !status.ok()) return status;
  return Bench(options, progress).Run();
}

}  // namespace osdn::tools
