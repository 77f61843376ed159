#include "tools/score.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "engine/model.h"
#include "engine/model_config.h"
#include "engine/safetensors.h"
#include "engine/state.h"
#include "engine/weights.h"

namespace osdn::tools {
namespace {

using Clock = std::chrono::steady_clock;

// Rows of one forward call where the caller leaves the choice: whole chunks, and at most 32 MiB of
// logits.
int64_t DefaultStep(int64_t vocab_size) {
  constexpr int64_t kMaxRows = 512;
  constexpr int64_t kMaxLogits = int64_t{8} << 20;
  const int64_t rows = std::min(kMaxRows, kMaxLogits / vocab_size);
  return std::max(rows / kernels::kChunk, int64_t{1}) * kernels::kChunk;
}

// Everything that one sequence needs to run.
struct Runner {
  ModelConfig config;
  kernels::BackendChoice backend;
  std::optional<Weights> weights;
  std::unique_ptr<Model> model;
  std::optional<StatePool> pool;
  int32_t slot = 0;
};

absl::Status Load(const ScoreOptions& options, int64_t step, Runner* runner) {
  absl::StatusOr<kernels::BackendChoice> backend = kernels::CreateBackend(options.backend);
  if (!backend.ok()) return backend.status();
  runner->backend = *std::move(backend);
  kernels::Backend* const device = runner->backend.backend.get();

  absl::StatusOr<Weights> weights = Weights::Load(options.model_dir, runner->config,
                                                  {.verify_checksums = options.verify_checksums});
  if (!weights.ok()) return weights.status();
  runner->weights = *std::move(weights);

  absl::StatusOr<std::unique_ptr<Model>> model = Model::Create(
      runner->config.arch, *runner->weights, device, {.max_rows = step, .max_logit_rows = step});
  if (!model.ok()) return model.status();
  runner->model = *std::move(model);

  absl::StatusOr<StatePool> pool =
      StatePool::Create(device, StateLayout(runner->config.arch), /*slots=*/1);
  if (!pool.ok()) return pool.status();
  runner->pool = *std::move(pool);
  absl::StatusOr<std::optional<int32_t>> slot = runner->pool->Acquire();
  if (!slot.ok()) return slot.status();
  runner->slot = slot->value();
  return absl::OkStatus();
}

// The logits of all of `tokens`, which follow `position` tokens that the slot has seen.
absl::Status Forward(Runner* runner, absl::Span<const int32_t> tokens, int64_t position,
                     absl::Span<float> logits) {
  const auto rows = static_cast<int64_t>(tokens.size());
  const kernels::SequenceSpan span = {
      .row = 0, .length = rows, .position = position, .slot = runner->slot};
  kernels::BatchView batch;
  batch.rows = rows;
  batch.decode_rows = rows == 1 ? 1 : 0;
  batch.spans = absl::MakeConstSpan(&span, 1);
  std::vector<int64_t> wanted(tokens.size());
  for (size_t i = 0; i < wanted.size(); ++i) wanted[i] = static_cast<int64_t>(i);
  return runner->model->Forward(batch, tokens, wanted, *runner->pool, logits);
}

}  // namespace

absl::StatusOr<std::vector<int32_t>> ParseTokenIds(std::string_view text, int64_t vocab_size) {
  std::vector<int32_t> ids;
  size_t at = 0;
  while (true) {
    while (at < text.size() && absl::ascii_isspace(static_cast<unsigned char>(text[at]))) ++at;
    if (at == text.size()) break;
    size_t end = at;
    while (end < text.size() && !absl::ascii_isspace(static_cast<unsigned char>(text[end]))) ++end;
    const std::string_view word = text.substr(at, end - at);
    at = end;
    int64_t id = -1;
    const auto [rest, error] = std::from_chars(word.data(), word.data() + word.size(), id);
    const bool number = error == std::errc() && rest == word.data() + word.size();
    if (!number || id < 0 || id >= vocab_size) {
      constexpr size_t kMaxShown = 40;
      return absl::InvalidArgumentError(
          absl::StrCat("token id ", ids.size() + 1, ": \"", std::string(word.substr(0, kMaxShown)),
                       "\", want a number from 0 to ", vocab_size - 1));
    }
    ids.push_back(static_cast<int32_t>(id));
  }
  if (ids.empty()) return absl::InvalidArgumentError("no token ids: the file is empty");
  return ids;
}

absl::StatusOr<ScoreReport> ScoreTokens(const ScoreOptions& options,
                                        const std::function<void(int64_t done)>& progress) {
  Runner runner;
  absl::StatusOr<ModelConfig> config = LoadModelConfig(options.model_dir);
  if (!config.ok()) return config.status();
  runner.config = *std::move(config);
  const int64_t vocab = runner.config.arch.vocab_size;
  const auto total = static_cast<int64_t>(options.ids.size());
  const int64_t step = std::min(options.step > 0 ? options.step : DefaultStep(vocab), total);
  if (absl::Status status = Load(options, step, &runner); !status.ok()) return status;

  absl::StatusOr<SafetensorsWriter> writer =
      SafetensorsWriter::Create(options.logits_path, {{"logits", "F32", {total, vocab}}}, {});
  if (!writer.ok()) return writer.status();
  ScoreReport report;
  report.backend = runner.backend.backend->Describe();
  report.step = step;
  std::vector<float> logits(static_cast<size_t>(step * vocab));
  for (int64_t position = 0; position < total; position += step) {
    if (options.stop != nullptr && options.stop->load()) {
      return absl::CancelledError("interrupted; nothing was written");
    }
    const int64_t rows = std::min(step, total - position);
    const auto tokens = absl::MakeConstSpan(options.ids)
                            .subspan(static_cast<size_t>(position), static_cast<size_t>(rows));
    const auto out = absl::MakeSpan(logits).first(static_cast<size_t>(rows * vocab));
    const Clock::time_point start = Clock::now();
    if (absl::Status s = Forward(&runner, tokens, position, out); !s.ok()) return s;
    report.seconds += std::chrono::duration<double>(Clock::now() - start).count();
    const auto bytes = absl::MakeConstSpan(reinterpret_cast<const std::byte*>(out.data()),
                                           out.size() * sizeof(float));
    if (absl::Status s = writer->WritePart(bytes); !s.ok()) return s;
    if (progress) progress(position + rows);
  }
  if (absl::Status status = writer->Finish(); !status.ok()) return status;
  return report;
}

}  // namespace osdn::tools
