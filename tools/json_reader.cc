#include "tools/json_reader.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace osdn::tools {
namespace {

// A value as a message shows it: short, whatever a file puts there, and never an exception on bytes
// that are not UTF-8.
std::string Show(const nlohmann::json& value) {
  constexpr size_t kMaxShown = 80;
  std::string text = value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  if (text.size() > kMaxShown) text = absl::StrCat(text.substr(0, kMaxShown), "...");
  return text;
}

}  // namespace

absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text, const std::string& file) {
  try {
    nlohmann::json root = nlohmann::json::parse(text);
    if (root.is_object()) return root;
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": want a JSON object, got ", root.type_name()));
  } catch (const nlohmann::json::exception& e) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": not valid JSON: ", e.what()));
  }
}

JsonReader::JsonReader(const nlohmann::json& object, std::string prefix)
    : object_(object), prefix_(std::move(prefix)) {}

const nlohmann::json* JsonReader::Find(const std::string& key) {
  seen_.insert(key);
  const auto it = object_.find(key);
  return it == object_.end() ? nullptr : &*it;
}

bool JsonReader::Has(const std::string& key) { return Find(key) != nullptr; }

std::optional<int64_t> JsonReader::CheckInt(const std::string& key, const nlohmann::json& value,
                                            int64_t min, int64_t max) {
  const bool fits = value.is_number_integer() &&
                    (!value.is_number_unsigned() ||
                     value.get<uint64_t>() <= uint64_t{std::numeric_limits<int64_t>::max()});
  if (fits) {
    const auto number = value.get<int64_t>();
    if (number >= min && number <= max) return number;
  }
  AddProblem(
      absl::StrCat(prefix_, key, ": ", Show(value), ", want an integer from ", min, " to ", max));
  return std::nullopt;
}

std::optional<double> JsonReader::CheckNumber(const std::string& key, const nlohmann::json& value,
                                              double min, double max) {
  if (value.is_number()) {
    const auto number = value.get<double>();
    if (number >= min && number <= max) return number;
  }
  AddProblem(
      absl::StrCat(prefix_, key, ": ", Show(value), ", want a number from ", min, " to ", max));
  return std::nullopt;
}

int64_t JsonReader::Int(const std::string& key, int64_t default_value, int64_t min, int64_t max) {
  const nlohmann::json* value = Find(key);
  if (value == nullptr) return default_value;
  return CheckInt(key, *value, min, max).value_or(default_value);
}

double JsonReader::Number(const std::string& key, double default_value, double min, double max) {
  const nlohmann::json* value = Find(key);
  if (value == nullptr) return default_value;
  return CheckNumber(key, *value, min, max).value_or(default_value);
}

bool JsonReader::Bool(const std::string& key, bool default_value) {
  const nlohmann::json* value = Find(key);
  if (value == nullptr) return default_value;
  if (value->is_boolean()) return value->get<bool>();
  AddProblem(absl::StrCat(prefix_, key, ": ", Show(*value), ", want true or false"));
  return default_value;
}

std::optional<int64_t> JsonReader::OptionalInt(const std::string& key, int64_t min, int64_t max) {
  const nlohmann::json* value = Find(key);
  if (value == nullptr || value->is_null()) return std::nullopt;
  return CheckInt(key, *value, min, max);
}

std::optional<double> JsonReader::OptionalNumber(const std::string& key, double min, double max) {
  const nlohmann::json* value = Find(key);
  if (value == nullptr || value->is_null()) return std::nullopt;
  return CheckNumber(key, *value, min, max);
}

std::vector<int64_t> JsonReader::IntOrList(const std::string& key, int64_t min, int64_t max) {
  std::vector<int64_t> result;
  const nlohmann::json* value = Find(key);
  if (value == nullptr || value->is_null()) return result;
  const nlohmann::json list = value->is_array() ? *value : nlohmann::json::array({*value});
  for (const nlohmann::json& item : list) {
    if (std::optional<int64_t> number = CheckInt(key, item, min, max)) result.push_back(*number);
  }
  return result;
}

std::optional<std::string> JsonReader::String(const std::string& key) {
  const nlohmann::json* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_string()) return value->get<std::string>();
  AddProblem(absl::StrCat(prefix_, key, ": ", Show(*value), ", want a string"));
  return std::nullopt;
}

void JsonReader::AddUnknownName(const std::string& key, const std::string& value,
                                const std::vector<std::string>& known) {
  AddProblem(
      absl::StrCat(prefix_, key, ": ", Show(value), ", want one of ", absl::StrJoin(known, ", ")));
}

void JsonReader::Only(const std::string& key, const std::vector<nlohmann::json>& allowed,
                      const std::string& reason) {
  const nlohmann::json* value = Find(key);
  if (value == nullptr) return;
  if (std::find(allowed.begin(), allowed.end(), *value) != allowed.end()) return;
  AddProblem(absl::StrCat(prefix_, key, ": ", Show(*value), ": ", reason));
}

void JsonReader::RefuseUnknown() {
  for (const auto& [key, value] : object_.items()) {
    if (seen_.count(key) > 0) continue;
    AddProblem(absl::StrCat(prefix_, key, ": ", Show(value),
                            ": unknown key; it may change what the model computes"));
  }
}

void JsonReader::AddProblems(const std::vector<std::string>& problems) {
  problems_.insert(problems_.end(), problems.begin(), problems.end());
}

absl::Status JsonReader::ToStatus(const std::string& file) const {
  if (problems_.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(file, ":\n  ", absl::StrJoin(problems_, "\n  ")));
}

}  // namespace osdn::tools
