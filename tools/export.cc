#include "tools/export.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/chat_template_yaml.h"
#include "engine/safetensors.h"
#include "engine/tensor_specs.h"
#include "engine/weights.h"
#include "tools/file_util.h"
#include "tools/output_directory.h"
#include "tools/weight_encoding.h"

namespace osdn::tools {
namespace {

namespace fs = std::filesystem;
using kernels::DType;
using Json = nlohmann::ordered_json;

int64_t Elements(const TensorSpec& spec) {
  int64_t elements = 1;
  for (const int64_t dim : spec.shape) elements *= dim;
  return elements;
}

Json BosJson(const ModelConfig& config) {
  return config.bos_id.has_value() ? Json(*config.bos_id) : Json(nullptr);
}

Json EosJson(const ModelConfig& config) {
  if (config.eos_ids.empty()) return nullptr;
  if (config.eos_ids.size() == 1) return config.eos_ids[0];
  return config.eos_ids;
}

// Copies every tensor, piece by piece.
class TensorExport {
 public:
  TensorExport(const ExportOptions& options, const WriteProgress& progress, const Weights& weights,
               ExportReport* report)
      : options_(options), progress_(progress), weights_(weights), report_(report) {}

  absl::Status Write(const std::vector<TensorSpec>& specs, const std::string& path) {
    std::vector<SafetensorsWriter::Declaration> declarations;
    for (const TensorSpec& spec : specs) {
      report_->parameters += Elements(spec);
      declarations.push_back(
          {spec.name, Stored(spec) == DType::kBF16 ? "BF16" : "F32", spec.shape});
    }
    // What transformers writes and looks for.
    absl::StatusOr<SafetensorsWriter> writer =
        SafetensorsWriter::Create(path, declarations, {{"format", "pt"}});
    if (!writer.ok()) return writer.status();
    for (const TensorSpec& spec : specs) {
      if (absl::Status status = WriteTensor(spec, &*writer); !status.ok()) return status;
    }
    return writer->Finish();
  }

  DType Stored(const TensorSpec& spec) const { return StoredDType(spec, report_->dtype); }

 private:
  absl::Status WriteTensor(const TensorSpec& spec, SafetensorsWriter* writer) {
    constexpr int64_t kPieceElements = int64_t{1} << 20;
    const kernels::HostTensor tensor = weights_.Get(spec.name);
    const int64_t rows = spec.shape[0];
    const int64_t columns = Elements(spec) / rows;
    const int64_t piece_rows = std::max(kPieceElements / columns, int64_t{1});
    for (int64_t row = 0; row < rows; row += piece_rows) {
      if (options_.stop != nullptr && options_.stop->load()) {
        return absl::CancelledError("interrupted; nothing was written");
      }
      values_.resize(static_cast<size_t>(std::min(piece_rows, rows - row) * columns));
      DecodeRows(tensor, row, absl::MakeSpan(values_));
      if (EncodeRows(values_, columns, Stored(spec), &piece_, &rounding_).has_value()) {
        return absl::InvalidArgumentError(
            absl::StrCat("tensor ", spec.name, ": has a value that is not finite as ",
                         std::string(kernels::DTypeName(Stored(spec)))));
      }
      absl::Status status = writer->WritePart(piece_.data);
      if (!status.ok()) return status;
      done_ += static_cast<int64_t>(values_.size());
      if (progress_) progress_(done_, report_->parameters, spec.name);
    }
    weights_.Release(spec.name);
    return absl::OkStatus();
  }

  const ExportOptions& options_;
  const WriteProgress& progress_;
  const Weights& weights_;
  ExportReport* report_;
  int64_t done_ = 0;
  std::vector<float> values_;
  EncodedRows piece_;
  RoundingError rounding_;
};

absl::Status CopyFile(const std::string& from, const std::string& to) {
  std::error_code error;
  fs::copy_file(from, to, error);
  if (error) return absl::ErrnoToStatus(error.value(), absl::StrCat("cannot copy ", from));
  return absl::OkStatus();
}

std::string ChatTemplateText(const ChatTemplate& chat) {
  YAML::Emitter out;
  internal::EmitChatTemplate(chat, &out);
  return absl::StrCat(out.c_str(), "\n");
}

absl::Status WriteSmallFiles(const ExportOptions& options, const ModelConfig& config, DType dtype,
                             const OutputDirectory& output) {
  absl::Status status =
      WriteSmallFile(output.StagingPath("config.json"), CheckpointConfigJson(config, dtype));
  const Json generation = {{"bos_token_id", BosJson(config)}, {"eos_token_id", EosJson(config)}};
  if (status.ok()) {
    status =
        WriteSmallFile(output.StagingPath("generation_config.json"), generation.dump(2) + "\n");
  }
  if (!status.ok() || !config.has_tokenizer) return status;
  status = CopyFile((fs::path(options.model_dir) / kTokenizerFileName).string(),
                    output.StagingPath(kTokenizerFileName));
  const Json tokenizer = {{"add_bos_token", config.add_bos}};
  if (status.ok()) {
    status = WriteSmallFile(output.StagingPath("tokenizer_config.json"), tokenizer.dump(2) + "\n");
  }
  if (!status.ok() || !config.chat.has_value()) return status;
  return WriteSmallFile(output.StagingPath("chat_template.yaml"), ChatTemplateText(*config.chat));
}

absl::StatusOr<DType> ChooseDType(const ExportOptions& options, const ModelConfig& config,
                                  std::vector<std::string>* notices) {
  const DType chosen =
      options.dtype.value_or(kernels::IsQuantized(config.dtype) ? DType::kF32 : config.dtype);
  if (kernels::IsQuantized(chosen)) {
    return absl::InvalidArgumentError("a checkpoint has f32 or bf16 weights; choose one of them");
  }
  if (chosen != config.dtype && (kernels::IsQuantized(config.dtype) || chosen == DType::kBF16)) {
    notices->push_back(absl::StrCat("the weights are rounded: they were ",
                                    std::string(kernels::DTypeName(config.dtype)), " and become ",
                                    std::string(kernels::DTypeName(chosen))));
  }
  return chosen;
}

}  // namespace

std::string CheckpointConfigJson(const ModelConfig& config, DType dtype) {
  const ArchitectureConfig& arch = config.arch;
  // As delta_net, sum means different things in different versions of fla (docs/converting.md).
  const bool ambiguous = arch.qk_norm == kernels::QkNorm::kSum &&
                         arch.qk_activation != kernels::Activation::kRelu &&
                         arch.qk_activation != kernels::Activation::kEluPlusOne;
  const bool plain = arch.is_plain_delta_net() && !ambiguous;
  const auto hidden = static_cast<double>(arch.hidden_size);
  Json json = {
      {"architectures", {plain ? "DeltaNetForCausalLM" : "OsdnForCausalLM"}},
      {"model_type", plain ? "delta_net" : "osdn"},
      {"hidden_size", arch.hidden_size},
      {"num_hidden_layers", arch.num_layers},
      {"num_heads", arch.num_heads},
      {"expand_k", static_cast<double>(arch.num_heads * arch.key_dim) / hidden},
      {"expand_v", static_cast<double>(arch.num_heads * arch.value_dim) / hidden},
      {"intermediate_size", arch.intermediate_size},
      {"vocab_size", arch.vocab_size},
      {"conv_size", arch.conv_size},
      {"norm_eps", arch.norm_eps},
      {"use_gate", arch.use_gate},
      {"use_beta", arch.use_beta},
      {"use_short_conv", arch.use_short_conv},
      {"allow_neg_eigval", arch.allow_neg_eigval},
      {"qk_norm", std::string(QkNormName(arch.qk_norm))},
      {"qk_activation", std::string(ActivationName(arch.qk_activation))},
      {"tie_word_embeddings", arch.tie_embeddings},
      {"bos_token_id", BosJson(config)},
      {"eos_token_id", EosJson(config)},
      {"dtype", dtype == DType::kBF16 ? "bfloat16" : "float32"},
  };
  if (arch.conv_bias) json["conv_bias"] = true;  // fla's configs do not know it
  if (!plain) {
    json["osdn"] = {{"eta", arch.eta},
                    {"eps", arch.eps},
                    {"d_min", arch.d_min},
                    {"d_max", arch.d_max},
                    {"apf", std::string(ApfName(arch.apf))},
                    {"apf_anchor", arch.apf_anchor}};
  }
  return json.dump(2) + "\n";
}

absl::StatusOr<ExportReport> ExportModel(const ExportOptions& options,
                                         const WriteProgress& progress) {
  absl::StatusOr<ModelConfig> config = LoadModelConfig(options.model_dir);
  if (!config.ok()) return config.status();
  ExportReport report;
  absl::StatusOr<DType> dtype = ChooseDType(options, *config, &report.notices);
  if (!dtype.ok()) return dtype.status();
  report.dtype = *dtype;
  absl::StatusOr<Weights> weights =
      Weights::Load(options.model_dir, *config, {.verify_checksums = true});
  if (!weights.ok()) return weights.status();
  absl::StatusOr<OutputDirectory> output =
      OutputDirectory::Create(options.output_dir, /*overwrite=*/false);
  if (!output.ok()) return output.status();

  const std::vector<TensorSpec> specs = TensorSpecs(config->arch);
  TensorExport tensors(options, progress, *weights, &report);
  int64_t bytes = int64_t{1} << 20;
  for (const TensorSpec& spec : specs) bytes += StoredBytes(spec, tensors.Stored(spec));
  absl::Status status = output->RequireSpace(bytes);
  if (status.ok()) status = tensors.Write(specs, output->StagingPath("model.safetensors"));
  if (status.ok()) status = WriteSmallFiles(options, *config, report.dtype, *output);
  if (status.ok()) status = output->Commit();
  if (!status.ok()) return status;
  return report;
}

}  // namespace osdn::tools
