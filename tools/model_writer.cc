#include "tools/model_writer.h"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "engine/safetensors.h"
#include "engine/sha256.h"
#include "engine/weights.h"
#include "tools/file_util.h"
#include "tools/output_directory.h"

namespace osdn::tools {
namespace {

namespace fs = std::filesystem;

int64_t Elements(const TensorSpec& spec) {
  int64_t elements = 1;
  for (const int64_t dim : spec.shape) elements *= dim;
  return elements;
}

// Writes weights.safetensors piece by piece.
class WeightsFile {
 public:
  WeightsFile(const ModelWriterOptions& options, TensorSource* source, ModelWriterReport* report)
      : options_(options), source_(source), report_(report) {}

  absl::Status Write(const std::string& path) {
    const std::vector<TensorSpec> specs = TensorSpecs(report_->config.arch);
    std::vector<SafetensorsWriter::Declaration> declarations;
    for (const TensorSpec& spec : specs) {
      report_->parameters += Elements(spec);
      for (StoredTensor& stored : StoredTensors(spec, Stored(spec))) {
        declarations.push_back(
            {std::move(stored.name), std::move(stored.dtype), std::move(stored.shape)});
      }
    }
    absl::StatusOr<SafetensorsWriter> writer =
        SafetensorsWriter::Create(path, declarations, {{"format", "osdn"}});
    if (!writer.ok()) return writer.status();
    for (const TensorSpec& spec : specs) {
      if (absl::Status status = WriteTensor(spec, &*writer); !status.ok()) return status;
    }
    return writer->Finish();
  }

 private:
  kernels::DType Stored(const TensorSpec& spec) const {
    return StoredDType(spec, report_->config.dtype);
  }

  absl::Status WriteTensor(const TensorSpec& spec, SafetensorsWriter* writer) {
    constexpr int64_t kPieceElements = int64_t{1} << 20;
    const kernels::DType to = Stored(spec);
    const int64_t rows = spec.shape[0];
    const int64_t columns = Elements(spec) / rows;
    const int64_t piece_rows = std::max(kPieceElements / columns, int64_t{1});
    TensorRounding rounding = {.name = spec.name, .dtype = to, .error = {}};
    std::vector<std::byte> scales;
    for (int64_t row = 0; row < rows; row += piece_rows) {
      if (options_.stop != nullptr && options_.stop->load()) {
        return absl::CancelledError("interrupted; nothing was written");
      }
      values_.resize(static_cast<size_t>(std::min(piece_rows, rows - row) * columns));
      absl::Status status = source_->Read(spec, row, absl::MakeSpan(values_));
      if (!status.ok()) return status;
      if (std::optional<size_t> bad = EncodeRows(values_, columns, to, &piece_, &rounding.error)) {
        return absl::InvalidArgumentError(
            absl::StrCat("tensor ", spec.name, ": element ",
                         row * columns + static_cast<int64_t>(*bad), " is not finite as ",
                         std::string(kernels::DTypeName(to)), " (", source_->Origin(spec), ")"));
      }
      status = writer->WritePart(piece_.data);
      if (!status.ok()) return status;
      scales.insert(scales.end(), piece_.scales.begin(), piece_.scales.end());
      done_ += static_cast<int64_t>(values_.size());
      if (options_.progress) options_.progress(done_, report_->parameters, spec.name);
    }
    if (to != kernels::DType::kF32) report_->roundings.push_back(std::move(rounding));
    return scales.empty() ? absl::OkStatus() : writer->Write(scales);
  }

  const ModelWriterOptions& options_;
  TensorSource* source_;
  ModelWriterReport* report_;
  int64_t done_ = 0;
  std::vector<float> values_;
  EncodedRows piece_;
};

// Of all files together, roughly but not too little.
int64_t OutputBytes(const ModelWriterOptions& options, const ModelConfig& config) {
  int64_t bytes = int64_t{1} << 20;  // model.yaml, the header
  for (const TensorSpec& spec : TensorSpecs(config.arch)) {
    bytes += StoredBytes(spec, StoredDType(spec, config.dtype));
  }
  std::error_code error;
  const uintmax_t tokenizer =
      config.has_tokenizer ? fs::file_size(options.tokenizer_path, error) : 0;
  return error ? bytes : bytes + static_cast<int64_t>(tokenizer);
}

absl::Status AddDigest(const OutputDirectory& output, const std::string& name,
                       ModelConfig* config) {
  absl::StatusOr<FileHash> hash = HashFile(output.StagingPath(name));
  if (!hash.ok()) return hash.status();
  config->files.push_back({name, hash->bytes, hash->sha256});
  return absl::OkStatus();
}

// Everything but the rename. What was written must load: a directory that the server would refuse
// is never committed.
absl::Status WriteFiles(const ModelWriterOptions& options, TensorSource* source,
                        const OutputDirectory& output, ModelWriterReport* report) {
  ModelConfig& config = report->config;
  config.files.clear();
  absl::Status status =
      WeightsFile(options, source, report).Write(output.StagingPath(kWeightsFileName));
  if (status.ok()) status = AddDigest(output, kWeightsFileName, &config);
  if (status.ok() && config.has_tokenizer) {
    std::error_code error;
    fs::copy_file(options.tokenizer_path, output.StagingPath(kTokenizerFileName), error);
    if (error) {
      return absl::ErrnoToStatus(error.value(), absl::StrCat("cannot copy ", kTokenizerFileName));
    }
    status = AddDigest(output, kTokenizerFileName, &config);
  }
  if (status.ok()) {
    status = WriteSmallFile(output.StagingPath(kModelFileName), ModelConfigToYaml(config));
  }
  if (!status.ok()) return status;
  report->weight_bytes = config.files.front().bytes;
  absl::StatusOr<ModelConfig> loaded = LoadModelConfig(output.staging().string());
  if (!loaded.ok()) return loaded.status();
  return Weights::Load(output.staging().string(), *loaded, {.verify_checksums = false}).status();
}

}  // namespace

absl::StatusOr<ModelWriterReport> WriteModelDirectory(const ModelWriterOptions& options,
                                                      ModelConfig config, TensorSource* source) {
  absl::StatusOr<OutputDirectory> output =
      OutputDirectory::Create(options.output_dir, options.overwrite);
  if (!output.ok()) return output.status();
  ModelWriterReport report;
  report.config = std::move(config);
  absl::Status status = output->RequireSpace(OutputBytes(options, report.config));
  if (status.ok()) status = WriteFiles(options, source, *output, &report);
  if (status.ok()) status = output->Commit();
  if (!status.ok()) return status;
  return report;
}

std::string NameFromDirectory(const std::string& dir) {
  fs::path path = fs::absolute(dir).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  return path.filename().string();
}

absl::Status CheckOutputApart(const std::string& source_dir, const std::string& output_dir,
                              std::string_view what) {
  std::error_code error;
  const fs::path source = fs::weakly_canonical(source_dir, error);
  const fs::path output = fs::weakly_canonical(output_dir, error);
  const fs::path relative = source.lexically_relative(output);
  if (relative.empty() || *relative.begin() == "..") return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(output_dir, ": holds ", std::string(what), " ",
                                                 source_dir, "; choose another OUT_DIR"));
}

std::string RoundingTable(absl::Span<const TensorRounding> roundings) {
  std::string text;
  for (const TensorRounding& rounding : roundings) {
    absl::StrAppendFormat(&text, "%8.4f%%  %-4s  %s\n", 100 * rounding.error.relative_rms(),
                          kernels::DTypeName(rounding.dtype), rounding.name);
  }
  return text;
}

std::string RoundingText(absl::Span<const TensorRounding> roundings) {
  if (roundings.empty()) return "";
  RoundingError all;
  std::vector<const TensorRounding*> order;
  for (const TensorRounding& rounding : roundings) {
    all.Add(rounding.error);
    order.push_back(&rounding);
  }
  constexpr size_t kShown = 3;
  std::stable_sort(order.begin(), order.end(),
                   [](const TensorRounding* a, const TensorRounding* b) {
                     return a->error.relative_rms() > b->error.relative_rms();
                   });
  order.resize(std::min(order.size(), kShown));
  const auto worst = [](std::string* out, const TensorRounding* rounding) {
    absl::StrAppendFormat(out, "%s %.3g%% (%s)", rounding->name,
                          100 * rounding->error.relative_rms(),
                          kernels::DTypeName(rounding->dtype));
  };
  return absl::StrFormat("relative RMS error %.3g%% over all matrices; worst: %s",
                         100 * all.relative_rms(), absl::StrJoin(order, ", ", worst));
}

}  // namespace osdn::tools
