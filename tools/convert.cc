#include "tools/convert.h"

#include <algorithm>
#include <filesystem>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/chat_template.h"
#include "engine/safetensors.h"
#include "engine/sha256.h"
#include "engine/tensor_specs.h"
#include "engine/tokenizer.h"
#include "engine/weights.h"
#include "tools/checkpoint.h"
#include "tools/checkpoint_config.h"
#include "tools/file_util.h"
#include "tools/float_convert.h"
#include "tools/output_directory.h"

namespace osdn::tools {
namespace {

namespace fs = std::filesystem;

constexpr char kConfigFile[] = "config.json";
constexpr char kChatTemplateFile[] = "chat_template.yaml";

std::string In(const std::string& dir, const char* file) { return (fs::path(dir) / file).string(); }

absl::Status Annotate(const absl::Status& status, const std::string& prefix) {
  return absl::Status(status.code(), absl::StrCat(prefix, status.message()));
}

absl::StatusOr<CheckpointConfig> ReadConfigs(const std::string& dir) {
  std::error_code error;
  if (!fs::is_directory(dir, error)) {
    return absl::NotFoundError(absl::StrCat(dir, ": no such directory"));
  }
  absl::StatusOr<std::string> text = ReadSmallFile(In(dir, kConfigFile));
  if (!text.ok()) return text.status();
  absl::StatusOr<CheckpointConfig> config = ParseCheckpointConfig(*text);
  if (!config.ok()) return Annotate(config.status(), absl::StrCat(dir, "/"));
  if (absl::Status status = ValidateArchitecture(config->arch); !status.ok()) {
    return Annotate(status, absl::StrCat(In(dir, kConfigFile), ": "));
  }
  absl::StatusOr<std::optional<std::string>> generation =
      ReadSmallFileIfExists(In(dir, "generation_config.json"));
  if (!generation.ok()) return generation.status();
  if (generation->has_value()) {
    absl::Status status = ApplyGenerationConfig(**generation, &*config);
    if (!status.ok()) return Annotate(status, absl::StrCat(dir, "/"));
  }
  return config;
}

// The tokenizer's part of `config`, checked against the architecture.
absl::Status ReadTokenizer(const std::string& dir, ModelConfig* config,
                           std::unique_ptr<Tokenizer>* tokenizer,
                           std::vector<std::string>* notices) {
  std::error_code error;
  const std::string path = In(dir, kTokenizerFileName);
  if (!fs::exists(path, error)) {
    std::string notice =
        absl::StrCat("no ", kTokenizerFileName, ": the model takes token ids only");
    if (fs::exists(In(dir, "tokenizer.json"), error)) {
      absl::StrAppend(&notice, " (tokenizer.json is not read; only SentencePiece is)");
    }
    notices->push_back(std::move(notice));
    return absl::OkStatus();
  }
  absl::StatusOr<std::unique_ptr<Tokenizer>> loaded = Tokenizer::Load(path);
  if (!loaded.ok()) return loaded.status();
  if ((*loaded)->vocab_size() > config->arch.vocab_size) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", (*loaded)->vocab_size(),
                                                   " pieces, config.json's vocab_size is ",
                                                   config->arch.vocab_size));
  }
  absl::StatusOr<std::optional<std::string>> text =
      ReadSmallFileIfExists(In(dir, "tokenizer_config.json"));
  if (!text.ok()) return text.status();
  if (text->has_value()) {
    absl::StatusOr<std::optional<bool>> add_bos = ParseAddBosToken(**text);
    if (!add_bos.ok()) return Annotate(add_bos.status(), absl::StrCat(dir, "/"));
    if (add_bos->has_value()) config->add_bos = **add_bos;
  }
  config->has_tokenizer = true;
  *tokenizer = *std::move(loaded);
  return absl::OkStatus();
}

absl::Status ReadChatTemplate(const ConvertOptions& options, const Tokenizer* tokenizer,
                              ModelConfig* config) {
  std::string path = options.chat_template;
  std::error_code error;
  if (path.empty()) {
    path = In(options.source_dir, kChatTemplateFile);
    if (!fs::exists(path, error)) return absl::OkStatus();
  }
  absl::StatusOr<ChatTemplate> chat = LoadChatTemplate(path);
  if (!chat.ok()) return chat.status();
  if (tokenizer == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": a chat template needs a tokenizer, and ", options.source_dir, " has none"));
  }
  // Rendering one message of each role meets every special token that the template names.
  absl::StatusOr<std::vector<int32_t>> stops = ChatStopIds(*chat, *tokenizer);
  if (!stops.ok()) return Annotate(stops.status(), absl::StrCat(path, ": "));
  for (const auto& [role, parts] : chat->roles) {
    const ChatMessage message{role, "x"};
    absl::StatusOr<std::vector<int32_t>> rendered =
        RenderChat(*chat, *tokenizer, config->bos_id, {message});
    if (!rendered.ok()) return Annotate(rendered.status(), absl::StrCat(path, ": "));
  }
  config->chat = *std::move(chat);
  return absl::OkStatus();
}

kernels::DType ChooseDType(const ConvertOptions& options, const Checkpoint& checkpoint,
                           const std::vector<TensorSpec>& specs) {
  if (options.dtype.has_value()) return *options.dtype;
  const bool all_bf16 = std::all_of(specs.begin(), specs.end(), [&](const TensorSpec& spec) {
    return spec.kind != TensorKind::kMatrix || checkpoint.Find(spec.name)->dtype == "BF16";
  });
  return all_bf16 ? kernels::DType::kBF16 : kernels::DType::kF32;
}

kernels::DType StoredDType(const TensorSpec& spec, kernels::DType matrices) {
  return spec.kind == TensorKind::kMatrix ? matrices : kernels::DType::kF32;
}

// Writes weights.safetensors piece by piece.
class WeightConverter {
 public:
  WeightConverter(const ConvertOptions& options, const Checkpoint& checkpoint,
                  const std::vector<TensorSpec>& specs, const ConvertProgress& progress)
      : options_(options), checkpoint_(checkpoint), specs_(specs), progress_(progress) {
    for (const TensorSpec& spec : specs) {
      total_ += static_cast<int64_t>(checkpoint.Find(spec.name)->data.size());
    }
  }

  absl::Status Run(const std::string& path, kernels::DType matrices) {
    std::vector<SafetensorsWriter::Declaration> declarations;
    for (const TensorSpec& spec : specs_) {
      const bool f32 = StoredDType(spec, matrices) == kernels::DType::kF32;
      declarations.push_back({spec.name, f32 ? "F32" : "BF16", spec.shape});
    }
    absl::StatusOr<SafetensorsWriter> writer =
        SafetensorsWriter::Create(path, declarations, {{"format", "osdn"}});
    if (!writer.ok()) return writer.status();
    for (const TensorSpec& spec : specs_) {
      absl::Status status = ConvertTensor(spec, StoredDType(spec, matrices), &*writer);
      if (!status.ok()) return status;
    }
    return writer->Finish();
  }

 private:
  absl::Status ConvertTensor(const TensorSpec& spec, kernels::DType to, SafetensorsWriter* writer) {
    const SafetensorsEntry& entry = *checkpoint_.Find(spec.name);
    const SourceDType from = *ParseSourceDType(entry.dtype);
    constexpr size_t kPieceBytes = size_t{4} << 20;
    const size_t element = SourceDTypeSize(from);
    std::vector<std::byte> piece;
    for (size_t at = 0; at < entry.data.size(); at += kPieceBytes) {
      if (options_.stop != nullptr && options_.stop->load()) {
        return absl::CancelledError("interrupted; nothing was written");
      }
      const absl::Span<const std::byte> source = entry.data.subspan(at, kPieceBytes);
      if (std::optional<size_t> bad = ConvertElements(source, from, to, &piece)) {
        return absl::InvalidArgumentError(absl::StrCat(
            "tensor ", spec.name, ": element ", at / element + *bad, " is not finite as ",
            std::string(kernels::DTypeName(to)), " (", entry.dtype, " in the checkpoint)"));
      }
      if (absl::Status status = writer->WritePart(piece); !status.ok()) return status;
      done_ += static_cast<int64_t>(source.size());
      if (progress_) progress_(done_, total_, spec.name);
    }
    return absl::OkStatus();
  }

  const ConvertOptions& options_;
  const Checkpoint& checkpoint_;
  const std::vector<TensorSpec>& specs_;
  const ConvertProgress& progress_;
  int64_t total_ = 0;
  int64_t done_ = 0;
};

absl::Status AddDigest(const OutputDirectory& output, const std::string& name,
                       ModelConfig* config) {
  absl::StatusOr<FileHash> hash = HashFile(output.StagingPath(name));
  if (!hash.ok()) return hash.status();
  config->files.push_back({name, hash->bytes, hash->sha256});
  return absl::OkStatus();
}

// Everything but the rename. What was written must load: a directory that the server would refuse
// is never committed.
absl::Status WriteModel(const ConvertOptions& options, WeightConverter* weights,
                        const OutputDirectory& output, ModelConfig* config) {
  absl::Status status = weights->Run(output.StagingPath(kWeightsFileName), config->dtype);
  if (status.ok()) status = AddDigest(output, kWeightsFileName, config);
  if (status.ok() && config->has_tokenizer) {
    std::error_code error;
    fs::copy_file(In(options.source_dir, kTokenizerFileName),
                  output.StagingPath(kTokenizerFileName), error);
    if (error) {
      return absl::ErrnoToStatus(error.value(), absl::StrCat("cannot copy ", kTokenizerFileName));
    }
    status = AddDigest(output, kTokenizerFileName, config);
  }
  if (status.ok()) {
    status = WriteSmallFile(output.StagingPath(kModelFileName), ModelConfigToYaml(*config));
  }
  if (!status.ok()) return status;
  absl::StatusOr<ModelConfig> loaded = LoadModelConfig(output.staging().string());
  if (!loaded.ok()) return loaded.status();
  return Weights::Load(output.staging().string(), *loaded, {.verify_checksums = false}).status();
}

// Replacing the output must not take the checkpoint with it.
absl::Status CheckApart(const std::string& source_dir, const std::string& output_dir) {
  std::error_code error;
  const fs::path source = fs::weakly_canonical(source_dir, error);
  const fs::path output = fs::weakly_canonical(output_dir, error);
  const fs::path relative = source.lexically_relative(output);
  if (relative.empty() || *relative.begin() == "..") return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(output_dir, ": holds the checkpoint ", source_dir, "; choose another OUT_DIR"));
}

std::string DefaultName(const std::string& output_dir) {
  fs::path path = fs::absolute(output_dir).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  return path.filename().string();
}

}  // namespace

absl::StatusOr<ConvertReport> ConvertCheckpoint(const ConvertOptions& options,
                                                const ConvertProgress& progress) {
  absl::Status status = CheckApart(options.source_dir, options.output_dir);
  if (!status.ok()) return status;
  absl::StatusOr<CheckpointConfig> source = ReadConfigs(options.source_dir);
  if (!source.ok()) return source.status();
  absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(options.source_dir);
  if (!checkpoint.ok()) return checkpoint.status();

  ConvertReport report;
  ModelConfig& config = report.config;
  config.arch = source->arch;
  config.bos_id = source->bos_id;
  config.eos_ids = source->eos_ids;
  config.name = options.name.empty() ? DefaultName(options.output_dir) : options.name;
  config.source = absl::StrCat("fla-layout ", source->model_type, " checkpoint");

  const std::vector<TensorSpec> specs = TensorSpecs(config.arch);
  status = CheckTensors(*checkpoint, specs, config.arch.tie_embeddings, &report.notices);
  if (!status.ok()) return Annotate(status, absl::StrCat(options.source_dir, ": "));
  std::unique_ptr<Tokenizer> tokenizer;
  status = ReadTokenizer(options.source_dir, &config, &tokenizer, &report.notices);
  if (!status.ok()) return status;
  status = ReadChatTemplate(options, tokenizer.get(), &config);
  if (!status.ok()) return status;

  absl::StatusOr<OutputDirectory> output =
      OutputDirectory::Create(options.output_dir, options.overwrite);
  if (!output.ok()) return output.status();
  config.dtype = ChooseDType(options, *checkpoint, specs);
  WeightConverter weights(options, *checkpoint, specs, progress);
  status = WriteModel(options, &weights, *output, &config);
  if (status.ok()) status = output->Commit();
  if (!status.ok()) return status;

  for (const TensorSpec& spec : specs) {
    int64_t elements = 1;
    for (const int64_t dim : spec.shape) elements *= dim;
    report.parameters += elements;
  }
  report.weight_bytes = config.files.front().bytes;
  return report;
}

}  // namespace osdn::tools
