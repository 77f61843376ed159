#include "tools/checkpoint_config.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tools/json_reader.h"

namespace osdn::tools {
namespace {

// Bound of every size in a config: far above any model, far below what could overflow a product of
// three of them.
constexpr int64_t kMaxSize = int64_t{1} << 24;

// Keys that say how a model was trained, stored or wrapped, not what it computes.
constexpr const char* kInertKeys[] = {
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "attn_mode",
    "auto_map",
    "chunk_size_feed_forward",
    "dtype",
    "finetuning_task",
    "fuse_cross_entropy",
    "fuse_linear_cross_entropy",
    "fuse_norm",
    "fuse_swiglu",
    "gradient_checkpointing",
    "id2label",
    "initializer_range",
    "label2id",
    "max_position_embeddings",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "problem_type",
    "return_dict",
    "tokenizer_class",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "use_l2warp",
};

// Keys with one value that is supported; every other value changes the computation.
struct FixedKey {
  const char* key;
  std::vector<nlohmann::json> allowed;
  const char* reason;
};

const std::vector<FixedKey>& FixedKeys() {
  static const auto* const keys = new std::vector<FixedKey>{
      {"attn", {nullptr}, "layers of softmax attention (hybrid models) are not supported"},
      {"attnres_block_size", {nullptr}, "attention residuals between layers are not supported"},
      {"use_output_norm", {true}, "a mixer without its output norm is not supported"},
      {"hidden_act", {"swish", "silu"}, "the MLP is SwiGLU; no other activation is supported"},
      {"norm_first", {false}, "a norm inside the mixer is not supported"},
      {"share_conv_kernel", {false}, "a convolution shared by q, k and v is not supported"},
      {"elementwise_affine", {true}, "norms without weights are not supported"},
      {"is_encoder_decoder", {false}, "only decoders are supported"},
      {"add_cross_attention", {false}, "cross-attention is not supported"},
      {"is_decoder", {true, false}, "only decoders are supported"},
      {"quantization_config", {nullptr}, "quantised checkpoints are not supported"},
  };
  return *keys;
}

// fla's rule where intermediate_size is not given: int(hidden * ratio * 2 / 3) to a multiple of
// 256.
int64_t DefaultIntermediateSize(int64_t hidden_size, double hidden_ratio) {
  const auto size =
      static_cast<int64_t>(static_cast<double>(hidden_size) * hidden_ratio * 2.0 / 3.0);
  return (size + 255) / 256 * 256;
}

int64_t HeadDim(const char* key, double expand, const ArchitectureConfig& arch,
                JsonReader* reader) {
  // fla rounds, so that a third of 48 is 16, and wants a whole number.
  constexpr double kTolerance = 1e-9;
  const double exact = static_cast<double>(arch.hidden_size) * expand;
  const int64_t total = std::llround(std::min(exact, 2.0 * kMaxSize));
  const bool whole = std::fabs(exact - static_cast<double>(total)) <= kTolerance * exact;
  if (total <= 0 || total > kMaxSize || !whole || total % arch.num_heads != 0) {
    reader->AddProblem(absl::StrCat(key, ": ", expand, " x hidden_size ", arch.hidden_size, " = ",
                                    exact, ", want a multiple of num_heads ", arch.num_heads));
    return 0;
  }
  return total / arch.num_heads;
}

void ReadSizes(JsonReader* reader, ArchitectureConfig* arch) {
  arch->vocab_size = reader->Int("vocab_size", 32000, 1, kMaxSize);
  arch->hidden_size = reader->Int("hidden_size", 2048, 1, kMaxSize);
  arch->num_layers = reader->Int("num_hidden_layers", 24, 1, 4096);
  arch->num_heads = reader->Int("num_heads", 16, 1, 4096);
  const double expand_k = reader->Number("expand_k", 1.0, 1e-6, 1e6);
  const double expand_v = reader->Number("expand_v", 1.0, 1e-6, 1e6);
  arch->key_dim = HeadDim("expand_k", expand_k, *arch, reader);
  arch->value_dim = HeadDim("expand_v", expand_v, *arch, reader);
  const double ratio = reader->OptionalNumber("hidden_ratio", 1e-6, 1e6).value_or(4.0);
  arch->intermediate_size = reader->OptionalInt("intermediate_size", 1, kMaxSize)
                                .value_or(DefaultIntermediateSize(arch->hidden_size, ratio));
}

void ReadMixer(JsonReader* reader, ArchitectureConfig* arch) {
  arch->conv_size = reader->Int("conv_size", 4, 1, 4096);
  arch->norm_eps = reader->Number("norm_eps", 1e-6, 0.0, 1.0);
  arch->use_gate = reader->Bool("use_gate", false);
  arch->use_beta = reader->Bool("use_beta", true);
  arch->use_short_conv = reader->Bool("use_short_conv", true);
  arch->conv_bias = reader->Bool("conv_bias", false);
  arch->allow_neg_eigval = reader->Bool("allow_neg_eigval", false);
  arch->tie_embeddings = reader->Bool("tie_word_embeddings", false);
  arch->qk_norm = reader->Name<kernels::QkNorm>(
      "qk_norm", {{"l2", kernels::QkNorm::kL2}, {"sum", kernels::QkNorm::kSum}},
      kernels::QkNorm::kL2);
  arch->qk_activation =
      reader->Name<kernels::Activation>("qk_activation",
                                        {{"silu", kernels::Activation::kSilu},
                                         {"relu", kernels::Activation::kRelu},
                                         {"elu", kernels::Activation::kEluPlusOne},
                                         {"identity", kernels::Activation::kIdentity}},
                                        kernels::Activation::kSilu);
}

// Before 2025 fla divided by the sum, since then by the sum of magnitudes, and a config does not
// say which of the two trained it. Without negative values they are the same.
void CheckSumNorm(const std::string& model_type, const ArchitectureConfig& arch,
                  JsonReader* reader) {
  const bool negative = arch.qk_activation == kernels::Activation::kSilu ||
                        arch.qk_activation == kernels::Activation::kIdentity;
  if (model_type != "delta_net" || arch.qk_norm != kernels::QkNorm::kSum || !negative) return;
  reader->AddProblem(absl::StrCat("qk_norm: sum with qk_activation ",
                                  std::string(ActivationName(arch.qk_activation)),
                                  " means different things in different versions of fla and is not "
                                  "supported; relu and elu are"));
}

void ReadPreconditioner(const std::string& model_type, const nlohmann::json& root,
                        JsonReader* reader, ArchitectureConfig* arch) {
  const bool plain = model_type == "delta_net";
  if (plain) arch->eta = 0;
  if (!reader->Has("osdn")) return;
  const nlohmann::json& object = root.at("osdn");
  if (!object.is_object()) {
    reader->AddProblem(absl::StrCat("osdn: ", object.dump(), ", want an object"));
    return;
  }
  constexpr double kAny = std::numeric_limits<float>::max();
  JsonReader osdn(object, "osdn.");
  arch->eta = osdn.Number("eta", arch->eta, 0.0, kAny);
  arch->eps = osdn.Number("eps", arch->eps, 0.0, kAny);
  arch->d_min = osdn.Number("d_min", arch->d_min, -kAny, kAny);
  arch->d_max = osdn.Number("d_max", arch->d_max, -kAny, kAny);
  arch->apf = osdn.Name<Apf>("apf", {{"none", Apf::kNone}, {"scalar", Apf::kScalar}}, Apf::kNone);
  arch->apf_anchor = osdn.Number("apf_anchor", arch->apf_anchor, -kAny, kAny);
  osdn.RefuseUnknown();
  reader->AddProblems(osdn.problems());
  if (plain && !arch->is_plain_delta_net()) {
    reader->AddProblem(
        absl::StrCat("osdn: model_type delta_net has no preconditioner, but osdn.eta is ",
                     arch->eta, " and osdn.apf is ", arch->apf == Apf::kNone ? "none" : "scalar",
                     "; set model_type to osdn"));
  }
}

// bos_token_id and eos_token_id, in config.json and generation_config.json alike.
void ReadSpecialTokens(JsonReader* reader, int64_t vocab_size, CheckpointConfig* config) {
  const int64_t last = vocab_size - 1;
  if (reader->Has("bos_token_id")) {
    config->bos_id = reader->OptionalInt("bos_token_id", 0, last);
  }
  if (reader->Has("eos_token_id")) {
    config->eos_ids.clear();
    for (int64_t id : reader->IntOrList("eos_token_id", 0, last)) {
      config->eos_ids.push_back(static_cast<int32_t>(id));
    }
  }
}

}  // namespace

absl::StatusOr<CheckpointConfig> ParseCheckpointConfig(std::string_view json_text) {
  absl::StatusOr<nlohmann::json> root = ParseJsonObject(json_text, "config.json");
  if (!root.ok()) return root.status();
  JsonReader reader(*root, "");
  CheckpointConfig config;
  if (!reader.Has("model_type")) reader.AddProblem("model_type: missing, want osdn or delta_net");
  config.model_type = reader.Name<std::string>(
      "model_type", {{"osdn", "osdn"}, {"delta_net", "delta_net"}}, "osdn");

  ReadSizes(&reader, &config.arch);
  ReadMixer(&reader, &config.arch);
  CheckSumNorm(config.model_type, config.arch, &reader);
  ReadPreconditioner(config.model_type, *root, &reader, &config.arch);
  config.bos_id = 1;  // fla's defaults, where the vocabulary has them
  config.eos_ids = {2};
  ReadSpecialTokens(&reader, config.arch.vocab_size, &config);
  if (!root->contains("bos_token_id") && config.arch.vocab_size <= 1) config.bos_id.reset();
  if (!root->contains("eos_token_id") && config.arch.vocab_size <= 2) config.eos_ids.clear();

  for (const FixedKey& fixed : FixedKeys()) reader.Only(fixed.key, fixed.allowed, fixed.reason);
  for (const char* key : kInertKeys) reader.Ignore(key);
  reader.RefuseUnknown();
  if (absl::Status status = reader.ToStatus("config.json"); !status.ok()) return status;
  return config;
}

absl::Status ApplyGenerationConfig(std::string_view json_text, CheckpointConfig* config) {
  absl::StatusOr<nlohmann::json> root = ParseJsonObject(json_text, "generation_config.json");
  if (!root.ok()) return root.status();
  JsonReader reader(*root, "");
  ReadSpecialTokens(&reader, config->arch.vocab_size, config);
  return reader.ToStatus("generation_config.json");
}

absl::StatusOr<std::optional<bool>> ParseAddBosToken(std::string_view json_text) {
  absl::StatusOr<nlohmann::json> root = ParseJsonObject(json_text, "tokenizer_config.json");
  if (!root.ok()) return root.status();
  JsonReader reader(*root, "");
  if (!reader.Has("add_bos_token")) return std::optional<bool>();
  const bool add = reader.Bool("add_bos_token", true);
  if (absl::Status status = reader.ToStatus("tokenizer_config.json"); !status.ok()) return status;
  return std::optional<bool>(add);
}

}  // namespace osdn::tools
