#include "tools/convert.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/chat_template.h"
#include "engine/safetensors.h"
#include "engine/tensor_specs.h"
#include "engine/tokenizer.h"
#include "tools/checkpoint.h"
#include "tools/checkpoint_config.h"
#include "tools/file_util.h"
#include "tools/float_convert.h"

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

class CheckpointSource : public TensorSource {
 public:
  explicit CheckpointSource(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

  absl::Status Read(const TensorSpec& spec, int64_t first, absl::Span<float> out) override {
    const SafetensorsEntry& entry = *checkpoint_.Find(spec.name);
    const SourceDType from = *ParseSourceDType(entry.dtype);
    const size_t bytes = SourceDTypeSize(from);
    const size_t row = entry.data.size() / static_cast<size_t>(spec.shape[0]);
    ConvertElements(entry.data.subspan(static_cast<size_t>(first) * row, out.size() * bytes), from,
                    kernels::DType::kF32, &floats_);
    std::memcpy(out.data(), floats_.data(), floats_.size());
    return absl::OkStatus();
  }

  std::string Origin(const TensorSpec& spec) const override {
    return absl::StrCat(checkpoint_.Find(spec.name)->dtype, " in the checkpoint");
  }

 private:
  const Checkpoint& checkpoint_;
  std::vector<std::byte> floats_;
};

}  // namespace

absl::StatusOr<ConvertReport> ConvertCheckpoint(const ConvertOptions& options,
                                                const WriteProgress& progress) {
  absl::Status status = CheckOutputApart(options.source_dir, options.output_dir, "the checkpoint");
  if (!status.ok()) return status;
  absl::StatusOr<CheckpointConfig> source = ReadConfigs(options.source_dir);
  if (!source.ok()) return source.status();
  absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(options.source_dir);
  if (!checkpoint.ok()) return checkpoint.status();

  ConvertReport report;
  ModelConfig config;
  config.arch = source->arch;
  config.bos_id = source->bos_id;
  config.eos_ids = source->eos_ids;
  config.name = options.name.empty() ? NameFromDirectory(options.output_dir) : options.name;
  config.source = absl::StrCat("fla-layout ", source->model_type, " checkpoint");

  const std::vector<TensorSpec> specs = TensorSpecs(config.arch);
  status = CheckTensors(*checkpoint, specs, config.arch.tie_embeddings, &report.notices);
  if (!status.ok()) return Annotate(status, absl::StrCat(options.source_dir, ": "));
  std::unique_ptr<Tokenizer> tokenizer;
  status = ReadTokenizer(options.source_dir, &config, &tokenizer, &report.notices);
  if (!status.ok()) return status;
  status = ReadChatTemplate(options, tokenizer.get(), &config);
  if (!status.ok()) return status;

  config.dtype = ChooseDType(options, *checkpoint, specs);
  CheckpointSource weights(*checkpoint);
  absl::StatusOr<ModelWriterReport> written =
      WriteModelDirectory({.output_dir = options.output_dir,
                           .overwrite = options.overwrite,
                           .tokenizer_path = In(options.source_dir, kTokenizerFileName),
                           .stop = options.stop,
                           .progress = progress},
                          std::move(config), &weights);
  if (!written.ok()) return written.status();
  report.model = *std::move(written);
  return report;
}

}  // namespace osdn::tools
