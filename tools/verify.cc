#include "tools/verify.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "engine/model_config.h"
#include "engine/tensor_specs.h"
#include "engine/weights.h"
#include "tools/source_tensor.h"
#include "tools/weight_encoding.h"

namespace osdn::tools {
namespace {

// The lines of model.yaml's sections `architecture` and `osdn`, by key: what the weights mean.
std::map<std::string, std::string> Settings(const ModelConfig& config) {
  std::map<std::string, std::string> settings;
  std::string section;
  for (const std::string& line :
       std::vector<std::string>(absl::StrSplit(ModelConfigToYaml(config), '\n'))) {
    const size_t colon = line.find(": ");
    if (!line.starts_with(' ')) section = line.substr(0, line.find(':'));
    const bool wanted = section == "architecture" || section == "osdn";
    if (!wanted || !line.starts_with("  ") || colon == std::string::npos) continue;
    settings[absl::StrCat(section, ".", line.substr(2, colon - 2))] = line.substr(colon + 2);
  }
  return settings;
}

std::vector<std::string> DifferentSettings(const ModelConfig& a, const ModelConfig& b) {
  std::map<std::string, std::string> left = Settings(a);
  std::map<std::string, std::string> right = Settings(b);
  for (const auto& [key, value] : left) right.try_emplace(key, "(none)");
  for (const auto& [key, value] : right) left.try_emplace(key, "(none)");
  std::vector<std::string> different;
  for (const auto& [key, value] : left) {
    if (value != right[key]) different.push_back(absl::StrCat(key, ": ", value, ", ", right[key]));
  }
  return different;
}

absl::Status CheckShapes(const VerifyOptions& options, const std::vector<TensorSpec>& a,
                         const std::vector<TensorSpec>& b) {
  std::map<std::string, std::string> left;
  std::map<std::string, std::string> right;
  for (const TensorSpec& spec : a) left[spec.name] = ShapeText(spec.shape);
  for (const TensorSpec& spec : b) right[spec.name] = ShapeText(spec.shape);
  std::vector<std::string> problems;
  for (const auto& [name, shape] : left) {
    const auto other = right.find(name);
    if (other == right.end()) {
      problems.push_back(absl::StrCat(name, ": only in ", options.a_dir));
    } else if (other->second != shape) {
      problems.push_back(absl::StrCat(name, ": ", shape, ", ", other->second));
    }
  }
  for (const auto& [name, shape] : right) {
    if (left.count(name) == 0) problems.push_back(absl::StrCat(name, ": only in ", options.b_dir));
  }
  if (problems.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(options.a_dir, " and ", options.b_dir,
                                                 ": models of different shapes:\n  ",
                                                 absl::StrJoin(problems, "\n  ")));
}

TensorDifference Compare(const TensorSpec& spec, const Weights& a_weights,
                         const Weights& b_weights) {
  const kernels::HostTensor a = a_weights.Get(spec.name);
  const kernels::HostTensor b = b_weights.Get(spec.name);
  TensorDifference difference{.name = spec.name,
                              .a_dtype = std::string(kernels::DTypeName(a.dtype)),
                              .b_dtype = std::string(kernels::DTypeName(b.dtype)),
                              .identical = true};
  const int64_t rows = spec.shape[0];
  const int64_t columns = a.elements() / rows;
  const int64_t step = std::max<int64_t>((1 << 20) / columns, 1);
  RoundingError error;
  std::vector<float> left;
  std::vector<float> right;
  for (int64_t row = 0; row < rows; row += step) {
    const auto count = static_cast<size_t>(std::min(step, rows - row) * columns);
    left.resize(count);
    right.resize(count);
    DecodeRows(a, row, absl::MakeSpan(left));
    DecodeRows(b, row, absl::MakeSpan(right));
    for (size_t i = 0; i < count; ++i) {
      const double distance = std::fabs(static_cast<double>(left[i]) - right[i]);
      if (left[i] != right[i]) difference.identical = false;
      difference.max_abs = std::max(difference.max_abs, distance);
      error.error += distance * distance;
      error.signal += static_cast<double>(left[i]) * left[i];
    }
  }
  difference.relative_rms = error.relative_rms();
  a_weights.Release(spec.name);
  b_weights.Release(spec.name);
  return difference;
}

// Tokens that any model can be asked about.
std::vector<int32_t> FixedTokens(int64_t vocab_size) {
  constexpr int kTokens = 256;
  constexpr uint64_t kMultiplier = 6364136223846793005;  // Knuth's
  constexpr int kHighBits = 33;
  uint64_t state = 1;
  std::vector<int32_t> tokens;
  for (int i = 0; i < kTokens; ++i) {
    state = state * kMultiplier + 1442695040888963407;
    tokens.push_back(
        static_cast<int32_t>((state >> kHighBits) % static_cast<uint64_t>(vocab_size)));
  }
  return tokens;
}

}  // namespace

bool VerifyReport::identical() const {
  return settings.empty() && std::all_of(tensors.begin(), tensors.end(),
                                         [](const TensorDifference& t) { return t.identical; });
}

absl::StatusOr<VerifyReport> VerifyModels(
    const VerifyOptions& options,
    const std::function<void(int64_t done, int64_t total)>& progress) {
  absl::StatusOr<ModelConfig> a = LoadModelConfig(options.a_dir);
  if (!a.ok()) return a.status();
  absl::StatusOr<ModelConfig> b = LoadModelConfig(options.b_dir);
  if (!b.ok()) return b.status();
  const std::vector<TensorSpec> specs = TensorSpecs(a->arch);
  absl::Status status = CheckShapes(options, specs, TensorSpecs(b->arch));
  if (!status.ok()) return status;
  absl::StatusOr<Weights> a_weights = Weights::Load(options.a_dir, *a, {.verify_checksums = true});
  if (!a_weights.ok()) return a_weights.status();
  absl::StatusOr<Weights> b_weights = Weights::Load(options.b_dir, *b, {.verify_checksums = true});
  if (!b_weights.ok()) return b_weights.status();

  VerifyReport report;
  report.settings = DifferentSettings(*a, *b);
  for (const TensorSpec& spec : specs) {
    if (options.stop != nullptr && options.stop->load()) {
      return absl::CancelledError("interrupted; nothing is reported");
    }
    report.tensors.push_back(Compare(spec, *a_weights, *b_weights));
  }
  PerplexityOptions outputs = {.model_dir = options.b_dir,
                               .against_dir = options.a_dir,
                               .text_path = options.text_path,
                               .ids_path = options.ids_path,
                               .backend = options.backend,
                               .verify_checksums = false,
                               .stop = options.stop};
  if (options.text_path.empty() && options.ids_path.empty()) {
    outputs.documents.push_back(FixedTokens(a->arch.vocab_size));
  }
  absl::StatusOr<PerplexityReport> measured = MeasurePerplexity(outputs, progress);
  if (!measured.ok()) return measured.status();
  report.outputs = *std::move(measured);
  return report;
}

std::string VerifyToText(const VerifyReport& report, bool all) {
  std::string text;
  for (const std::string& setting : report.settings) {
    absl::StrAppend(&text, "differs          ", setting, "\n");
  }
  std::vector<const TensorDifference*> shown;
  for (const TensorDifference& tensor : report.tensors) {
    if (all || !tensor.identical) shown.push_back(&tensor);
  }
  const auto identical =
      std::count_if(report.tensors.begin(), report.tensors.end(),
                    [](const TensorDifference& tensor) { return tensor.identical; });
  absl::StrAppendFormat(&text, "tensors          %d of %d identical\n", identical,
                        report.tensors.size());
  if (!all) {
    constexpr size_t kShown = 5;
    std::stable_sort(shown.begin(), shown.end(),
                     [](const TensorDifference* left, const TensorDifference* right) {
                       return left->relative_rms > right->relative_rms;
                     });
    shown.resize(std::min(shown.size(), kShown));
  }
  for (const TensorDifference* tensor : shown) {
    absl::StrAppendFormat(&text, "  %s (%s, %s): max %.3g, relative RMS %.3g%%\n", tensor->name,
                          tensor->a_dtype, tensor->b_dtype, tensor->max_abs,
                          100 * tensor->relative_rms);
  }
  absl::StrAppendFormat(&text, "logits           max difference %.3g\n",
                        report.outputs.against->max_logit_difference);
  return text + PerplexityToText(report.outputs);
}

std::string VerifyToJson(const VerifyReport& report) {
  using Json = nlohmann::ordered_json;
  Json root = {{"identical", report.identical()}, {"settings", report.settings}};
  for (const TensorDifference& tensor : report.tensors) {
    root["tensors"].push_back({{"name", tensor.name},
                               {"a_dtype", tensor.a_dtype},
                               {"b_dtype", tensor.b_dtype},
                               {"identical", tensor.identical},
                               {"max_abs", tensor.max_abs},
                               {"relative_rms", tensor.relative_rms}});
  }
  root["outputs"] = Json::parse(PerplexityToJson(report.outputs));
  return root.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace osdn::tools
