#include "engine/model_config.h"

#include <array>
#include <charconv>
#include <cmath>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/sha256.h"

namespace osdn {
namespace {

using kernels::Activation;
using kernels::QkNorm;

constexpr std::array<std::pair<Activation, std::string_view>, 4> kActivations = {{
    {Activation::kSilu, "silu"},
    {Activation::kRelu, "relu"},
    {Activation::kEluPlusOne, "elu"},  // fla's "elu" is elu(x) + 1
    {Activation::kIdentity, "identity"},
}};

constexpr std::array<std::pair<QkNorm, std::string_view>, 2> kQkNorms = {{
    {QkNorm::kL2, "l2"},
    {QkNorm::kSum, "sum"},
}};

// The shortest text that reads back to the same double.
std::string DoubleText(double value) {
  std::array<char, 32> text = {};
  const auto result = std::to_chars(text.data(), text.data() + text.size(), value);
  return {text.data(), result.ptr};
}

class RangeChecker {
 public:
  void Integer(const char* key, int64_t value, int64_t min, int64_t max) {
    if (value >= min && value <= max) return;
    errors_.push_back(absl::StrCat(key, ": ", value, " is out of range [", min, ", ", max, "]"));
  }
  // NaN fails, too.
  void Real(const char* key, double value, bool in_range, const char* range) {
    if (in_range && std::isfinite(value)) return;
    errors_.push_back(absl::StrCat(key, ": ", DoubleText(value), " is out of range ", range));
  }
  absl::Status Result() const {
    if (errors_.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrJoin(errors_, "; "));
  }

 private:
  std::vector<std::string> errors_;
};

}  // namespace

absl::Status ValidateArchitecture(const ArchitectureConfig& arch) {
  // The limits keep every product of two or three of them far inside 64 bits; they are some hundred
  // times the largest published model of this family.
  RangeChecker check;
  check.Integer("architecture.vocab_size", arch.vocab_size, 1, 1 << 24);
  check.Integer("architecture.hidden_size", arch.hidden_size, 1, 1 << 17);
  check.Integer("architecture.num_layers", arch.num_layers, 1, 1024);
  check.Integer("architecture.num_heads", arch.num_heads, 1, 1024);
  check.Integer("architecture.key_dim", arch.key_dim, 1, 1024);
  check.Integer("architecture.value_dim", arch.value_dim, 1, 4096);
  check.Integer("architecture.intermediate_size", arch.intermediate_size, 1, 1 << 20);
  check.Integer("architecture.conv_size", arch.conv_size, 1, 64);
  check.Real("architecture.norm_eps", arch.norm_eps, arch.norm_eps > 0 && arch.norm_eps < 1,
             "(0, 1)");
  check.Real("osdn.eta", arch.eta, arch.eta >= 0 && arch.eta <= 1000, "[0, 1000]");
  check.Real("osdn.eps", arch.eps, arch.eps > 0 && arch.eps < 1, "(0, 1)");
  // d starts at 1, so the box must hold 1.
  check.Real("osdn.d_min", arch.d_min, arch.d_min > 0 && arch.d_min <= 1, "(0, 1]");
  check.Real("osdn.d_max", arch.d_max, arch.d_max >= 1 && arch.d_max <= 1e6, "[1, 1e6]");
  check.Real("osdn.apf_anchor", arch.apf_anchor, arch.apf_anchor >= 0 && arch.apf_anchor <= 1e6,
             "[0, 1e6]");
  return check.Result();
}

std::string ModelConfig::model_id() const {
  std::string weights_digest;
  for (const FileDigest& file : files) {
    if (file.name == kWeightsFileName) weights_digest = file.sha256;
  }
  // One line a value, in a fixed order: changing this text changes every model's id.
  std::string identity = "osdn-model-id 1\n";
  const auto add = [&identity](const char* key, std::string_view value) {
    identity.append(key).append(" ").append(value).append("\n");
  };
  const auto add_integer = [&add](const char* key, int64_t value) {
    add(key, std::to_string(value));
  };
  add("weights", weights_digest);
  add_integer("vocab_size", arch.vocab_size);
  add_integer("hidden_size", arch.hidden_size);
  add_integer("num_layers", arch.num_layers);
  add_integer("num_heads", arch.num_heads);
  add_integer("key_dim", arch.key_dim);
  add_integer("value_dim", arch.value_dim);
  add_integer("intermediate_size", arch.intermediate_size);
  add_integer("conv_size", arch.conv_size);
  add_integer("conv_bias", arch.conv_bias ? 1 : 0);
  add("norm_eps", DoubleText(arch.norm_eps));
  add_integer("use_gate", arch.use_gate ? 1 : 0);
  add_integer("use_beta", arch.use_beta ? 1 : 0);
  add_integer("use_short_conv", arch.use_short_conv ? 1 : 0);
  add_integer("allow_neg_eigval", arch.allow_neg_eigval ? 1 : 0);
  add_integer("tie_embeddings", arch.tie_embeddings ? 1 : 0);
  add("qk_norm", QkNormName(arch.qk_norm));
  add("qk_activation", ActivationName(arch.qk_activation));
  add("eta", DoubleText(arch.eta));
  add("eps", DoubleText(arch.eps));
  add("d_min", DoubleText(arch.d_min));
  add("d_max", DoubleText(arch.d_max));
  add("apf", ApfName(arch.apf));
  add("apf_anchor", DoubleText(arch.apf_anchor));
  return Sha256Hex(
      absl::MakeConstSpan(reinterpret_cast<const std::byte*>(identity.data()), identity.size()));
}

std::string_view ActivationName(Activation activation) {
  for (const auto& [value, name] : kActivations) {
    if (value == activation) return name;
  }
  return "unknown";
}

std::optional<Activation> ParseActivation(std::string_view name) {
  for (const auto& [value, known] : kActivations) {
    if (known == name) return value;
  }
  return std::nullopt;
}

std::string_view QkNormName(QkNorm norm) {
  for (const auto& [value, name] : kQkNorms) {
    if (value == norm) return name;
  }
  return "unknown";
}

std::optional<QkNorm> ParseQkNorm(std::string_view name) {
  for (const auto& [value, known] : kQkNorms) {
    if (known == name) return value;
  }
  return std::nullopt;
}

std::optional<kernels::DType> ParseDType(std::string_view name) {
  using kernels::DType;
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kI8, DType::kI4}) {
    if (kernels::DTypeName(dtype) == name) return dtype;
  }
  return std::nullopt;
}

std::string_view ApfName(Apf apf) { return apf == Apf::kScalar ? "scalar" : "none"; }

std::optional<Apf> ParseApf(std::string_view name) {
  if (name == "none") return Apf::kNone;
  if (name == "scalar") return Apf::kScalar;
  return std::nullopt;
}

}  // namespace osdn
