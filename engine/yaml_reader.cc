#include "engine/yaml_reader.h"

#include <exception>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/mapped_file.h"

namespace osdn::internal {

YamlMap::YamlMap(const YAML::Node& node, std::string path, std::vector<std::string>* errors)
    : path_(std::move(path)), errors_(errors) {
  if (!node.IsMap()) {
    errors_->push_back(path_.empty() ? std::string("not a map of keys and values")
                                     : absl::StrCat(path_, ": must be a map"));
    return;
  }
  for (const auto& item : node) {
    if (!item.first.IsScalar()) {
      errors_->push_back(absl::StrCat(path_.empty() ? "document" : path_, ": a key is not a name"));
      continue;
    }
    const std::string& key = item.first.Scalar();
    if (!values_.emplace(key, item.second).second) Error(key, "given twice");
  }
}

std::string YamlMap::Path(const std::string& key) const {
  return path_.empty() ? key : absl::StrCat(path_, ".", key);
}

void YamlMap::Error(const std::string& key, const std::string& what) {
  errors_->push_back(absl::StrCat(Path(key), ": ", what));
}

std::vector<std::string> YamlMap::Keys() const {
  std::vector<std::string> keys;
  for (const auto& [key, value] : values_) keys.push_back(key);
  return keys;
}

std::optional<YAML::Node> YamlMap::Take(const std::string& key, Presence presence) {
  taken_[key] = true;
  const auto it = values_.find(key);
  if (it != values_.end()) return it->second;
  if (presence == Presence::kRequired) Error(key, "required, not given");
  return std::nullopt;
}

std::optional<std::string> YamlMap::TakeScalar(const std::string& key, Presence presence,
                                               const std::string& wanted) {
  const std::optional<YAML::Node> node = Take(key, presence);
  if (!node.has_value()) return std::nullopt;
  if (!node->IsScalar()) {
    Error(key, absl::StrCat("must be ", wanted));
    return std::nullopt;
  }
  return node->Scalar();
}

void YamlMap::Read(const std::string& key, Presence presence, int64_t* out) {
  const auto text = TakeScalar(key, presence, "a whole number");
  if (!text.has_value()) return;
  int64_t value = 0;
  if (!absl::SimpleAtoi(*text, &value)) {
    return Error(key, absl::StrCat("\"", *text, "\" is not a whole number"));
  }
  *out = value;
}

void YamlMap::Read(const std::string& key, Presence presence, double* out) {
  const auto text = TakeScalar(key, presence, "a number");
  if (!text.has_value()) return;
  double value = 0;
  if (!absl::SimpleAtod(*text, &value)) {
    return Error(key, absl::StrCat("\"", *text, "\" is not a number"));
  }
  *out = value;
}

void YamlMap::Read(const std::string& key, Presence presence, bool* out) {
  const auto text = TakeScalar(key, presence, "true or false");
  if (!text.has_value()) return;
  if (*text != "true" && *text != "false") {
    return Error(key, absl::StrCat("\"", *text, "\" is neither true nor false"));
  }
  *out = *text == "true";
}

void YamlMap::Read(const std::string& key, Presence presence, std::string* out) {
  auto text = TakeScalar(key, presence, "text");
  if (text.has_value()) *out = *std::move(text);
}

void YamlMap::ReadChoice(const std::string& key, Presence presence, const std::string& choices,
                         const std::function<bool(std::string_view)>& parse) {
  const auto text = TakeScalar(key, presence, absl::StrCat("one of ", choices));
  if (!text.has_value() || parse(*text)) return;
  Error(key, absl::StrCat("\"", *text, "\" is not one of ", choices));
}

void YamlMap::ReadList(
    const std::string& key, Presence presence, size_t max_size,
    const std::function<void(const YAML::Node& node, const std::string& path)>& element) {
  const std::optional<YAML::Node> node = Take(key, presence);
  if (!node.has_value()) return;
  if (!node->IsSequence()) return Error(key, "must be a list");
  if (node->size() > max_size) {
    return Error(key, absl::StrCat(node->size(), " elements, at most ", max_size));
  }
  size_t i = 0;
  for (const YAML::Node& item : *node) element(item, absl::StrCat(Path(key), "[", i++, "]"));
}

std::optional<YamlMap> YamlMap::Child(const std::string& key, Presence presence) {
  const std::optional<YAML::Node> node = Take(key, presence);
  if (!node.has_value()) return std::nullopt;
  return YamlMap(*node, Path(key), errors_);
}

void YamlMap::RejectUnknownKeys() {
  for (const auto& [key, value] : values_) {
    if (!taken_.contains(key)) Error(key, "unknown key");
  }
}

std::optional<std::string> YamlScalar(const YAML::Node& node, const std::string& path,
                                      std::vector<std::string>* errors) {
  if (node.IsScalar()) return node.Scalar();
  errors->push_back(absl::StrCat(path, ": must be a single value"));
  return std::nullopt;
}

absl::Status ReadYaml(
    const std::string& name, const std::string& text,
    const std::function<void(const YAML::Node& root, std::vector<std::string>* errors)>& read) {
  std::vector<std::string> errors;
  // yaml-cpp throws for malformed text and for wrong use of nodes.
  try {
    read(YAML::Load(text), &errors);
  } catch (const std::exception& e) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": ", e.what()));
  }
  if (errors.empty()) return absl::OkStatus();
  constexpr size_t kMaxShown = 50;
  if (const size_t count = errors.size(); count > kMaxShown) {
    errors.resize(kMaxShown);
    errors.push_back(absl::StrCat("and ", count - kMaxShown, " more"));
  }
  return absl::InvalidArgumentError(absl::StrCat(name, ": ", absl::StrJoin(errors, "; ")));
}

absl::StatusOr<std::string> ReadTextFile(const std::string& path) {
  constexpr size_t kMaxBytes = 1 << 20;
  const absl::StatusOr<MappedFile> file = MappedFile::Open(path);
  if (!file.ok()) return file.status();
  const auto bytes = file->bytes();
  if (bytes.size() > kMaxBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", bytes.size(), " bytes, at most ", kMaxBytes));
  }
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

}  // namespace osdn::internal
