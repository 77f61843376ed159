// model.yaml: reading and writing (docs/model-format.md).
#include <charconv>
#include <filesystem>
#include <limits>
#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/chat_template_yaml.h"
#include "engine/model_config.h"
#include "engine/yaml_reader.h"

namespace osdn {
namespace {

using internal::Presence;
using internal::YamlMap;

constexpr char kFormatName[] = "osdn-model";
constexpr size_t kMaxEosIds = 64;
constexpr size_t kMaxFiles = 64;
using Errors = std::vector<std::string>;

// Whether the constants that mean nothing without the preconditioner are untouched, so that `type:
// delta_net` says it all.
bool IsCanonicalDeltaNet(const ArchitectureConfig& arch) {
  const ArchitectureConfig defaults;
  return arch.is_plain_delta_net() && arch.eps == defaults.eps && arch.d_min == defaults.d_min &&
         arch.d_max == defaults.d_max && arch.apf_anchor == defaults.apf_anchor;
}

// --- Reading ---

void ReadPreconditioner(YamlMap* root, bool delta_net, ArchitectureConfig* arch) {
  if (delta_net) {
    arch->eta = 0;
    arch->apf = Apf::kNone;
    if (root->Child("osdn", Presence::kOptional).has_value()) {
      root->Error("osdn", "not allowed with architecture.type delta_net (it means eta 0, no APF)");
    }
    return;
  }
  auto osdn = root->Child("osdn", Presence::kRequired);
  if (!osdn.has_value()) return;
  osdn->Read("eta", Presence::kRequired, &arch->eta);
  osdn->Read("eps", Presence::kOptional, &arch->eps);
  osdn->Read("d_min", Presence::kOptional, &arch->d_min);
  osdn->Read("d_max", Presence::kOptional, &arch->d_max);
  osdn->ReadChoice("apf", Presence::kOptional, "none, scalar", [&](std::string_view name) {
    const auto apf = ParseApf(name);
    arch->apf = apf.value_or(arch->apf);
    return apf.has_value();
  });
  osdn->Read("apf_anchor", Presence::kOptional, &arch->apf_anchor);
  osdn->RejectUnknownKeys();
}

void ReadArchitecture(YamlMap* root, ArchitectureConfig* arch) {
  auto map = root->Child("architecture", Presence::kRequired);
  if (!map.has_value()) return;
  bool delta_net = false;
  map->ReadChoice("type", Presence::kRequired, "osdn, delta_net", [&](std::string_view name) {
    delta_net = name == "delta_net";
    return delta_net || name == "osdn";
  });
  map->Read("vocab_size", Presence::kRequired, &arch->vocab_size);
  map->Read("hidden_size", Presence::kRequired, &arch->hidden_size);
  map->Read("num_layers", Presence::kRequired, &arch->num_layers);
  map->Read("num_heads", Presence::kRequired, &arch->num_heads);
  map->Read("key_dim", Presence::kRequired, &arch->key_dim);
  map->Read("value_dim", Presence::kRequired, &arch->value_dim);
  map->Read("intermediate_size", Presence::kRequired, &arch->intermediate_size);
  map->Read("conv_size", Presence::kOptional, &arch->conv_size);
  map->Read("conv_bias", Presence::kOptional, &arch->conv_bias);
  map->Read("norm_eps", Presence::kOptional, &arch->norm_eps);
  map->Read("use_gate", Presence::kOptional, &arch->use_gate);
  map->Read("use_beta", Presence::kOptional, &arch->use_beta);
  map->Read("use_short_conv", Presence::kOptional, &arch->use_short_conv);
  map->Read("allow_neg_eigval", Presence::kOptional, &arch->allow_neg_eigval);
  map->Read("tie_embeddings", Presence::kOptional, &arch->tie_embeddings);
  map->ReadChoice("qk_norm", Presence::kOptional, "l2, sum", [&](std::string_view name) {
    const auto norm = ParseQkNorm(name);
    arch->qk_norm = norm.value_or(arch->qk_norm);
    return norm.has_value();
  });
  map->ReadChoice("qk_activation", Presence::kOptional, "silu, relu, elu, identity",
                  [&](std::string_view name) {
                    const auto activation = ParseActivation(name);
                    arch->qk_activation = activation.value_or(arch->qk_activation);
                    return activation.has_value();
                  });
  map->RejectUnknownKeys();
  ReadPreconditioner(root, delta_net, arch);
}

// A token id below the vocabulary's size.
std::optional<int32_t> CheckId(int64_t id, const std::string& path, int64_t vocab_size,
                               Errors* errors) {
  if (id >= 0 && id < vocab_size && id <= std::numeric_limits<int32_t>::max()) {
    return static_cast<int32_t>(id);
  }
  errors->push_back(
      absl::StrCat(path, ": ", id, " is not in the vocabulary of ", vocab_size, " tokens"));
  return std::nullopt;
}

void ReadTokenizer(YamlMap* root, ModelConfig* config, Errors* errors) {
  auto map = root->Child("tokenizer", Presence::kRequired);
  if (!map.has_value()) return;
  map->ReadChoice("type", Presence::kRequired, "sentencepiece, none", [&](std::string_view name) {
    config->has_tokenizer = name == "sentencepiece";
    return config->has_tokenizer || name == "none";
  });
  map->Read("add_bos", Presence::kOptional, &config->add_bos);
  if (map->Has("bos_id")) {
    int64_t id = -1;
    map->Read("bos_id", Presence::kOptional, &id);
    config->bos_id = CheckId(id, map->Path("bos_id"), config->arch.vocab_size, errors);
  }
  map->ReadList("eos_ids", Presence::kOptional, kMaxEosIds,
                [&](const YAML::Node& node, const std::string& path) {
                  const auto text = internal::YamlScalar(node, path, errors);
                  int64_t id = -1;
                  if (!text.has_value()) return;
                  const bool whole = absl::SimpleAtoi(*text, &id);
                  const auto checked =
                      CheckId(whole ? id : -1, path, config->arch.vocab_size, errors);
                  if (checked.has_value()) config->eos_ids.push_back(*checked);
                });
  map->RejectUnknownKeys();
}

void ReadChat(YamlMap* root, ModelConfig* config, Errors* errors) {
  auto map = root->Child("chat", Presence::kOptional);
  if (!map.has_value()) return;
  config->chat = internal::ReadChatTemplate(&*map, errors);
  if (!config->has_tokenizer) root->Error("chat", "needs tokenizer.type sentencepiece");
  if (config->chat->bos && !config->bos_id.has_value()) {
    root->Error("chat.bos", "true, but tokenizer.bos_id is not given");
  }
}

// `name` is opened inside the model directory: it must not lead out of it.
bool IsPlainFileName(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos;
}

bool IsSha256Hex(const std::string& text) {
  constexpr size_t kDigits = 64;
  if (text.size() != kDigits) return false;
  for (const char c : text) {
    if (!absl::ascii_isdigit(static_cast<unsigned char>(c)) && !(c >= 'a' && c <= 'f'))
      return false;
  }
  return true;
}

void ReadFiles(YamlMap* root, ModelConfig* config, Errors* errors) {
  std::set<std::string> names;
  root->ReadList("files", Presence::kRequired, kMaxFiles,
                 [&](const YAML::Node& node, const std::string& path) {
                   YamlMap map(node, path, errors);
                   FileDigest file;
                   map.Read("name", Presence::kRequired, &file.name);
                   map.Read("bytes", Presence::kRequired, &file.bytes);
                   map.Read("sha256", Presence::kRequired, &file.sha256);
                   map.RejectUnknownKeys();
                   if (!IsPlainFileName(file.name)) map.Error("name", "not a plain file name");
                   if (!names.insert(file.name).second) map.Error("name", "given twice");
                   if (file.bytes < 0) map.Error("bytes", "negative");
                   if (!IsSha256Hex(file.sha256)) {
                     map.Error("sha256", "not 64 lower-case hexadecimal digits");
                   }
                   config->files.push_back(std::move(file));
                 });
  if (!names.contains(kWeightsFileName)) {
    root->Error("files", absl::StrCat("no entry for ", kWeightsFileName));
  }
  if (config->has_tokenizer && !names.contains(kTokenizerFileName)) {
    root->Error("files", absl::StrCat("no entry for ", kTokenizerFileName));
  }
}

// Only for the right format and version is it worth looking at the rest.
absl::Status CheckFormat(const std::string& path, const std::string& text) {
  std::string format;
  int64_t version = 0;
  const auto read = [&](const YAML::Node& root, Errors* errors) {
    YamlMap map(root, "", errors);
    map.Read("format", Presence::kRequired, &format);
    map.Read("format_version", Presence::kRequired, &version);
  };
  if (absl::Status s = internal::ReadYaml(path, text, read); !s.ok()) return s;
  if (format != kFormatName) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": format: \"", format, "\", want \"", kFormatName, "\""));
  }
  if (version > kModelFormatVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": format_version: ", version, ", this program reads up to ",
                     kModelFormatVersion, ": use a newer osdn-server"));
  }
  if (version < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": format_version: ", version, " is out of range [1, ", kModelFormatVersion, "]"));
  }
  return absl::OkStatus();
}

void ReadModel(const YAML::Node& node, ModelConfig* config, Errors* errors) {
  YamlMap root(node, "", errors);
  std::string format;
  int64_t version = 0;
  root.Read("format", Presence::kRequired, &format);
  root.Read("format_version", Presence::kRequired, &version);
  root.Read("name", Presence::kRequired, &config->name);
  ReadArchitecture(&root, &config->arch);
  root.ReadChoice("dtype", Presence::kRequired, "f32, bf16, int8, int4",
                  [&](std::string_view name) {
                    const auto dtype = ParseDType(name);
                    config->dtype = dtype.value_or(config->dtype);
                    return dtype.has_value();
                  });
  ReadTokenizer(&root, config, errors);
  ReadChat(&root, config, errors);
  root.Read("source", Presence::kOptional, &config->source);
  ReadFiles(&root, config, errors);
  root.RejectUnknownKeys();
  if (absl::Status s = ValidateArchitecture(config->arch); !s.ok()) {
    errors->push_back(std::string(s.message()));
  }
}

// --- Writing ---

// Appends `key: value` pairs; text is always quoted, so that no value changes its meaning.
class MapWriter {
 public:
  explicit MapWriter(YAML::Emitter* out) : out_(out) {}

  void Text(const char* key, std::string_view value) {
    *out_ << YAML::Key << key << YAML::Value << YAML::DoubleQuoted << std::string(value);
  }
  void Name(const char* key, std::string_view value) {
    *out_ << YAML::Key << key << YAML::Value << std::string(value);
  }
  void Integer(const char* key, int64_t value) {
    *out_ << YAML::Key << key << YAML::Value << value;
  }
  void Bool(const char* key, bool value) { *out_ << YAML::Key << key << YAML::Value << value; }
  void Real(const char* key, double value) {
    char text[32];
    const auto result = std::to_chars(text, text + sizeof(text), value);
    *out_ << YAML::Key << key << YAML::Value << std::string(text, result.ptr);
  }

 private:
  YAML::Emitter* out_;
};

void EmitArchitecture(const ArchitectureConfig& arch, YAML::Emitter* out) {
  MapWriter map(out);
  const bool delta_net = IsCanonicalDeltaNet(arch);
  *out << YAML::Key << "architecture" << YAML::Value << YAML::BeginMap;
  map.Name("type", delta_net ? "delta_net" : "osdn");
  map.Integer("vocab_size", arch.vocab_size);
  map.Integer("hidden_size", arch.hidden_size);
  map.Integer("num_layers", arch.num_layers);
  map.Integer("num_heads", arch.num_heads);
  map.Integer("key_dim", arch.key_dim);
  map.Integer("value_dim", arch.value_dim);
  map.Integer("intermediate_size", arch.intermediate_size);
  map.Integer("conv_size", arch.conv_size);
  map.Bool("conv_bias", arch.conv_bias);
  map.Real("norm_eps", arch.norm_eps);
  map.Bool("use_gate", arch.use_gate);
  map.Bool("use_beta", arch.use_beta);
  map.Bool("use_short_conv", arch.use_short_conv);
  map.Bool("allow_neg_eigval", arch.allow_neg_eigval);
  map.Name("qk_norm", QkNormName(arch.qk_norm));
  map.Name("qk_activation", ActivationName(arch.qk_activation));
  map.Bool("tie_embeddings", arch.tie_embeddings);
  *out << YAML::EndMap;
  if (delta_net) return;
  *out << YAML::Key << "osdn" << YAML::Value << YAML::BeginMap;
  map.Real("eta", arch.eta);
  map.Real("eps", arch.eps);
  map.Real("d_min", arch.d_min);
  map.Real("d_max", arch.d_max);
  map.Name("apf", ApfName(arch.apf));
  map.Real("apf_anchor", arch.apf_anchor);
  *out << YAML::EndMap;
}

void EmitTokenizer(const ModelConfig& config, YAML::Emitter* out) {
  MapWriter map(out);
  *out << YAML::Key << "tokenizer" << YAML::Value << YAML::BeginMap;
  map.Name("type", config.has_tokenizer ? "sentencepiece" : "none");
  map.Bool("add_bos", config.add_bos);
  if (config.bos_id.has_value()) map.Integer("bos_id", *config.bos_id);
  *out << YAML::Key << "eos_ids" << YAML::Value << YAML::Flow << config.eos_ids << YAML::EndMap;
}

}  // namespace

absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& model_dir) {
  const std::string path = (std::filesystem::path(model_dir) / kModelFileName).string();
  absl::StatusOr<std::string> text = internal::ReadTextFile(path);
  if (absl::IsNotFound(text.status())) {
    return absl::NotFoundError(absl::StrCat(
        "no model in ", model_dir, " (", path,
        " does not exist): make one with `osdn-tools convert CHECKPOINT_DIR ", model_dir, "`"));
  }
  if (!text.ok()) return text.status();
  if (absl::Status s = CheckFormat(path, *text); !s.ok()) return s;

  ModelConfig config;
  const auto read = [&](const YAML::Node& root, Errors* errors) {
    ReadModel(root, &config, errors);
  };
  if (absl::Status s = internal::ReadYaml(path, *text, read); !s.ok()) return s;
  return config;
}

absl::StatusOr<ModelConfig> LoadArchitectureFile(const std::string& path) {
  absl::StatusOr<std::string> text = internal::ReadTextFile(path);
  if (!text.ok()) return text.status();
  ModelConfig config;
  const auto read = [&](const YAML::Node& node, Errors* errors) {
    YamlMap root(node, "", errors);
    root.Read("name", Presence::kRequired, &config.name);
    ReadArchitecture(&root, &config.arch);
    root.RejectUnknownKeys();
    if (absl::Status s = ValidateArchitecture(config.arch); !s.ok()) {
      errors->push_back(std::string(s.message()));
    }
  };
  if (absl::Status s = internal::ReadYaml(path, *text, read); !s.ok()) return s;
  return config;
}

std::string ModelConfigToYaml(const ModelConfig& config) {
  YAML::Emitter out;
  MapWriter map(&out);
  out << YAML::BeginMap;
  map.Name("format", kFormatName);
  map.Integer("format_version", kernels::IsQuantized(config.dtype) ? 2 : 1);
  map.Text("name", config.name);
  EmitArchitecture(config.arch, &out);
  map.Name("dtype", kernels::DTypeName(config.dtype));
  EmitTokenizer(config, &out);
  if (config.chat.has_value()) {
    out << YAML::Key << "chat" << YAML::Value;
    internal::EmitChatTemplate(*config.chat, &out);
  }
  map.Text("source", config.source);
  out << YAML::Key << "files" << YAML::Value << YAML::BeginSeq;
  for (const FileDigest& file : config.files) {
    out << YAML::BeginMap;
    map.Text("name", file.name);
    map.Integer("bytes", file.bytes);
    map.Text("sha256", file.sha256);
    out << YAML::EndMap;
  }
  out << YAML::EndSeq << YAML::EndMap;
  return absl::StrCat(out.c_str(), "\n");
}

}  // namespace osdn
