#include "tools/inspect.h"

#include <memory>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "engine/state.h"
#include "engine/tensor_specs.h"
#include "engine/tokenizer.h"
#include "engine/weights.h"

namespace osdn::tools {
namespace {

std::string BytesText(int64_t bytes) {
  constexpr double kKiB = 1024;
  const auto value = static_cast<double>(bytes);
  if (value < kKiB) return absl::StrFormat("%d B", bytes);
  if (value < kKiB * kKiB) return absl::StrFormat("%.1f KiB (%d)", value / kKiB, bytes);
  if (value < kKiB * kKiB * kKiB) {
    return absl::StrFormat("%.1f MiB (%d)", value / kKiB / kKiB, bytes);
  }
  return absl::StrFormat("%.2f GiB (%d)", value / kKiB / kKiB / kKiB, bytes);
}

std::string_view Architecture(const ArchitectureConfig& arch) {
  return arch.is_plain_delta_net() ? "delta_net" : "osdn";
}

std::vector<std::string> ChatRoles(const ModelConfig& config) {
  std::vector<std::string> roles;
  if (!config.chat.has_value()) return roles;
  for (const auto& [role, parts] : config.chat->roles) roles.push_back(role);
  return roles;
}

// The switches that differ from model to model, as words.
std::string Options(const ArchitectureConfig& arch) {
  std::vector<std::string> words = {
      absl::StrFormat("qk_norm %s", QkNormName(arch.qk_norm)),
      absl::StrFormat("qk_activation %s", ActivationName(arch.qk_activation))};
  words.push_back(arch.use_short_conv ? absl::StrCat("conv ", arch.conv_size) : "no short conv");
  if (arch.use_short_conv && arch.conv_bias) words.emplace_back("conv bias");
  if (!arch.use_beta) words.emplace_back("beta 1");
  if (arch.use_gate) words.emplace_back("output gate");
  if (arch.allow_neg_eigval) words.emplace_back("negative eigenvalues");
  if (arch.tie_embeddings) words.emplace_back("tied embeddings");
  return absl::StrJoin(words, ", ");
}

std::string Preconditioner(const ArchitectureConfig& arch) {
  if (arch.is_plain_delta_net()) return "none (eta 0)";
  return absl::StrFormat(
      "eta %g, eps %g, d in [%g, %g], apf %s%s", arch.eta, arch.eps, arch.d_min, arch.d_max,
      ApfName(arch.apf),
      arch.apf == Apf::kNone ? "" : absl::StrFormat(", anchor %g", arch.apf_anchor));
}

std::string TokenizerText(const ModelSummary& summary) {
  if (!summary.tokenizer_pieces.has_value()) return "none: takes token ids only";
  return absl::StrFormat("SentencePiece, %d pieces", *summary.tokenizer_pieces);
}

std::string SpecialTokens(const ModelConfig& config) {
  const std::string bos = config.bos_id.has_value() ? absl::StrCat(*config.bos_id) : "none";
  return absl::StrCat("bos ", bos, config.add_bos ? " (added to text)" : " (not added to text)",
                      ", eos ",
                      config.eos_ids.empty() ? "none" : absl::StrJoin(config.eos_ids, " "));
}

nlohmann::ordered_json ArchitectureJson(const ArchitectureConfig& arch) {
  return {{"type", Architecture(arch)},
          {"layers", arch.num_layers},
          {"hidden_size", arch.hidden_size},
          {"heads", arch.num_heads},
          {"key_dim", arch.key_dim},
          {"value_dim", arch.value_dim},
          {"intermediate_size", arch.intermediate_size},
          {"vocab_size", arch.vocab_size},
          {"conv_size", arch.conv_size},
          {"norm_eps", arch.norm_eps},
          {"use_gate", arch.use_gate},
          {"use_beta", arch.use_beta},
          {"use_short_conv", arch.use_short_conv},
          {"conv_bias", arch.conv_bias},
          {"allow_neg_eigval", arch.allow_neg_eigval},
          {"tie_embeddings", arch.tie_embeddings},
          {"qk_norm", QkNormName(arch.qk_norm)},
          {"qk_activation", ActivationName(arch.qk_activation)}};
}

}  // namespace

absl::StatusOr<ModelSummary> InspectModel(const std::string& model_dir, bool verify) {
  ModelSummary summary;
  summary.directory = model_dir;
  absl::StatusOr<ModelConfig> config = LoadModelConfig(model_dir);
  if (!config.ok()) return config.status();
  summary.config = *std::move(config);
  absl::StatusOr<Weights> weights =
      Weights::Load(model_dir, summary.config, {.verify_checksums = verify});
  if (!weights.ok()) return weights.status();
  summary.verified = verify;

  for (const TensorSpec& spec : TensorSpecs(summary.config.arch)) {
    const kernels::HostTensor tensor = weights->Get(spec.name);
    summary.tensors.push_back({spec.name, tensor.shape,
                               std::string(kernels::DTypeName(tensor.dtype)),
                               StoredBytes(spec, tensor.dtype)});
    summary.parameters += tensor.elements();
    summary.weight_bytes += summary.tensors.back().bytes;
  }
  for (const FileDigest& file : summary.config.files) summary.disk_bytes += file.bytes;
  summary.state_bytes = static_cast<int64_t>(StateLayout(summary.config.arch).slot_bytes());
  if (summary.config.has_tokenizer) {
    absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer =
        Tokenizer::Load(absl::StrCat(model_dir, "/", kTokenizerFileName));
    if (!tokenizer.ok()) return tokenizer.status();
    summary.tokenizer_pieces = (*tokenizer)->vocab_size();
  }
  return summary;
}

std::string SummaryToText(const ModelSummary& summary, bool with_tensors) {
  const ModelConfig& config = summary.config;
  const ArchitectureConfig& arch = config.arch;
  std::string text;
  const auto line = [&text](std::string_view label, std::string_view value) {
    absl::StrAppendFormat(&text, "%-16s %s\n", label, value);
  };
  line("model", config.name);
  line("directory", summary.directory);
  line("id", config.model_id());
  line("source", config.source);
  line(
      "architecture",
      absl::StrFormat("%s: %d layers, hidden %d, %d heads of %d (values %d), MLP %d, vocabulary %d",
                      Architecture(arch), arch.num_layers, arch.hidden_size, arch.num_heads,
                      arch.key_dim, arch.value_dim, arch.intermediate_size, arch.vocab_size));
  line("options", Options(arch));
  line("preconditioner", Preconditioner(arch));
  line("parameters", absl::StrFormat("%.2f M (%d)", static_cast<double>(summary.parameters) / 1e6,
                                     summary.parameters));
  line("weights", absl::StrFormat("%s, %s", kernels::DTypeName(config.dtype),
                                  BytesText(summary.weight_bytes)));
  line("on disk", BytesText(summary.disk_bytes));
  line("state", absl::StrCat(BytesText(summary.state_bytes), " a sequence, at any length"));
  line("tokenizer", TokenizerText(summary));
  line("special tokens", SpecialTokens(config));
  line("chat roles",
       config.chat.has_value() ? absl::StrJoin(ChatRoles(config), ", ") : "no chat template");
  for (const FileDigest& file : config.files) {
    line("file", absl::StrFormat("%s %d bytes sha256 %s%s", file.name, file.bytes, file.sha256,
                                 summary.verified ? " (verified)" : ""));
  }
  if (!with_tensors) return text;
  absl::StrAppendFormat(&text, "\n%-48s %-5s %-20s %s\n", "tensor", "dtype", "shape", "bytes");
  for (const TensorSummary& tensor : summary.tensors) {
    absl::StrAppendFormat(&text, "%-48s %-5s %-20s %d\n", tensor.name, tensor.dtype,
                          absl::StrCat("[", absl::StrJoin(tensor.shape, ","), "]"), tensor.bytes);
  }
  return text;
}

std::string SummaryToJson(const ModelSummary& summary, bool with_tensors) {
  using Json = nlohmann::ordered_json;
  const ModelConfig& config = summary.config;
  const ArchitectureConfig& arch = config.arch;
  Json root;
  root["name"] = config.name;
  root["directory"] = summary.directory;
  root["model_id"] = config.model_id();
  root["source"] = config.source;
  root["architecture"] = ArchitectureJson(arch);
  root["osdn"] = {{"eta", arch.eta},          {"eps", arch.eps},
                  {"d_min", arch.d_min},      {"d_max", arch.d_max},
                  {"apf", ApfName(arch.apf)}, {"apf_anchor", arch.apf_anchor}};
  root["dtype"] = kernels::DTypeName(config.dtype);
  root["parameters"] = summary.parameters;
  root["weight_bytes"] = summary.weight_bytes;
  root["disk_bytes"] = summary.disk_bytes;
  root["state_bytes_per_sequence"] = summary.state_bytes;
  root["tokenizer_pieces"] =
      summary.tokenizer_pieces.has_value() ? Json(*summary.tokenizer_pieces) : Json();
  root["bos_id"] = config.bos_id.has_value() ? Json(*config.bos_id) : Json();
  root["add_bos"] = config.add_bos;
  root["eos_ids"] = config.eos_ids;
  root["chat_roles"] = ChatRoles(config);
  root["verified"] = summary.verified;
  root["files"] = Json::array();
  for (const FileDigest& file : config.files) {
    root["files"].push_back({{"name", file.name}, {"bytes", file.bytes}, {"sha256", file.sha256}});
  }
  if (with_tensors) {
    root["tensors"] = Json::array();
    for (const TensorSummary& tensor : summary.tensors) {
      root["tensors"].push_back({{"name", tensor.name},
                                 {"dtype", tensor.dtype},
                                 {"shape", tensor.shape},
                                 {"bytes", tensor.bytes}});
    }
  }
  // Names come from a file and may hold bytes that are not UTF-8: replaced rather than thrown at.
  return root.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace osdn::tools
