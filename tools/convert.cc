#include "tools/convert.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/chat_template.h"
#include "engine/tensor_specs.h"
#include "engine/tokenizer.h"
#include "tools/check_tensors.h"
#include "tools/checkpoint.h"
#include "tools/checkpoint_config.h"
#include "tools/file_util.h"
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

// The tensors under the names that the model has for them.
absl::StatusOr<NamedTensors> ModelTensors(const ConvertOptions& options,
                                          const Checkpoint& checkpoint,
                                          std::vector<std::string>* notices) {
  absl::StatusOr<SelectedWeights> selected =
      SelectWeights(checkpoint.tensors(), options.weights_key);
  if (!selected.ok()) return selected.status();
  notices->insert(notices->end(), selected->notices.begin(), selected->notices.end());
  NamedTensors tensors;
  for (SelectedTensor& tensor : selected->tensors) {
    tensors.emplace(std::move(tensor.name), *tensor.tensor);
  }
  return tensors;
}

}  // namespace

absl::StatusOr<ConvertReport> ConvertCheckpoint(const ConvertOptions& options,
                                                const WriteProgress& progress) {
  absl::Status status = CheckOutputApart(options.source, options.output_dir, "the checkpoint");
  if (!status.ok()) return status;
  absl::StatusOr<std::string> config_path = ConfigPath(options);
  if (!config_path.ok()) return config_path.status();
  const std::string config_dir = fs::path(*config_path).parent_path().string();
  absl::StatusOr<CheckpointConfig> source = ReadConfigs(*config_path);
  if (!source.ok()) return source.status();
  absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(options.source);
  if (!checkpoint.ok()) return checkpoint.status();

  ConvertReport report;
  ModelConfig config;
  config.arch = source->arch;
  config.bos_id = source->bos_id;
  config.eos_ids = source->eos_ids;
  config.name = options.name.empty() ? NameFromDirectory(options.output_dir) : options.name;
  config.source = absl::StrCat("fla-layout ", source->model_type, " checkpoint");

  absl::StatusOr<NamedTensors> tensors = ModelTensors(options, *checkpoint, &report.notices);
  if (!tensors.ok()) return Annotate(tensors.status(), absl::StrCat(options.source, ": "));
  const std::vector<TensorSpec> specs = TensorSpecs(config.arch);
  status = CheckTensors(*tensors, specs, config.arch.tie_embeddings, &report.notices);
  if (!status.ok()) return Annotate(status, absl::StrCat(options.source, ": "));
  std::unique_ptr<Tokenizer> tokenizer;
  status = ReadTokenizer(config_dir, &config, &tokenizer, &report.notices);
  if (!status.ok()) return status;
  status = ReadChatTemplate(options.chat_template, config_dir, tokenizer.get(), &config);
  if (!status.ok()) return status;

  config.dtype = ChooseDType(options, *tensors, specs);
  CheckpointSource weights(*tensors, &*checkpoint, options.ignore_checksums);
  absl::StatusOr<ModelWriterReport> written =
      WriteModelDirectory({.output_dir = options.output_dir,
                           .overwrite = options.overwrite,
                           .tokenizer_path = In(config_dir, kTokenizerFileName),
                           .stop = options.stop,
                           .progress = progress},
                          std::move(config), &weights);
  if (!written.ok()) return written.status();
  report.model = *std::move(written);
  return report;
}

}  // namespace osdn::tools
