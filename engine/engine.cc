#include "engine/engine.h"

#include <algorithm>
#include <future>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/engine_loop.h"
#include "engine/model_executor.h"
#include "engine/tensor_specs.h"
#include "engine/weights.h"

namespace osdn {
namespace {

// Rows of a forward pass with nobody decoding; prompts fill them, and more gains little per row.
constexpr int64_t kMinStepTokens = 512;

struct OptionRange {
  const char* name;
  int64_t value;
  int64_t min;
  int64_t max;
};

absl::Status CheckOptions(const EngineOptions& options) {
  const OptionRange ranges[] = {
      {"max_slots", options.max_slots, 1, 1 << 16},
      {"max_prefill_tokens", options.max_prefill_tokens, kernels::kChunk, 1 << 20},
      {"max_queued_requests", options.max_queued_requests, 1, int64_t{1} << 32},
      {"max_queued_tokens", options.max_queued_tokens, 1, int64_t{1} << 40},
      {"stream_capacity", options.stream_capacity, 1, 1 << 20},
      {"max_swapped", options.max_swapped, 0, 1 << 20},
      {"swap_after", options.swap_after.count(), 1, int64_t{1} << 40},
      {"ageing", options.ageing.count(), 1, int64_t{1} << 40},
      {"prefix_cache_interval", options.prefix_cache_interval, kernels::kChunk, 1 << 20},
  };
  std::vector<std::string> problems;
  for (const OptionRange& range : ranges) {
    if (range.value >= range.min && range.value <= range.max) continue;
    problems.push_back(absl::StrCat(range.name, ": ", range.value, " is outside [", range.min, ", ",
                                    range.max, "]"));
  }
  if (options.prefix_cache_interval % kernels::kChunk != 0) {
    problems.push_back(absl::StrCat("prefix_cache_interval: ", options.prefix_cache_interval,
                                    " is not a multiple of ", kernels::kChunk));
  }
  if (problems.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("engine options: ", absl::StrJoin(problems, "; ")));
}

int64_t StepTokens(const EngineOptions& options) {
  return std::max(kMinStepTokens, options.max_slots + options.max_prefill_tokens);
}

// Tokens the tokenizer knows must be rows of the embedding; rows beyond it are padding.
absl::Status CheckVocabulary(const ModelConfig& config, const Tokenizer* tokenizer) {
  const int64_t rows = config.arch.vocab_size;
  if (tokenizer != nullptr && tokenizer->vocab_size() > rows) {
    return absl::InvalidArgumentError(absl::StrCat(
        kTokenizerFileName, " has ", tokenizer->vocab_size(), " pieces, but vocab_size in ",
        kModelFileName, " is ", rows, ": the tokenizer belongs to another model"));
  }
  std::vector<int32_t> ids = config.eos_ids;
  if (config.bos_id.has_value()) ids.push_back(*config.bos_id);
  for (const int32_t id : ids) {
    if (id >= 0 && id < rows) continue;
    return absl::InvalidArgumentError(absl::StrCat(kModelFileName, ": bos_id or eos_ids has ", id,
                                                   ", outside the vocabulary [0, ", rows - 1, "]"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& model_dir,
                                                         const ModelConfig& config) {
  std::unique_ptr<Tokenizer> tokenizer;
  if (config.has_tokenizer) {
    auto loaded = Tokenizer::Load(absl::StrCat(model_dir, "/", kTokenizerFileName));
    if (!loaded.ok()) return loaded.status();
    tokenizer = *std::move(loaded);
  }
  if (absl::Status status = CheckVocabulary(config, tokenizer.get()); !status.ok()) return status;
  return tokenizer;
}

size_t WeightBytes(const ModelConfig& config) {
  size_t bytes = 0;
  for (const TensorSpec& spec : TensorSpecs(config.arch)) {
    bytes += static_cast<size_t>(StoredBytes(spec, StoredDType(spec, config.dtype)));
  }
  return bytes;
}

VocabularyView MakeVocabularyView(const ModelConfig& config, const Tokenizer* tokenizer) {
  VocabularyView view{.size = config.arch.vocab_size,
                      .eos_ids = config.eos_ids,
                      .token_bytes = nullptr,
                      .restarts_text = nullptr};
  if (tokenizer != nullptr) {
    view.size = tokenizer->vocab_size();
    view.token_bytes = [tokenizer](int32_t id) { return tokenizer->TokenBytes(id); };
    if (tokenizer->adds_dummy_prefix()) {
      const int64_t known = view.size;
      view.restarts_text = [tokenizer, known](int32_t id) {
        return id < known && tokenizer->IsControl(id);
      };
    }
  }
  return view;
}

struct LoadedModel {
  std::unique_ptr<ModelExecutor> executor;
  std::string backend_reason;
};

absl::StatusOr<LoadedModel> LoadModel(const EngineOptions& options, const ModelConfig& config) {
  auto weights = Weights::Load(options.model_dir, config, {.verify_checksums = false});
  if (!weights.ok()) return weights.status();
  auto choice = kernels::CreateBackend(options.backend);
  if (!choice.ok()) return choice.status();
  // A row of logits for each sequence is the most that one step needs.
  const Model::Options model_options{.max_rows = StepTokens(options),
                                     .max_logit_rows = options.max_slots};
  auto executor =
      ModelExecutor::Create(config.arch, *std::move(weights), std::move(choice->backend),
                            model_options, options.max_slots);
  if (!executor.ok()) return executor.status();
  return LoadedModel{*std::move(executor), std::move(choice->reason)};
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(const EngineOptions& options) {
  if (absl::Status status = CheckOptions(options); !status.ok()) return status;
  auto config = LoadModelConfig(options.model_dir);
  if (!config.ok()) return config.status();
  auto tokenizer = LoadTokenizer(options.model_dir, *config);
  if (!tokenizer.ok()) return tokenizer.status();
  // Checksums are read while the weights are packed: both take about as long, on a core each.
  std::future<absl::Status> verified;
  if (options.verify_checksums) {
    verified = std::async(std::launch::async, [&options, &config] {
      return VerifyModelFiles(options.model_dir, *config);
    });
  }
  auto loaded = LoadModel(options, *config);
  if (verified.valid()) {
    // What is wrong with a corrupt file is best said by its checksum.
    if (absl::Status status = verified.get(); !status.ok()) return status;
  }
  if (!loaded.ok()) return loaded.status();
  auto engine = std::unique_ptr<Engine>(
      new Engine(*std::move(config), *std::move(tokenizer), std::move(loaded->executor)));
  engine->MakeConstraintCompiler();
  engine->Start(options, std::move(loaded->backend_reason));
  return engine;
}

Engine::Engine(ModelConfig config, std::unique_ptr<Tokenizer> tokenizer,
               std::unique_ptr<ModelExecutor> executor)
    : config_(std::move(config)),
      tokenizer_(std::move(tokenizer)),
      executor_(std::move(executor)) {}

Engine::~Engine() = default;

void Engine::MakeConstraintCompiler() {
  if (tokenizer_ == nullptr) return;
  std::vector<std::string> bytes;
  bytes.reserve(static_cast<size_t>(tokenizer_->vocab_size()));
  for (int32_t id = 0; id < tokenizer_->vocab_size(); ++id) {
    bytes.emplace_back(tokenizer_->TokenBytes(id));
  }
  constraints_ = std::make_unique<ConstraintCompiler>(std::move(bytes), ConstraintLimits());
}

void Engine::Start(const EngineOptions& options, std::string backend_reason) {
  info_ = {.backend = std::string(executor_->backend().name()),
           .backend_detail = executor_->backend().Describe(),
           .backend_reason = std::move(backend_reason),
           .state_bytes_per_slot = executor_->pool().layout().slot_bytes(),
           .slots = executor_->pool().capacity(),
           .weight_bytes = WeightBytes(config_),
           .model_extra_bytes = executor_->model().extra_bytes()};
  limits_ = {.vocab_size = config_.arch.vocab_size,
             .sampled_vocab_size =
                 tokenizer_ != nullptr ? tokenizer_->vocab_size() : config_.arch.vocab_size,
             .max_prompt_tokens = options.max_queued_tokens,
             .has_tokenizer = tokenizer_ != nullptr};
  const EngineLoop::Options loop_options{
      .limits = {.max_slots = options.max_slots,
                 .max_step_tokens = StepTokens(options),
                 .max_prefill_tokens = options.max_prefill_tokens},
      .queue = {.max_requests = options.max_queued_requests,
                .max_tokens = options.max_queued_tokens},
      .stream_capacity = static_cast<size_t>(options.stream_capacity),
      .prefix_cache = {.max_bytes = options.prefix_cache_bytes,
                       .interval = options.prefix_cache_interval},
      .ageing = options.ageing,
      .max_swapped = options.max_swapped,
      .swap_after = options.swap_after,
      .observer = options.observer};
  loop_ = std::make_unique<EngineLoop>(loop_options, MakeVocabularyView(config_, tokenizer_.get()),
                                       executor_.get());
}

EngineStats Engine::stats() const { return loop_->stats(); }

absl::Status Engine::health() const { return loop_->health(); }

std::vector<FieldViolation> Engine::Validate(const GenerationRequest& request) const {
  return ValidateGeneration(request, limits_);
}

void Engine::CompileConstraint(ConstraintSpec spec, ConstraintCompiler::Wanted wanted,
                               ConstraintCompiler::Done done) const {
  if (constraints_ != nullptr) {
    return constraints_->Compile(std::move(spec), std::move(wanted), std::move(done));
  }
  done(absl::FailedPreconditionError(
      absl::StrCat("model ", config_.name, " has no tokenizer, so there is no text to constrain")));
}

absl::StatusOr<std::shared_ptr<TokenStream>> Engine::Submit(GenerationRequest request) {
  const std::vector<FieldViolation> violations = Validate(request);
  if (!violations.empty()) {
    return absl::InvalidArgumentError(
        absl::StrJoin(violations, "; ", [](std::string* out, const FieldViolation& violation) {
          absl::StrAppend(out, violation.field, ": ", violation.description);
        }));
  }
  if (absl::Status s = CheckContinuation(request); !s.ok()) return s;
  return loop_->Submit(std::move(request));
}

void Engine::Drain(std::chrono::milliseconds timeout) { loop_->Drain(timeout); }

}  // namespace osdn
