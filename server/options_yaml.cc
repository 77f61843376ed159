// The YAML side of server/options.h.
#include <yaml-cpp/yaml.h>

#include <set>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/options.h"

namespace osdn {
namespace {

class YamlOptions {
 public:
  YamlOptions(absl::string_view file, ResolvedOptions* options) : file_(file), options_(options) {}

  // `prefix` is "" at the top, else "section.".
  void ReadMap(const YAML::Node& map, const std::string& prefix) {
    for (const auto& entry : map) {
      if (!entry.first.IsScalar()) {
        AddProblem(entry.first, "a key must be a plain word");
        continue;
      }
      ReadEntry(entry.first, entry.second, absl::StrCat(prefix, entry.first.Scalar()));
    }
  }

  void AddProblem(const YAML::Node& node, absl::string_view text) {
    AddProblem(node.Mark().line + 1, text);
  }
  void AddProblem(int line, absl::string_view text) {
    problems_.push_back(absl::StrCat(file_, ":", line, ": ", text));
  }

  absl::Status status() const {
    if (problems_.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrJoin(problems_, "\n"));
  }

 private:
  void ReadEntry(const YAML::Node& key, const YAML::Node& value, const std::string& path) {
    if (!seen_.insert(path).second) {
      AddProblem(key, absl::StrCat(path, " is given twice"));
      return;
    }
    const absl::Span<const OptionSpec> table = OptionTable();
    for (size_t i = 0; i < table.size(); ++i) {
      if (table[i].path == path) return ReadOption(i, key, value);
    }
    const std::string section = absl::StrCat(path, ".");
    for (const OptionSpec& spec : table) {
      if (!absl::StartsWith(spec.path, section)) continue;
      if (value.IsMap()) return ReadMap(value, section);
      if (!value.IsNull()) AddProblem(value, absl::StrCat(path, " is a section of options"));
      return;
    }
    AddProblem(key, absl::StrCat("unknown option ", path,
                                 " (there are: ", absl::StrJoin(Siblings(path), ", "), ")"));
  }

  void ReadOption(size_t index, const YAML::Node& key, const YAML::Node& value) {
    const OptionSpec& spec = OptionTable()[index];
    if (!value.IsScalar()) {
      AddProblem(key, absl::StrCat(spec.path, " wants one value"));
      return;
    }
    // A value that a flag overrides is checked too: the file is wrong either way.
    ServerOptions scratch;
    const bool overridden = options_->sources[index] == OptionSource::kFlag;
    const absl::Status set =
        SetOption(spec, value.Scalar(), overridden ? &scratch : &options_->values);
    if (!set.ok()) {
      AddProblem(value, absl::StrCat(spec.path, ": ", set.message()));
    } else if (!overridden) {
      options_->sources[index] = OptionSource::kFile;
    }
  }

  // Options and sections beside `path`.
  static std::set<absl::string_view> Siblings(absl::string_view path) {
    const size_t dot = path.rfind('.');
    const absl::string_view prefix = dot == path.npos ? "" : path.substr(0, dot + 1);
    std::set<absl::string_view> names;
    for (const OptionSpec& spec : OptionTable()) {
      if (!absl::StartsWith(spec.path, prefix)) continue;
      const absl::string_view rest = spec.path.substr(prefix.size());
      names.insert(rest.substr(0, rest.find('.')));
    }
    return names;
  }

  const std::string file_;
  ResolvedOptions* const options_;
  std::set<std::string> seen_;
  std::vector<std::string> problems_;
};

}  // namespace

absl::Status ApplyYaml(absl::string_view text, absl::string_view file, ResolvedOptions* options) {
  YamlOptions reader(file, options);
  try {
    const YAML::Node root = YAML::Load(std::string(text));
    if (root.IsMap()) {
      reader.ReadMap(root, "");
    } else if (root.IsDefined() && !root.IsNull()) {
      reader.AddProblem(root, "the file must be a map of options");
    }
  } catch (const YAML::Exception& error) {
    reader.AddProblem(error.mark.line + 1, error.msg);
  }
  return reader.status();
}

}  // namespace osdn
