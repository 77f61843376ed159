#include "tools/convert.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/chat_template.h"
#include "engine/tensor_specs.h"
#include "engine/tokenizer.h"
#include "tools/check_tensors.h"
#include "tools/checkpoint.h"
#include "tools/checkpoint_config.h"
#include "tools/file_util.h"
#include "tools/name_map.h"
#include "tools/source_tensor.h"
#include "tools/weights_key.h"

namespace osdn::tools {
namespace {

namespace fs = std::filesystem;

constexpr char kConfigFile[] = "config.json";
constexpr char kChatTemplateFile[] = "chat_template.yaml";

std::string In(const std::string& dir, const char* file) { return (fs::path(dir) / file).string(); }

absl::Status Annotate(const absl::Status& status, const std::string& prefix) {
  return absl::Status(status.code(), absl::StrCat(prefix, status.message()));
}

// Where config.json and the other small files are.
absl::StatusOr<std::string> ConfigPath(const ConvertOptions& options) {
  std::error_code error;
  if (!fs::exists(options.source, error)) {
    return absl::NotFoundError(absl::StrCat(options.source, ": no such file or directory"));
  }
  if (!options.config.empty()) return options.config;
  const fs::path source(options.source);
  const std::string path =
      In(fs::is_directory(source, error) ? source.string() : source.parent_path().string(),
         kConfigFile);
  if (fs::exists(path, error)) return path;
  return absl::NotFoundError(
      absl::StrCat(path, ": there is none; name the model's config.json with --config"));
}

absl::StatusOr<CheckpointConfig> ReadConfigs(const std::string& path) {
  absl::StatusOr<std::string> text = ReadSmallFile(path);
  if (!text.ok()) return text.status();
  const std::string dir = fs::path(path).parent_path().string();
  absl::StatusOr<CheckpointConfig> config = ParseCheckpointConfig(*text);
  if (!config.ok()) return Annotate(config.status(), absl::StrCat(dir, "/"));
  if (absl::Status status = ValidateArchitecture(config->arch); !status.ok()) {
    return Annotate(status, absl::StrCat(path, ": "));
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

absl::Status ReadChatTemplate(std::string path, const std::string& dir, const Tokenizer* tokenizer,
                              ModelConfig* config) {
  std::error_code error;
  if (path.empty()) {
    path = In(dir, kChatTemplateFile);
    if (!fs::exists(path, error)) return absl::OkStatus();
  }
  absl::StatusOr<ChatTemplate> chat = LoadChatTemplate(path);
  if (!chat.ok()) return chat.status();
  if (tokenizer == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": a chat template needs a tokenizer, and ", dir, " has none"));
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

kernels::DType ChooseDType(const ConvertOptions& options, const NamedTensors& tensors,
                           const std::vector<TensorSpec>& specs) {
  if (options.dtype.has_value()) return *options.dtype;
  const bool all_bf16 = std::all_of(specs.begin(), specs.end(), [&](const TensorSpec& spec) {
    return spec.kind != TensorKind::kMatrix || tensors.at(spec.name).dtype == "BF16";
  });
  return all_bf16 ? kernels::DType::kBF16 : kernels::DType::kF32;
}

class CheckpointSource : public TensorSource {
 public:
  CheckpointSource(const NamedTensors& tensors, Checkpoint* checkpoint, bool ignore_checksums)
      : tensors_(tensors), checkpoint_(checkpoint), ignore_checksums_(ignore_checksums) {}

  absl::Status Read(const TensorSpec& spec, int64_t first, absl::Span<float> out) override {
    const SourceTensor& tensor = tensors_.at(spec.name);
    if (first == 0 && !ignore_checksums_) {
      absl::Status status = checkpoint_->CheckStorages(tensor);
      if (!status.ok()) return Annotate(status, absl::StrCat("tensor ", spec.name, ": "));
    }
    ReadRows(tensor, first, out);
    const int64_t columns = tensor.elements() / tensor.shape[0];
    const int64_t end = first + static_cast<int64_t>(out.size()) / columns;
    if (end == tensor.shape[0]) Checkpoint::Release(tensor);
    return absl::OkStatus();
  }

  std::string Origin(const TensorSpec& spec) const override {
    return absl::StrCat(tensors_.at(spec.name).dtype, " in the checkpoint");
  }

 private:
  const NamedTensors& tensors_;
  Checkpoint* const checkpoint_;
  const bool ignore_checksums_;
};

// Everything that is known before the first element is read.
struct Prepared {
  std::string config_dir;
  std::optional<CheckpointConfig> source;
  std::optional<Checkpoint> checkpoint;
  std::vector<TensorSpec> specs;
  MappedWeights weights;  // into the checkpoint
  std::vector<std::string> notices;
  absl::Status fit;
};

// Maps the weights and compares them with the config.
absl::Status MapWeights(const NameMap& map, const SelectedWeights& selected, Prepared* prepared) {
  absl::StatusOr<MappedWeights> mapped = map.Apply(selected);
  if (!mapped.ok()) return mapped.status();
  std::vector<std::string> notices = mapped->notices;
  prepared->fit = CheckTensors(mapped->tensors, prepared->specs,
                               prepared->source->arch.tie_embeddings, &notices);
  prepared->weights = *std::move(mapped);
  prepared->notices.insert(prepared->notices.end(), notices.begin(), notices.end());
  return absl::OkStatus();
}

// Without a map of their own, tensors that do not fit may be those of a known family.
absl::Status MapWeightsByFamily(const SelectedWeights& selected, Prepared* prepared) {
  absl::Status status = MapWeights(NameMap(), selected, prepared);
  if (!status.ok() || prepared->fit.ok()) return status;
  for (const std::string& name : NameMap::BuiltInNames()) {
    absl::StatusOr<NameMap> map = NameMap::Load(name);
    if (!map.ok()) return map.status();
    absl::StatusOr<MappedWeights> mapped = map->Apply(selected);
    if (!mapped.ok()) continue;
    std::vector<std::string> notices{absl::StrCat("the names fit the built-in map ", name)};
    const absl::Status fit = CheckTensors(mapped->tensors, prepared->specs,
                                          prepared->source->arch.tie_embeddings, &notices);
    if (!fit.ok()) continue;
    prepared->fit = fit;
    prepared->weights = *std::move(mapped);
    prepared->notices.insert(prepared->notices.end(), notices.begin(), notices.end());
    break;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Prepared>> Prepare(const ConvertOptions& options) {
  auto prepared = std::make_unique<Prepared>();
  absl::StatusOr<std::string> config_path = ConfigPath(options);
  if (!config_path.ok()) return config_path.status();
  prepared->config_dir = fs::path(*config_path).parent_path().string();
  absl::StatusOr<CheckpointConfig> source = ReadConfigs(*config_path);
  if (!source.ok()) return source.status();
  prepared->source = *std::move(source);
  prepared->specs = TensorSpecs(prepared->source->arch);
  absl::StatusOr<NameMap> map =
      options.name_map.empty() ? NameMap() : NameMap::Load(options.name_map);
  if (!map.ok()) return map.status();
  absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(options.source);
  if (!checkpoint.ok()) return checkpoint.status();
  prepared->checkpoint = *std::move(checkpoint);
  absl::StatusOr<SelectedWeights> selected =
      SelectWeights(prepared->checkpoint->tensors(), options.weights_key);
  if (!selected.ok()) return Annotate(selected.status(), absl::StrCat(options.source, ": "));
  prepared->notices = selected->notices;
  const absl::Status status = options.name_map.empty()
                                  ? MapWeightsByFamily(*selected, prepared.get())
                                  : MapWeights(*map, *selected, prepared.get());
  if (!status.ok()) return Annotate(status, absl::StrCat(options.source, ": "));
  if (!prepared->fit.ok()) {
    prepared->fit = Annotate(prepared->fit, absl::StrCat(options.source, ": "));
  }
  return prepared;
}

}  // namespace

absl::StatusOr<ConversionPlan> PlanConversion(const ConvertOptions& options) {
  absl::StatusOr<std::unique_ptr<Prepared>> prepared = Prepare(options);
  if (!prepared.ok()) return prepared.status();
  return ConversionPlan{std::move((*prepared)->weights.table), std::move((*prepared)->notices),
                        (*prepared)->fit};
}

std::string PlanToText(const ConversionPlan& plan) {
  size_t width = 0;
  for (const MappedTensor& line : plan.table) width = std::max(width, line.source.size());
  std::string text;
  for (const MappedTensor& line : plan.table) {
    absl::StrAppend(&text, line.source, std::string(width - line.source.size(), ' '), "  ");
    if (line.target.empty()) {
      absl::StrAppend(&text, line.operation, "\n");
      continue;
    }
    absl::StrAppend(&text, "-> ", line.target, "  ", line.dtype, ShapeText(line.shape),
                    line.operation.empty() ? "" : "  ", line.operation, "\n");
  }
  return text;
}

absl::StatusOr<ConvertReport> ConvertCheckpoint(const ConvertOptions& options,
                                                const WriteProgress& progress) {
  absl::Status status = CheckOutputApart(options.source, options.output_dir, "the checkpoint");
  if (!status.ok()) return status;
  absl::StatusOr<std::unique_ptr<Prepared>> prepare = Prepare(options);
  if (!prepare.ok()) return prepare.status();
  Prepared& prepared = **prepare;
  if (!prepared.fit.ok()) return prepared.fit;

  ConvertReport report;
  report.notices = std::move(prepared.notices);
  ModelConfig config;
  config.arch = prepared.source->arch;
  config.bos_id = prepared.source->bos_id;
  config.eos_ids = prepared.source->eos_ids;
  config.name = options.name.empty() ? NameFromDirectory(options.output_dir) : options.name;
  config.source =
      absl::StrCat(prepared.source->model_type, " checkpoint, ", prepared.checkpoint->kind());

  std::unique_ptr<Tokenizer> tokenizer;
  status = ReadTokenizer(prepared.config_dir, &config, &tokenizer, &report.notices);
  if (!status.ok()) return status;
  status = ReadChatTemplate(options.chat_template, prepared.config_dir, tokenizer.get(), &config);
  if (!status.ok()) return status;

  config.dtype = ChooseDType(options, prepared.weights.tensors, prepared.specs);
  CheckpointSource weights(prepared.weights.tensors, &*prepared.checkpoint,
                           options.ignore_checksums);
  absl::StatusOr<ModelWriterReport> written =
      WriteModelDirectory({.output_dir = options.output_dir,
                           .overwrite = options.overwrite,
                           .tokenizer_path = In(prepared.config_dir, kTokenizerFileName),
                           .stop = options.stop,
                           .progress = progress},
                          std::move(config), &weights);
  if (!written.ok()) return written.status();
  report.model = *std::move(written);
  return report;
}

}  // namespace osdn::tools
