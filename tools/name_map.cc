#include "tools/name_map.h"

#include <re2/re2.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/yaml_reader.h"

namespace osdn::tools {
namespace {

using internal::Presence;
using internal::YamlMap;

struct BuiltIn {
  const char* name;
  const char* yaml;
};

constexpr BuiltIn kBuiltIns[] = {
    // flash-linear-attention before 2025: one matrix for both halves of SwiGLU.
    {"fla-fused-mlp", R"(
rules:
  - match: 'model\.layers\.(\d+)\.mlp\.gate_proj\.weight'
    split: ['model.layers.\1.mlp.gate_proj.weight', 'model.layers.\1.mlp.up_proj.weight']
)"},
    // A delta rule inside a Llama model of transformers.
    {"llama", R"(
rules:
  - {match: 'model\.embed_tokens\.weight', to: model.embeddings.weight}
  - {match: 'model\.layers\.(\d+)\.input_layernorm\.weight', to: 'model.layers.\1.attn_norm.weight'}
  - match: 'model\.layers\.(\d+)\.post_attention_layernorm\.weight'
    to: 'model.layers.\1.mlp_norm.weight'
  - {match: 'model\.layers\.(\d+)\.self_attn\.rotary_emb\.inv_freq', ignore: true}
  - {match: 'model\.layers\.(\d+)\.(self_attn|linear_attn)\.(.+)', to: 'model.layers.\1.attn.\3'}
)"},
};

}  // namespace

// Reads one rule of the file.
class NameMap::Reader {
 public:
  Reader(const YAML::Node& node, const std::string& path, std::vector<std::string>* errors)
      : map_(node, path, errors) {}

  Rule Read() {
    Rule rule;
    map_.Read("match", Presence::kRequired, &rule.pattern);
    re2::RE2::Options options;
    options.set_log_errors(false);
    auto match = std::make_shared<re2::RE2>(absl::StrCat("\\A(?:", rule.pattern, ")\\z"), options);
    if (!match->ok()) map_.Error("match", match->error());
    rule.match = match;
    map_.Read("ignore", Presence::kOptional, &rule.ignore);
    map_.Read("transpose", Presence::kOptional, &rule.transpose);
    ReadDimension("unsqueeze", &rule.unsqueeze);
    ReadDimension("squeeze", &rule.squeeze);
    ReadDimension("dim", &rule.dim);
    ReadTargets(&rule);
    if (match->ok()) CheckReferences(rule);
    map_.RejectUnknownKeys();
    return rule;
  }

 private:
  void ReadDimension(const std::string& key, int64_t* dim) {
    constexpr int64_t kMaxDim = 15;
    if (!map_.Has(key)) return;
    map_.Read(key, Presence::kOptional, dim);
    if (*dim < 0 || *dim > kMaxDim) map_.Error(key, absl::StrCat(*dim, ", want 0 to ", kMaxDim));
  }

  void ReadTargets(Rule* rule) {
    const int kinds = static_cast<int>(map_.Has("to")) + static_cast<int>(map_.Has("split")) +
                      static_cast<int>(map_.Has("concat")) + static_cast<int>(rule->ignore);
    if (kinds != 1) map_.Error("match", "needs exactly one of to, split, concat and ignore: true");
    std::string target;
    map_.Read("to", Presence::kOptional, &target);
    map_.Read("concat", Presence::kOptional, &target);
    if (!target.empty()) rule->target.push_back(std::move(target));
    if (map_.Has("concat") != map_.Has("part")) {
      map_.Error("part", "belongs to concat: the place among the parts, as \\2");
    }
    map_.Read("part", Presence::kOptional, &rule->part);
    constexpr size_t kMaxParts = 1024;
    map_.ReadList("split", Presence::kOptional, kMaxParts,
                  [&](const YAML::Node& node, const std::string& /*path*/) {
                    rule->target.push_back(node.IsScalar() ? node.Scalar() : "");
                    if (rule->target.back().empty()) map_.Error("split", "want a list of names");
                  });
    map_.ReadList("sizes", Presence::kOptional, kMaxParts,
                  [&](const YAML::Node& node, const std::string& /*path*/) {
                    int64_t size = 0;
                    const bool number = node.IsScalar() && absl::SimpleAtoi(node.Scalar(), &size);
                    if (!number || size < 1) map_.Error("sizes", "want a list of whole numbers");
                    rule->sizes.push_back(size);
                  });
    if (map_.Has("sizes") && rule->sizes.size() != rule->target.size()) {
      map_.Error("sizes", absl::StrCat(rule->sizes.size(), " of them for ", rule->target.size(),
                                       " names of split"));
    }
  }

  // \1 and the like must exist, so that nothing is left to fail when the rule is used.
  void CheckReferences(const Rule& rule) {
    std::vector<std::string> templates = rule.target;
    templates.push_back(rule.part);
    for (const std::string& text : templates) {
      std::string problem;
      if (!rule.match->CheckRewriteString(text, &problem)) map_.Error("match", problem);
    }
  }

  YamlMap map_;
};

// One use of a map.
class NameMap::Application {
 public:
  explicit Application(const NameMap& map) : map_(map), uses_(map.rules_.size()) {}

  absl::StatusOr<MappedWeights> Run(const SelectedWeights& weights) {
    for (const SelectedTensor& tensor : weights.tensors) {
      absl::Status status = Map(tensor);
      if (!status.ok()) {
        problems_.push_back(absl::StrCat(tensor.source_name, ": ", std::string(status.message())));
      }
    }
    JoinParts();
    if (!problems_.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("the tensors do not fit their map (", problems_.size(),
                       problems_.size() == 1 ? " problem):\n  " : " problems):\n  ",
                       absl::StrJoin(problems_, "\n  ")));
    }
    for (size_t i = 0; i < uses_.size(); ++i) {
      if (uses_[i] > 0) continue;
      result_.notices.push_back(
          absl::StrCat(map_.name_, ": no tensor is called ", map_.rules_[i].pattern));
    }
    return std::move(result_);
  }

 private:
  struct Part {
    int64_t place = 0;
    SourceTensor tensor;
    std::string source;
  };
  struct Parts {
    int64_t dim = 0;
    std::vector<Part> parts;
  };

  absl::Status Map(const SelectedTensor& tensor) {
    for (size_t i = 0; i < map_.rules_.size(); ++i) {
      const Rule& rule = map_.rules_[i];
      if (!re2::RE2::FullMatch(tensor.name, *rule.match)) continue;
      ++uses_[i];
      return Use(rule, tensor);
    }
    return Add(tensor.source_name, "", tensor.name, *tensor.tensor);
  }

  absl::Status Use(const Rule& rule, const SelectedTensor& source) {
    if (rule.ignore) {
      result_.table.push_back(
          {source.source_name, "ignored", "", source.tensor->dtype, source.tensor->shape});
      return absl::OkStatus();
    }
    std::string operation;
    absl::StatusOr<SourceTensor> tensor = Shape(rule, *source.tensor, &operation);
    if (!tensor.ok()) return tensor.status();
    if (!rule.part.empty()) return Keep(rule, source, *std::move(tensor), operation);
    if (rule.target.size() == 1) {
      return Add(source.source_name, operation, Rewrite(rule, rule.target[0], source.name),
                 *std::move(tensor));
    }
    return Split(rule, source, *tensor, operation);
  }

  static absl::StatusOr<SourceTensor> Shape(const Rule& rule, SourceTensor tensor,
                                            std::string* operation) {
    if (rule.transpose) {
      absl::StatusOr<SourceTensor> turned = Transpose(tensor);
      if (!turned.ok()) return turned;
      tensor = *std::move(turned);
      *operation = "transposed";
    }
    std::vector<int64_t> shape = tensor.shape;
    const auto rank = static_cast<int64_t>(shape.size());
    if (rule.unsqueeze >= 0) {
      if (rule.unsqueeze > rank) return NoDimension(tensor, rule.unsqueeze);
      shape.insert(shape.begin() + rule.unsqueeze, 1);
    }
    if (rule.squeeze >= 0) {
      if (rule.squeeze >= rank || shape[static_cast<size_t>(rule.squeeze)] != 1) {
        return NoDimension(tensor, rule.squeeze);
      }
      shape.erase(shape.begin() + rule.squeeze);
    }
    if (shape == tensor.shape) return tensor;
    absl::StrAppend(operation, operation->empty() ? "" : ", ", "reshaped");
    return ReshapeUnits(tensor, shape);
  }

  static absl::Status NoDimension(const SourceTensor& tensor, int64_t dim) {
    return absl::InvalidArgumentError(absl::StrCat("shape ", ShapeText(tensor.shape),
                                                   " has no such dimension ", dim, " of size 1"));
  }

  absl::Status Split(const Rule& rule, const SelectedTensor& source, const SourceTensor& tensor,
                     const std::string& operation) {
    const auto parts = static_cast<int64_t>(rule.target.size());
    const auto dim = static_cast<size_t>(rule.dim);
    if (dim >= tensor.shape.size()) return NoDimension(tensor, rule.dim);
    std::vector<int64_t> sizes = rule.sizes;
    if (sizes.empty()) sizes.assign(rule.target.size(), tensor.shape[dim] / parts);
    if (std::accumulate(sizes.begin(), sizes.end(), int64_t{0}) != tensor.shape[dim]) {
      return absl::InvalidArgumentError(absl::StrCat("dimension ", rule.dim, " of shape ",
                                                     ShapeText(tensor.shape), " cannot be cut in ",
                                                     parts, " parts of ", ShapeText(sizes)));
    }
    int64_t first = 0;
    for (size_t i = 0; i < sizes.size(); ++i) {
      absl::StatusOr<SourceTensor> part = Narrow(tensor, rule.dim, first, sizes[i]);
      if (!part.ok()) return part.status();
      first += sizes[i];
      absl::Status status =
          Add(source.source_name,
              absl::StrCat(operation, operation.empty() ? "" : ", ", "part ", i + 1, " of ", parts),
              Rewrite(rule, rule.target[i], source.name), *std::move(part));
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  // Kept until all parts of the target are there.
  absl::Status Keep(const Rule& rule, const SelectedTensor& source, SourceTensor tensor,
                    const std::string& operation) {
    const std::string place = Rewrite(rule, rule.part, source.name);
    Part part{.tensor = std::move(tensor), .source = source.source_name};
    if (!absl::SimpleAtoi(place, &part.place)) {
      return absl::InvalidArgumentError(absl::StrCat("its part \"", place, "\" is no number"));
    }
    const std::string target = Rewrite(rule, rule.target[0], source.name);
    result_.table.push_back(
        {source.source_name,
         absl::StrCat(operation, operation.empty() ? "" : ", ", "joined, part ", part.place),
         target, part.tensor.dtype, part.tensor.shape});
    Parts& parts = joins_[target];
    parts.dim = rule.dim;
    parts.parts.push_back(std::move(part));
    return absl::OkStatus();
  }

  void JoinParts() {
    for (auto& [target, parts] : joins_) {
      std::vector<Part>& list = parts.parts;
      std::stable_sort(list.begin(), list.end(),
                       [](const Part& a, const Part& b) { return a.place < b.place; });
      std::vector<SourceTensor> tensors;
      for (size_t i = 0; i < list.size(); ++i) {
        if (i > 0 && list[i].place != list[i - 1].place + 1) {
          problems_.push_back(absl::StrCat(target, ": part ", list[i - 1].place, " (",
                                           list[i - 1].source, ") is followed by part ",
                                           list[i].place, " (", list[i].source, ")"));
        }
        tensors.push_back(std::move(list[i].tensor));
      }
      absl::StatusOr<SourceTensor> joined = Concatenate(tensors, parts.dim);
      if (!joined.ok()) {
        problems_.push_back(absl::StrCat(target, ": ", std::string(joined.status().message())));
      } else if (!result_.tensors.emplace(target, *std::move(joined)).second) {
        problems_.push_back(absl::StrCat(target, ": two tensors get this name"));
      }
    }
  }

  absl::Status Add(const std::string& source, std::string operation, const std::string& target,
                   SourceTensor tensor) {
    result_.table.push_back({source, std::move(operation), target, tensor.dtype, tensor.shape});
    if (result_.tensors.emplace(target, std::move(tensor)).second) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("another tensor is called ", target, " already"));
  }

  static std::string Rewrite(const Rule& rule, const std::string& text, const std::string& name) {
    std::string result;
    re2::RE2::Extract(name, *rule.match, text, &result);
    return result;
  }

  const NameMap& map_;
  std::vector<int> uses_;
  std::map<std::string, Parts> joins_;
  std::vector<std::string> problems_;
  MappedWeights result_;
};

std::vector<std::string> NameMap::BuiltInNames() {
  std::vector<std::string> names;
  for (const BuiltIn& built_in : kBuiltIns) names.emplace_back(built_in.name);
  return names;
}

absl::StatusOr<NameMap> NameMap::Load(const std::string& name_or_path) {
  for (const BuiltIn& built_in : kBuiltIns) {
    if (name_or_path == built_in.name) return Parse(built_in.yaml, built_in.name);
  }
  absl::StatusOr<std::string> text = internal::ReadTextFile(name_or_path);
  if (absl::IsNotFound(text.status())) {
    return absl::NotFoundError(absl::StrCat(
        "map ", name_or_path,
        ": no such file, and not one of the built-in maps: ", absl::StrJoin(BuiltInNames(), ", ")));
  }
  if (!text.ok()) return text.status();
  return Parse(*text, name_or_path);
}

absl::StatusOr<NameMap> NameMap::Parse(const std::string& yaml, const std::string& name) {
  constexpr size_t kMaxRules = 10'000;
  NameMap map;
  map.name_ = name;
  absl::Status status =
      internal::ReadYaml(name, yaml, [&](const YAML::Node& root, std::vector<std::string>* errors) {
        YamlMap file(root, "", errors);
        file.ReadList("rules", Presence::kRequired, kMaxRules,
                      [&](const YAML::Node& node, const std::string& path) {
                        map.rules_.push_back(Reader(node, path, errors).Read());
                      });
        file.RejectUnknownKeys();
      });
  if (!status.ok()) return status;
  return map;
}

absl::StatusOr<MappedWeights> NameMap::Apply(const SelectedWeights& weights) const {
  return Application(*this).Run(weights);
}

}  // namespace osdn::tools
