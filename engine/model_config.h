// What model.yaml says: architecture, OSDN constants, dtype, tokenizer, chat template, checksums.
// docs/model.md explains the keys; docs/model-format.md the file.
#ifndef OSDN_ENGINE_MODEL_CONFIG_H_
#define OSDN_ENGINE_MODEL_CONFIG_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/chat_template.h"
#include "kernels/include/mixer.h"
#include "kernels/include/tensor.h"

namespace osdn {

// Version 2 brought int8 and int4. What version 1 can say is still written as version 1.
inline constexpr int kModelFormatVersion = 2;
inline constexpr char kModelFileName[] = "model.yaml";
inline constexpr char kWeightsFileName[] = "weights.safetensors";
inline constexpr char kTokenizerFileName[] = "tokenizer.model";

enum class Apf : uint8_t { kNone, kScalar };

// The network's shape. Plain values; ValidateArchitecture says whether they can be served.
struct ArchitectureConfig {
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t key_dim = 0;    // K, one head
  int64_t value_dim = 0;  // V, one head
  int64_t intermediate_size = 0;
  int64_t conv_size = 4;
  double norm_eps = 1e-6;
  bool use_gate = false;
  bool use_beta = true;  // false: beta = 1 (fla)
  bool use_short_conv = true;
  bool conv_bias = false;
  bool allow_neg_eigval = false;
  bool tie_embeddings = false;
  kernels::QkNorm qk_norm = kernels::QkNorm::kL2;
  kernels::Activation qk_activation = kernels::Activation::kSilu;

  // Preconditioner. eta = 0 without APF is plain DeltaNet.
  double eta = 0.003;
  double eps = 1e-6;
  double d_min = 0.5;
  double d_max = 2.0;
  Apf apf = Apf::kNone;
  double apf_anchor = 1.0;

  bool is_plain_delta_net() const { return eta == 0 && apf == Apf::kNone; }
};

// INVALID_ARGUMENT listing every value that is out of range, by its model.yaml key.
absl::Status ValidateArchitecture(const ArchitectureConfig& arch);

struct FileDigest {
  std::string name;
  int64_t bytes = 0;
  std::string sha256;  // lower-case hex
};

struct ModelConfig {
  std::string name;
  ArchitectureConfig arch;
  kernels::DType dtype = kernels::DType::kF32;  // of the matrices; see StoredDType
  bool has_tokenizer = false;
  std::optional<int32_t> bos_id;
  bool add_bos = true;  // prepend bos_id to text prompts
  std::vector<int32_t> eos_ids;
  std::optional<ChatTemplate> chat;
  std::string source;  // free text: what it was converted from
  std::vector<FileDigest> files;

  // Identity of the weights and of the numbers that give them meaning: states made under one model
  // id are refused under another. Lower-case hex sha256.
  std::string model_id() const;
};

// NOT_FOUND (no such directory or no model.yaml: says how to make one), INVALID_ARGUMENT naming
// key, value and range, FAILED_PRECONDITION for a newer format version. Unknown keys are errors.
absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& model_dir);

// A shape without weights (models/configs): `name`, `architecture` and `osdn` of a model.yaml, with
// the same keys, defaults and errors. The rest of the result is at its defaults.
absl::StatusOr<ModelConfig> LoadArchitectureFile(const std::string& path);

// The text of model.yaml; LoadModelConfig reads it back to the same values.
std::string ModelConfigToYaml(const ModelConfig& config);

// Names used in model.yaml and in messages.
std::string_view ActivationName(kernels::Activation activation);
std::optional<kernels::Activation> ParseActivation(std::string_view name);
std::string_view QkNormName(kernels::QkNorm norm);
std::optional<kernels::QkNorm> ParseQkNorm(std::string_view name);
// A model dtype by its name in model.yaml (kernels::DTypeName).
std::optional<kernels::DType> ParseDType(std::string_view name);
std::string_view ApfName(Apf apf);
std::optional<Apf> ParseApf(std::string_view name);

}  // namespace osdn

#endif  // OSDN_ENGINE_MODEL_CONFIG_H_
