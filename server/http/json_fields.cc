#include "server/http/json_fields.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <utility>

#include "absl/strings/str_cat.h"

namespace osdn {
namespace {

constexpr size_t kMaxToldFields = 16;  // unknown ones

// Refuses what would take much more memory or time than its size: nesting, and objects of very many
// members, which the ordered map looks through one by one.
class Guard {
 public:
  bool operator()(int depth, Json::parse_event_t event, Json&) {
    switch (event) {
      case Json::parse_event_t::object_start:
      case Json::parse_event_t::array_start:
        if (depth >= kMaxJsonDepth) {
          throw std::length_error(absl::StrCat("nested more than ", kMaxJsonDepth, " deep"));
        }
        members_.push_back(0);
        break;
      case Json::parse_event_t::object_end:
      case Json::parse_event_t::array_end:
        members_.pop_back();
        break;
      case Json::parse_event_t::key:
        if (++members_.back() > kMaxJsonMembers) {
          throw std::length_error(
              absl::StrCat("an object of more than ", kMaxJsonMembers, " members"));
        }
        break;
      case Json::parse_event_t::value:
        break;
    }
    return true;
  }

 private:
  std::vector<size_t> members_;
};

}  // namespace

absl::StatusOr<Json> ParseJsonObject(absl::string_view text) {
  try {
    Guard guard;
    Json parsed = Json::parse(text.begin(), text.end(),
                              [&guard](int depth, Json::parse_event_t event, Json& value) {
                                return guard(depth, event, value);
                              });
    if (parsed.is_object()) return parsed;
    return absl::InvalidArgumentError(
        absl::StrCat("the body is JSON, but not an object: ", parsed.type_name()));
  } catch (const Json::exception& error) {
    // "[json.exception.parse_error.101] parse error at line 1, ..."
    absl::string_view what = error.what();
    if (const size_t space = what.find("] "); space != what.npos) what.remove_prefix(space + 2);
    return absl::InvalidArgumentError(absl::StrCat("the body is not JSON: ", what));
  } catch (const std::length_error& error) {
    return absl::InvalidArgumentError(absl::StrCat("the body is JSON, but ", error.what()));
  }
}

std::string JsonText(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string JsonFields::Name(absl::string_view name) const { return absl::StrCat(prefix_, name); }

void JsonFields::Add(absl::string_view name, absl::string_view description) {
  violations_->push_back({Name(name), std::string(description)});
}

const Json* JsonFields::Find(absl::string_view name) {
  known_.emplace_back(name);
  const auto it = object_.find(std::string(name));
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

bool JsonFields::Flag(absl::string_view name) {
  const Json* value = Find(name);
  if (value == nullptr) return false;
  if (!value->is_boolean())
    Add(name, absl::StrCat(value->type_name(), ": true or false is wanted"));
  return value->is_boolean() && value->get<bool>();
}

std::optional<double> JsonFields::Number(absl::string_view name) {
  const Json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (value->is_number()) return value->get<double>();
  Add(name, absl::StrCat(value->type_name(), ": a number is wanted"));
  return std::nullopt;
}

std::optional<uint64_t> JsonFields::Whole(absl::string_view name, uint64_t most) {
  const Json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (value->is_number_unsigned() && value->get<uint64_t>() <= most) return value->get<uint64_t>();
  const std::string found = value->is_number() ? JsonText(*value) : std::string(value->type_name());
  Add(name, absl::StrCat(found, ": a whole number in [0, ", most, "] is wanted"));
  return std::nullopt;
}

std::optional<std::string> JsonFields::Text(absl::string_view name) {
  const Json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (value->is_string()) return value->get<std::string>();
  Add(name, absl::StrCat(value->type_name(), ": a string is wanted"));
  return std::nullopt;
}

const Json* JsonFields::Object(absl::string_view name) {
  const Json* value = Find(name);
  if (value == nullptr || value->is_object()) return value;
  Add(name, absl::StrCat(value->type_name(), ": an object is wanted"));
  return nullptr;
}

const Json* JsonFields::Array(absl::string_view name) {
  const Json* value = Find(name);
  if (value == nullptr || value->is_array()) return value;
  Add(name, absl::StrCat(value->type_name(), ": an array is wanted"));
  return nullptr;
}

void JsonFields::Ignore(std::initializer_list<absl::string_view> names) {
  for (absl::string_view name : names) known_.emplace_back(name);
}

void JsonFields::Refuse(absl::string_view name, absl::string_view why) {
  const Json* value = Find(name);
  if (value == nullptr || (value->is_boolean() && !value->get<bool>())) return;
  if (value->is_structured() && value->empty()) return;
  Add(name, why);
}

void JsonFields::RefuseOthers() {
  size_t told = 0;
  for (const auto& [name, value] : object_.items()) {
    if (std::find(known_.begin(), known_.end(), name) != known_.end()) continue;
    Add(name, "not a field of this request: docs/api.md lists them");
    if (++told == kMaxToldFields) return;
  }
}

}  // namespace osdn
