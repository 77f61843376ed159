#include "engine/json_schema.h"

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "engine/constraint_syntax.h"

namespace osdn {
namespace {

using Json = nlohmann::ordered_json;  // properties come in the schema's order

constexpr int kMaxDepth = 32;
constexpr int64_t kMaxCount = 1000;     // items and characters
constexpr int64_t kMaxIntegers = 1024;  // values of a range
constexpr int64_t kMaxInteger = int64_t{1} << 53;

using Names = std::initializer_list<absl::string_view>;
bool IsOneOf(absl::string_view name, const Names& names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

constexpr Names kAnnotations = {"title",      "description", "default",   "examples",
                                "deprecated", "readOnly",    "writeOnly", "$comment",
                                "$schema",    "$id",         "$defs",     "definitions"};
constexpr Names kTypes = {"string", "integer", "number", "boolean", "null", "array", "object"};
constexpr Names kFormats = {"date", "time", "date-time", "uuid", "ipv4"};

bool HasType(const Json& value, absl::string_view type) {
  if (type == "string") return value.is_string();
  if (type == "integer") return value.is_number_integer();
  if (type == "number") return value.is_number();
  if (type == "boolean") return value.is_boolean();
  if (type == "null") return value.is_null();
  if (type == "array") return value.is_array();
  return value.is_object();
}

class Normaliser {
 public:
  explicit Normaliser(Json root) : root_(std::move(root)) {}

  absl::StatusOr<std::string> Run() {
    if (absl::Status s = Visit(&root_, "", 0); !s.ok()) return s;
    for (const char* defs : {"$defs", "definitions"}) {
      const auto it = root_.find(defs);
      if (it == root_.end()) continue;
      if (!it->is_object()) return Fail(absl::StrCat("/", defs), "must be an object");
      for (auto& [name, schema] : it->items()) {
        if (absl::Status s = Visit(&schema, absl::StrCat("/", defs, "/", name), 1); !s.ok()) {
          return s;
        }
      }
    }
    if (absl::Status s = CheckCycles(); !s.ok()) return s;
    return root_.dump();
  }

 private:
  static absl::Status Fail(absl::string_view pointer, absl::string_view problem) {
    return absl::InvalidArgumentError(
        absl::StrCat("json_schema: ", pointer.empty() ? "/" : pointer, ": ", problem));
  }
  static std::string Child(absl::string_view pointer, absl::string_view key) {
    return absl::StrCat(pointer, "/", absl::StrReplaceAll(key, {{"~", "~0"}, {"/", "~1"}}));
  }

  // Every keyword of `schema` must be an annotation or one of `names`.
  static absl::Status Only(const Json& schema, absl::string_view pointer, absl::string_view beside,
                           const Names& names) {
    for (const auto& item : schema.items()) {
      if (IsOneOf(item.key(), kAnnotations) || IsOneOf(item.key(), names)) continue;
      return Fail(Child(pointer, item.key()),
                  absl::StrCat("keyword \"", item.key(), "\" is not supported", beside));
    }
    return absl::OkStatus();
  }

  absl::Status Visit(Json* schema, const std::string& pointer, int depth) {
    if (depth > kMaxDepth) return Fail(pointer, absl::StrCat("nested deeper than ", kMaxDepth));
    if (schema->is_boolean() && !pointer.empty()) {
      return schema->get<bool>() ? absl::OkStatus() : Fail(pointer, "false accepts nothing");
    }
    if (!schema->is_object()) return Fail(pointer, "a schema must be an object");
    if (!pointer.empty()) {
      for (const char* key : {"$id", "$defs", "definitions"}) {
        if (schema->contains(key)) {
          return Fail(Child(pointer, key),
                      absl::StrCat("keyword \"", key, "\" is supported at the top only"));
        }
      }
    }
    if (schema->contains("$ref")) return VisitRef(*schema, pointer);
    if (schema->contains("const") || schema->contains("enum")) return VisitValues(*schema, pointer);
    for (const char* key : {"anyOf", "oneOf", "allOf"}) {
      if (schema->contains(key)) return VisitBranches(schema, pointer, key, depth);
    }
    return VisitTyped(schema, pointer, depth);
  }

  absl::Status VisitRef(const Json& schema, const std::string& pointer) {
    if (absl::Status s = Only(schema, pointer, " beside $ref", {"$ref"}); !s.ok()) return s;
    const Json& ref = schema.at("$ref");
    const std::string place = Child(pointer, "$ref");
    if (!ref.is_string()) return Fail(place, "must be a string");
    const std::string target = ref.get<std::string>();
    if (target == "#") return absl::OkStatus();
    const std::vector<std::string> parts = absl::StrSplit(target, '/');
    if (parts.size() != 3 || parts[0] != "#" || !IsOneOf(parts[1], {"$defs", "definitions"}) ||
        parts[2].empty() || parts[2].find_first_of("~%") != std::string::npos) {
      return Fail(place, absl::StrCat("\"", target,
                                      "\": only \"#\", \"#/$defs/NAME\" and "
                                      "\"#/definitions/NAME\" are supported"));
    }
    if (!root_.contains(parts[1]) || !root_[parts[1]].contains(parts[2])) {
      return Fail(place, absl::StrCat("\"", target, "\" does not exist"));
    }
    return absl::OkStatus();
  }

  static absl::Status VisitValues(const Json& schema, const std::string& pointer) {
    const bool is_enum = schema.contains("enum");
    const char* key = is_enum ? "enum" : "const";
    if (absl::Status s = Only(schema, pointer, absl::StrCat(" beside ", key), {key, "type"});
        !s.ok()) {
      return s;
    }
    const Json values = is_enum ? schema.at(key) : Json::array({schema.at(key)});
    if (!values.is_array() || values.empty()) {
      return Fail(Child(pointer, key), "must be a list of at least one value");
    }
    if (!schema.contains("type")) return absl::OkStatus();
    const Json& type = schema.at("type");
    for (const Json& value : values) {
      const bool fits = type.is_string() && HasType(value, type.get<std::string>());
      if (!fits)
        return Fail(Child(pointer, key), absl::StrCat(value.dump(), " is not of the type"));
    }
    return absl::OkStatus();
  }

  absl::Status VisitBranches(Json* schema, const std::string& pointer, const char* key, int depth) {
    if (absl::Status s = Only(*schema, pointer, absl::StrCat(" beside ", key), {key}); !s.ok()) {
      return s;
    }
    Json& branches = (*schema)[key];
    const std::string place = Child(pointer, key);
    if (!branches.is_array() || branches.empty()) {
      return Fail(place, "must be a list of at least one schema");
    }
    if (absl::string_view(key) == "allOf" && branches.size() > 1) {
      return Fail(place, "keyword \"allOf\" is supported with one schema only");
    }
    const bool overlap = absl::string_view(key) == "oneOf" && !Disjoint(branches);
    for (size_t i = 0; i < branches.size(); ++i) {
      if (absl::Status s = Visit(&branches[i], absl::StrCat(place, "/", i), depth + 1); !s.ok()) {
        return s;
      }
    }
    if (overlap) {
      return Fail(place,
                  "keyword \"oneOf\" is supported where the schemas have different types, or "
                  "objects a required property with different const: use anyOf");
    }
    return absl::OkStatus();
  }

  // No value can match two of the branches.
  static bool Disjoint(const Json& branches) {
    std::set<std::string> types;
    bool distinct = true;
    for (const Json& branch : branches) {
      if (!branch.is_object() || !branch.contains("type") || !branch["type"].is_string()) {
        return false;
      }
      std::string type = branch["type"].get<std::string>();
      if (type == "integer") type = "number";
      distinct = types.insert(type).second && distinct;
    }
    return distinct || (types.size() == 1 && *types.begin() == "object" && Tagged(branches));
  }

  // A property that all branches require and that has a const of its own in each.
  static bool Tagged(const Json& branches) {
    if (!branches[0].contains("required")) return false;
    for (const Json& name : branches[0]["required"]) {
      std::set<std::string> tags;
      for (const Json& branch : branches) {
        const Json& required = branch.value("required", Json::array());
        const Json& properties = branch.value("properties", Json::object());
        if (std::find(required.begin(), required.end(), name) == required.end()) break;
        const Json property = properties.value(name.get<std::string>(), Json::object());
        if (!property.is_object() || !property.contains("const")) break;
        if (!tags.insert(property["const"].dump()).second) break;
      }
      if (tags.size() == branches.size()) return true;
    }
    return false;
  }

  absl::Status VisitTyped(Json* schema, const std::string& pointer, int depth) {
    if (!schema->contains("type")) {
      if (schema->contains("properties") || schema->contains("required") ||
          schema->contains("additionalProperties")) {
        return Fail(pointer, "\"type\" is missing: \"object\" is what these keywords want");
      }
      return Only(*schema, pointer, " without a \"type\"", {});
    }
    const Json type = (*schema)["type"];
    if (type.is_array()) {
      if (type.empty()) return Fail(Child(pointer, "type"), "no types");
      if (absl::Status s = Only(*schema, pointer, " beside a list of types", {"type"}); !s.ok()) {
        return s;
      }
      Json branches = Json::array();
      for (const Json& one : type) {
        Json branch = {{"type", one}};
        if (absl::Status s = VisitTyped(&branch, pointer, depth); !s.ok()) return s;
        branches.push_back(std::move(branch));
      }
      schema->erase("type");
      (*schema)["anyOf"] = std::move(branches);
      return absl::OkStatus();
    }
    if (!type.is_string() || !IsOneOf(type.get<std::string>(), kTypes)) {
      return Fail(Child(pointer, "type"),
                  absl::StrCat(type.dump(), " is not one of ", absl::StrJoin(kTypes, ", ")));
    }
    const std::string name = type.get<std::string>();
    if (name == "object") return VisitObject(schema, pointer, depth);
    if (name == "array") return VisitArray(schema, pointer, depth);
    if (name == "string") return VisitString(*schema, pointer);
    if (name == "integer") return VisitInteger(schema, pointer);
    return Only(*schema, pointer, absl::StrCat(" for type ", name), {"type"});
  }

  absl::Status VisitObject(Json* schema, const std::string& pointer, int depth) {
    if (absl::Status s = Only(*schema, pointer, " for type object",
                              {"type", "properties", "required", "additionalProperties"});
        !s.ok()) {
      return s;
    }
    const Json properties = schema->value("properties", Json::object());
    const Json required = schema->value("required", Json::array());
    if (!properties.is_object()) return Fail(Child(pointer, "properties"), "must be an object");
    if (!required.is_array()) return Fail(Child(pointer, "required"), "must be a list");
    for (const Json& name : required) {
      if (name.is_string() && properties.contains(name.get<std::string>())) continue;
      return Fail(Child(pointer, "required"),
                  absl::StrCat(name.dump(), " is not one of the properties"));
    }
    if (properties.empty()) {
      // A map: keys as they come. The same key twice is the last one to every parser.
      schema->erase("properties");
      if (!schema->contains("additionalProperties")) (*schema)["additionalProperties"] = true;
      Json& values = (*schema)["additionalProperties"];
      if (values.is_boolean()) return absl::OkStatus();
      return Visit(&values, Child(pointer, "additionalProperties"), depth + 1);
    }
    if (schema->contains("additionalProperties") &&
        (*schema)["additionalProperties"] != Json(false)) {
      return Fail(Child(pointer, "additionalProperties"),
                  "keyword \"additionalProperties\" beside properties is supported as false only");
    }
    (*schema)["additionalProperties"] = false;
    for (auto& [name, property] : (*schema)["properties"].items()) {
      const std::string place = Child(Child(pointer, "properties"), name);
      if (Json(name).dump().size() != name.size() + 2) {
        return Fail(place,
                    "a name with quotes, backslashes or control characters is not supported");
      }
      if (absl::Status s = Visit(&property, place, depth + 1); !s.ok()) return s;
    }
    return absl::OkStatus();
  }

  // 0..kMaxCount, or `fallback` where the keyword is not there.
  static absl::StatusOr<int64_t> Count(const Json& schema, const std::string& pointer,
                                       const char* key, int64_t fallback) {
    if (!schema.contains(key)) return fallback;
    const Json& value = schema.at(key);
    if (value.is_number_unsigned() && value.get<uint64_t>() <= kMaxCount) {
      return value.get<int64_t>();
    }
    return Fail(Child(pointer, key),
                absl::StrCat(value.dump(), " is outside [0, ", kMaxCount, "]"));
  }

  static absl::Status CheckCounts(const Json& schema, const std::string& pointer, const char* min,
                                  const char* max) {
    const absl::StatusOr<int64_t> low = Count(schema, pointer, min, 0);
    if (!low.ok()) return low.status();
    const absl::StatusOr<int64_t> high = Count(schema, pointer, max, kMaxCount);
    if (!high.ok()) return high.status();
    if (*low <= *high) return absl::OkStatus();
    return Fail(Child(pointer, max), absl::StrCat(*high, " is less than ", min, ", ", *low));
  }

  absl::Status VisitArray(Json* schema, const std::string& pointer, int depth) {
    if (absl::Status s = Only(*schema, pointer, " for type array",
                              {"type", "items", "prefixItems", "minItems", "maxItems"});
        !s.ok()) {
      return s;
    }
    if (absl::Status s = CheckCounts(*schema, pointer, "minItems", "maxItems"); !s.ok()) return s;
    if (schema->contains("prefixItems")) {
      // All of them and nothing else: what people mean by a tuple.
      Json& prefix = (*schema)["prefixItems"];
      if (!prefix.is_array() || prefix.empty()) {
        return Fail(Child(pointer, "prefixItems"), "must be a list of at least one schema");
      }
      if (absl::Status s = Only(*schema, pointer, " beside prefixItems", {"type", "prefixItems"});
          !s.ok()) {
        return s;
      }
      for (size_t i = 0; i < prefix.size(); ++i) {
        const std::string place = absl::StrCat(pointer, "/prefixItems/", i);
        if (absl::Status s = Visit(&prefix[i], place, depth + 1); !s.ok()) return s;
      }
      const size_t count = prefix.size();  // adding keys moves what `prefix` refers to
      (*schema)["items"] = false;
      (*schema)["minItems"] = count;
      return absl::OkStatus();
    }
    if (!schema->contains("items")) (*schema)["items"] = true;
    return Visit(&(*schema)["items"], Child(pointer, "items"), depth + 1);
  }

  static absl::Status VisitString(const Json& schema, const std::string& pointer) {
    if (schema.contains("pattern")) {
      if (absl::Status s = Only(schema, pointer, " beside pattern", {"type", "pattern"}); !s.ok()) {
        return s;
      }
      const Json& pattern = schema.at("pattern");
      const std::string place = Child(pointer, "pattern");
      if (!pattern.is_string()) return Fail(place, "must be a string");
      const absl::Status checked = CheckJsonPattern(pattern.get<std::string>());
      return checked.ok() ? checked : Fail(place, checked.message());
    }
    if (schema.contains("format")) {
      if (absl::Status s = Only(schema, pointer, " beside format", {"type", "format"}); !s.ok()) {
        return s;
      }
      const Json& format = schema.at("format");
      if (format.is_string() && IsOneOf(format.get<std::string>(), kFormats)) {
        return absl::OkStatus();
      }
      return Fail(Child(pointer, "format"),
                  absl::StrCat(format.dump(), " is not one of ", absl::StrJoin(kFormats, ", ")));
    }
    if (absl::Status s =
            Only(schema, pointer, " for type string", {"type", "minLength", "maxLength"});
        !s.ok()) {
      return s;
    }
    return CheckCounts(schema, pointer, "minLength", "maxLength");
  }

  // The constraint compiler's own ranges are not exact, so a range becomes the list of its values.
  static absl::Status VisitInteger(Json* schema, const std::string& pointer) {
    const Names bounds = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"};
    if (absl::Status s =
            Only(*schema, pointer, " for type integer",
                 {"type", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"});
        !s.ok()) {
      return s;
    }
    int64_t low = -kMaxInteger;
    int64_t high = kMaxInteger;
    bool bounded = false;
    for (const absl::string_view bound : bounds) {
      const auto it = schema->find(std::string(bound));
      if (it == schema->end()) continue;
      if (!it->is_number_integer() || it->get<int64_t>() >= kMaxInteger ||
          it->get<int64_t>() <= -kMaxInteger) {
        return Fail(Child(pointer, bound),
                    absl::StrCat(it->dump(), " is not an integer within 2^53"));
      }
      const int64_t value = it->get<int64_t>();
      bounded = true;
      if (bound == "minimum") low = std::max(low, value);
      if (bound == "exclusiveMinimum") low = std::max(low, value + 1);
      if (bound == "maximum") high = std::min(high, value);
      if (bound == "exclusiveMaximum") high = std::min(high, value - 1);
    }
    if (!bounded) return absl::OkStatus();
    if (low > high) return Fail(pointer, absl::StrCat("no integer is in [", low, ", ", high, "]"));
    if (high - low >= kMaxIntegers) {
      return Fail(pointer, absl::StrCat("a range of integers is supported with minimum and maximum "
                                        "and up to ",
                                        kMaxIntegers, " values"));
    }
    Json values = Json::array();
    for (int64_t value = low; value <= high; ++value) values.push_back(value);
    *schema = Json::object();
    (*schema)["enum"] = std::move(values);
    return absl::OkStatus();
  }

  // A $ref that leads back to itself before anything is written has no grammar.
  absl::Status CheckCycles() const {
    std::vector<std::string> names = {"#"};
    for (const char* defs : {"$defs", "definitions"}) {
      if (!root_.contains(defs)) continue;
      for (const auto& item : root_[defs].items()) {
        names.push_back(absl::StrCat("#/", defs, "/", item.key()));
      }
    }
    for (const std::string& name : names) {
      std::set<std::string> met;
      if (Reaches(Resolve(name), name, &met)) {
        return Fail("", absl::StrCat("\"$ref\": \"", name, "\" leads back to itself"));
      }
    }
    return absl::OkStatus();
  }

  const Json& Resolve(const std::string& ref) const {
    if (ref == "#") return root_;
    const std::vector<std::string> parts = absl::StrSplit(ref, '/');
    return root_[parts[1]][parts[2]];
  }

  bool Reaches(const Json& schema, const std::string& target, std::set<std::string>* met) const {
    if (!schema.is_object()) return false;
    if (schema.contains("$ref")) {
      const std::string ref = schema["$ref"].get<std::string>();
      if (ref == target) return true;
      return met->insert(ref).second && Reaches(Resolve(ref), target, met);
    }
    for (const char* key : {"anyOf", "oneOf", "allOf"}) {
      if (!schema.contains(key)) continue;
      for (const Json& branch : schema[key]) {
        if (Reaches(branch, target, met)) return true;
      }
    }
    return false;
  }

  Json root_;
};

// nlohmann's parser keeps the last of equal keys in silence, and is told of depth by its callback.
absl::StatusOr<Json> Parse(absl::string_view text) {
  bool too_deep = false;
  const auto watch = [&too_deep](int depth, Json::parse_event_t, Json&) {
    too_deep = too_deep || depth > 4 * kMaxDepth;
    return true;
  };
  try {
    Json json = Json::parse(text.begin(), text.end(), watch);
    if (too_deep) return absl::InvalidArgumentError("json_schema: nested too deep");
    return json;
  } catch (const Json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat("json_schema: ", error.what()));
  }
}

}  // namespace

absl::StatusOr<std::string> NormaliseJsonSchema(absl::string_view schema) {
  absl::StatusOr<Json> root = Parse(schema);
  if (!root.ok()) return root.status();
  try {
    return Normaliser(*std::move(root)).Run();
  } catch (const Json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat("json_schema: ", error.what()));
  }
}

}  // namespace osdn
