#include "tools/perplexity.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "engine/tokenizer.h"
#include "tools/file_util.h"
#include "tools/model_runner.h"
#include "tools/parallel.h"
#include "tools/score.h"

namespace osdn::tools {
namespace {

using Document = std::vector<int32_t>;

// Log of the sum of exponentials; NaN when a logit is not finite.
double LogSumExp(absl::Span<const float> logits) {
  const float max = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) {
    if (!std::isfinite(logit)) return std::numeric_limits<double>::quiet_NaN();
    sum += std::exp(static_cast<double>(logit) - max);
  }
  return max + std::log(sum);
}

absl::Status CheckDocument(const std::string& path, size_t number, const Document& document) {
  if (document.size() >= 2) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": document ", number, " has ", document.size(),
                   " tokens; at least 2 are needed, one to begin and one to predict"));
}

// Documents of a text file, encoded; `*text_bytes` counts what was encoded.
absl::StatusOr<std::vector<Document>> ReadText(const std::string& path,
                                               const std::string& model_dir,
                                               const ModelConfig& config, int64_t* text_bytes) {
  if (!config.has_tokenizer) {
    return absl::InvalidArgumentError(absl::StrCat(
        model_dir, ": the model has no tokenizer: give token ids (--ids-file) instead of text"));
  }
  absl::StatusOr<std::string> text = ReadSmallFile(path);
  if (!text.ok()) return text.status();
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer =
      Tokenizer::Load(absl::StrCat(model_dir, "/", kTokenizerFileName));
  if (!tokenizer.ok()) return tokenizer.status();
  std::vector<Document> documents;
  for (absl::string_view part : absl::StrSplit(*text, '\f')) {
    part = absl::StripAsciiWhitespace(part);
    Document document;
    if (config.add_bos && config.bos_id.has_value()) document.push_back(*config.bos_id);
    const Document ids = (*tokenizer)->Encode({part.data(), part.size()});
    document.insert(document.end(), ids.begin(), ids.end());
    documents.push_back(std::move(document));
    *text_bytes += static_cast<int64_t>(part.size());
    absl::Status status = CheckDocument(path, documents.size(), documents.back());
    if (!status.ok()) return status;
  }
  return documents;
}

absl::StatusOr<std::vector<Document>> ReadIds(const std::string& path, int64_t vocab_size) {
  absl::StatusOr<std::string> text = ReadSmallFile(path);
  if (!text.ok()) return text.status();
  std::vector<Document> documents;
  for (const absl::string_view line : absl::StrSplit(*text, '\n')) {
    if (absl::StripAsciiWhitespace(line).empty()) continue;
    absl::StatusOr<Document> ids = ParseTokenIds({line.data(), line.size()}, vocab_size);
    if (!ids.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": document ", documents.size() + 1, ": ", ids.status().message()));
    }
    documents.push_back(*std::move(ids));
    absl::Status status = CheckDocument(path, documents.size(), documents.back());
    if (!status.ok()) return status;
  }
  if (documents.empty()) return absl::InvalidArgumentError(absl::StrCat(path, ": no documents"));
  return documents;
}

std::string TokenizerDigest(const ModelConfig& config) {
  for (const FileDigest& file : config.files) {
    if (file.name == kTokenizerFileName) return file.sha256;
  }
  return "";
}

absl::Status CheckComparable(const PerplexityOptions& options, const ModelConfig& model,
                             const ModelConfig& other) {
  if (model.arch.vocab_size != other.arch.vocab_size) {
    return absl::InvalidArgumentError(absl::StrCat(
        options.against_dir, ": vocabulary of ", other.arch.vocab_size, " tokens, ",
        options.model_dir, " has ", model.arch.vocab_size, ": the two cannot be compared"));
  }
  const bool same = TokenizerDigest(model) == TokenizerDigest(other);
  if (!options.text_path.empty() && !same) {
    return absl::InvalidArgumentError(absl::StrCat(options.against_dir, ": its tokenizer is not ",
                                                   options.model_dir,
                                                   "'s: the two cannot be compared on text"));
  }
  return absl::OkStatus();
}

// What one position adds.
struct Position {
  double nats = 0;
  double against_nats = 0;
  double kl = 0;
  double logit_difference = 0;
  bool same_top = false;
};

class Measurement {
 public:
  Measurement(const PerplexityOptions& options, PerplexityReport* report)
      : options_(options), report_(report) {}

  absl::Status Load() {
    absl::Status status = LoadRunner(options_.model_dir, &model_, &logits_);
    if (!status.ok()) return status;
    report_->model = model_->config().name;
    report_->dtype = kernels::DTypeName(model_->config().dtype);
    report_->backend = model_->backend().Describe();
    if (options_.against_dir.empty()) return absl::OkStatus();
    status = LoadRunner(options_.against_dir, &against_, &against_logits_);
    if (!status.ok()) return status;
    report_->against.emplace();
    report_->against->model = against_->config().name;
    report_->against->dtype = kernels::DTypeName(against_->config().dtype);
    return CheckComparable(options_, model_->config(), against_->config());
  }

  absl::StatusOr<std::vector<Document>> Read() {
    if (!options_.documents.empty()) return options_.documents;
    if (options_.text_path.empty()) return ReadIds(options_.ids_path, vocab());
    return ReadText(options_.text_path, options_.model_dir, model_->config(), &report_->text_bytes);
  }

  absl::Status Run(const std::vector<Document>& documents,
                   const std::function<void(int64_t done, int64_t total)>& progress) {
    int64_t total = 0;
    for (const Document& document : documents) total += static_cast<int64_t>(document.size()) - 1;
    for (const Document& document : documents) {
      ++report_->documents;
      for (ModelRunner* runner : {model_.get(), against_.get()}) {
        if (runner == nullptr) continue;
        if (absl::Status status = runner->Reset(0); !status.ok()) return status;
      }
      const auto predicted = static_cast<int64_t>(document.size()) - 1;
      for (int64_t at = 0; at < predicted; at += step_) {
        if (options_.stop != nullptr && options_.stop->load()) {
          return absl::CancelledError("interrupted; nothing is reported");
        }
        absl::Status status = Step(document, at, std::min(step_, predicted - at));
        if (!status.ok()) return status;
        if (progress) progress(report_->tokens, total);
      }
    }
    if (report_->against.has_value()) {
      report_->against->mean_kl /= static_cast<double>(report_->tokens);
      report_->against->same_top /= static_cast<double>(report_->tokens);
    }
    return absl::OkStatus();
  }

 private:
  int64_t vocab() const { return model_->config().arch.vocab_size; }

  absl::Status LoadRunner(const std::string& dir, std::unique_ptr<ModelRunner>* runner,
                          std::vector<float>* logits) {
    absl::StatusOr<ModelConfig> config = LoadModelConfig(dir);
    if (!config.ok()) return config.status();
    step_ = SensibleStep(config->arch.vocab_size);
    absl::StatusOr<std::unique_ptr<ModelRunner>> loaded =
        ModelRunner::Load({.model_dir = dir,
                           .backend = options_.backend,
                           .model = {.max_rows = step_, .max_logit_rows = step_},
                           .slots = 1,
                           .verify_checksums = options_.verify_checksums});
    if (!loaded.ok()) return loaded.status();
    *runner = *std::move(loaded);
    logits->resize(static_cast<size_t>(step_ * config->arch.vocab_size));
    rows_.resize(static_cast<size_t>(step_));
    std::iota(rows_.begin(), rows_.end(), int64_t{0});
    return absl::OkStatus();
  }

  absl::Status Forward(ModelRunner* runner, absl::Span<const int32_t> tokens, int64_t at,
                       std::vector<float>* logits) {
    const size_t size = tokens.size() * static_cast<size_t>(vocab());
    return runner->Forward(tokens, at, /*slot=*/0, absl::MakeConstSpan(rows_).first(tokens.size()),
                           absl::MakeSpan(*logits).first(size));
  }

  absl::Span<const float> Row(const std::vector<float>& logits, int64_t row) const {
    return absl::MakeConstSpan(logits).subspan(static_cast<size_t>(row * vocab()),
                                               static_cast<size_t>(vocab()));
  }

  // Tokens [at, at + rows) of a document go in; the ones behind each of them are predicted.
  absl::Status Step(const Document& document, int64_t at, int64_t rows) {
    const auto tokens =
        absl::MakeConstSpan(document).subspan(static_cast<size_t>(at), static_cast<size_t>(rows));
    absl::Status status = Forward(model_.get(), tokens, at, &logits_);
    if (status.ok() && against_ != nullptr) {
      status = Forward(against_.get(), tokens, at, &against_logits_);
    }
    if (!status.ok()) return status;

    std::vector<Position> positions(static_cast<size_t>(rows));
    ParallelShares(rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int32_t target = document[static_cast<size_t>(at + row + 1)];
        positions[static_cast<size_t>(row)] = Compare(row, target);
      }
    });
    for (size_t row = 0; row < positions.size(); ++row) {
      const Position& position = positions[row];
      if (!std::isfinite(position.nats + position.against_nats + position.kl)) {
        return absl::DataLossError(absl::StrCat("document ", report_->documents, ", token ",
                                                at + static_cast<int64_t>(row) + 1,
                                                ": logits that are not finite"));
      }
      Add(position);
    }
    return absl::OkStatus();
  }

  Position Compare(int64_t row, int32_t target) const {
    const absl::Span<const float> logits = Row(logits_, row);
    Position position;
    position.nats = NegativeLogLikelihood(logits, target);
    if (against_ == nullptr) return position;
    const absl::Span<const float> other = Row(against_logits_, row);
    position.against_nats = NegativeLogLikelihood(other, target);
    position.kl = KlDivergence(other, logits);
    for (size_t i = 0; i < logits.size(); ++i) {
      const double difference = std::fabs(static_cast<double>(logits[i]) - other[i]);
      position.logit_difference = std::max(position.logit_difference, difference);
    }
    const auto top = [](absl::Span<const float> values) {
      return std::max_element(values.begin(), values.end()) - values.begin();
    };
    position.same_top = top(logits) == top(other);
    return position;
  }

  void Add(const Position& position) {
    ++report_->tokens;
    report_->nats += position.nats;
    if (!report_->against.has_value()) return;
    ReferenceComparison& against = *report_->against;
    against.nats += position.against_nats;
    against.mean_kl += position.kl;
    against.max_kl = std::max(against.max_kl, position.kl);
    against.max_logit_difference =
        std::max(against.max_logit_difference, position.logit_difference);
    against.same_top += position.same_top ? 1 : 0;
  }

  const PerplexityOptions& options_;
  PerplexityReport* report_;
  std::unique_ptr<ModelRunner> model_;
  std::unique_ptr<ModelRunner> against_;
  int64_t step_ = 0;
  std::vector<int64_t> rows_;
  std::vector<float> logits_, against_logits_;
};

}  // namespace

double NegativeLogLikelihood(absl::Span<const float> logits, int32_t target) {
  return LogSumExp(logits) - logits[static_cast<size_t>(target)];
}

double KlDivergence(absl::Span<const float> p_logits, absl::Span<const float> q_logits) {
  const double p_norm = LogSumExp(p_logits);
  const double q_norm = LogSumExp(q_logits);
  double sum = 0;
  for (size_t i = 0; i < p_logits.size(); ++i) {
    const double log_p = p_logits[i] - p_norm;
    sum += std::exp(log_p) * (log_p - (q_logits[i] - q_norm));
  }
  // Rounding may leave a little below 0; a NaN stays one.
  return sum < 0 ? 0 : sum;
}

double PerplexityReport::perplexity() const { return std::exp(nats / static_cast<double>(tokens)); }

double PerplexityReport::against_perplexity() const {
  return std::exp(against->nats / static_cast<double>(tokens));
}

double PerplexityReport::perplexity_ratio() const { return perplexity() / against_perplexity(); }

absl::StatusOr<PerplexityReport> MeasurePerplexity(
    const PerplexityOptions& options,
    const std::function<void(int64_t done, int64_t total)>& progress) {
  const int inputs = static_cast<int>(!options.text_path.empty()) +
                     static_cast<int>(!options.ids_path.empty()) +
                     static_cast<int>(!options.documents.empty());
  if (inputs != 1) {
    return absl::InvalidArgumentError("give a text or token ids, one of the two");
  }
  PerplexityReport report;
  Measurement measurement(options, &report);
  if (absl::Status status = measurement.Load(); !status.ok()) return status;
  absl::StatusOr<std::vector<Document>> documents = measurement.Read();
  if (!documents.ok()) return documents.status();
  if (absl::Status status = measurement.Run(*documents, progress); !status.ok()) return status;
  return report;
}

std::string PerplexityToText(const PerplexityReport& report) {
  std::string text = absl::StrFormat(
      "model            %s, %s\nbackend          %s\ntext             %d tokens in %d documents\n"
      "perplexity       %.4f\n",
      report.model, report.dtype, report.backend, report.tokens, report.documents,
      report.perplexity());
  if (report.text_bytes > 0) {
    absl::StrAppendFormat(&text, "bits a byte      %.4f\n",
                          report.nats / std::log(2.0) / static_cast<double>(report.text_bytes));
  }
  if (!report.against.has_value()) return text;
  constexpr double kPercent = 100;
  absl::StrAppendFormat(
      &text,
      "against          %s, %s: perplexity %.4f\nratio            %.5f (%+.3f%%)\n"
      "KL               mean %.3g, max %.3g nats\nsame first token %.2f%%\n",
      report.against->model, report.against->dtype, report.against_perplexity(),
      report.perplexity_ratio(), (report.perplexity_ratio() - 1) * kPercent,
      report.against->mean_kl, report.against->max_kl, report.against->same_top * kPercent);
  return text;
}

std::string PerplexityToJson(const PerplexityReport& report) {
  using Json = nlohmann::ordered_json;
  Json root = {{"model", report.model},     {"dtype", report.dtype},
               {"backend", report.backend}, {"documents", report.documents},
               {"tokens", report.tokens},   {"perplexity", report.perplexity()},
               {"nats", report.nats}};
  if (report.text_bytes > 0) {
    root["bits_per_byte"] = report.nats / std::log(2.0) / static_cast<double>(report.text_bytes);
  }
  if (report.against.has_value()) {
    root["against"] = {{"model", report.against->model},
                       {"dtype", report.against->dtype},
                       {"perplexity", report.against_perplexity()},
                       {"perplexity_ratio", report.perplexity_ratio()},
                       {"mean_kl", report.against->mean_kl},
                       {"max_kl", report.against->max_kl},
                       {"max_logit_difference", report.against->max_logit_difference},
                       {"same_top", report.against->same_top}};
  }
  return root.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace osdn::tools
