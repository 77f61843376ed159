#include "tools/score.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <memory>
#include <numeric>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "engine/model_config.h"
#include "engine/safetensors.h"
#include "tools/model_runner.h"

namespace osdn::tools {
namespace {

using Clock = std::chrono::steady_clock;

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
  absl::StatusOr<ModelConfig> config = LoadModelConfig(options.model_dir);
  if (!config.ok()) return config.status();
  const int64_t vocab = config->arch.vocab_size;
  const auto total = static_cast<int64_t>(options.ids.size());
  const int64_t step = std::min(options.step > 0 ? options.step : SensibleStep(vocab), total);
  absl::StatusOr<std::unique_ptr<ModelRunner>> runner =
      ModelRunner::Load({.model_dir = options.model_dir,
                         .backend = options.backend,
                         .model = {.max_rows = step, .max_logit_rows = step},
                         .slots = 1,
                         .verify_checksums = options.verify_checksums});
  if (!runner.ok()) return runner.status();

  absl::StatusOr<SafetensorsWriter> writer =
      SafetensorsWriter::Create(options.logits_path, {{"logits", "F32", {total, vocab}}}, {});
  if (!writer.ok()) return writer.status();
  ScoreReport report;
  report.backend = (*runner)->backend().Describe();
  report.step = step;
  std::vector<float> logits(static_cast<size_t>(step * vocab));
  std::vector<int64_t> all_rows(static_cast<size_t>(step));
  std::iota(all_rows.begin(), all_rows.end(), int64_t{0});
  for (int64_t position = 0; position < total; position += step) {
    if (options.stop != nullptr && options.stop->load()) {
      return absl::CancelledError("interrupted; nothing was written");
    }
    const int64_t rows = std::min(step, total - position);
    const auto tokens = absl::MakeConstSpan(options.ids)
                            .subspan(static_cast<size_t>(position), static_cast<size_t>(rows));
    const auto out = absl::MakeSpan(logits).first(static_cast<size_t>(rows * vocab));
    const Clock::time_point start = Clock::now();
    const auto wanted = absl::MakeConstSpan(all_rows).first(tokens.size());
    absl::Status status = (*runner)->Forward(tokens, position, /*slot=*/0, wanted, out);
    if (!status.ok()) return status;
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
