#include "engine/json_schema_grammar.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "engine/json_decimal.h"
#include "engine/json_text.h"
#include "engine/regex_grammar.h"

namespace osdn {
namespace {

using Json = nlohmann::ordered_json;  // properties come in the schema's order
using Node = GrammarBuilder::Node;

constexpr int kMaxDepth = 32;
constexpr uint64_t kMaxCount = 10'000;  // items and characters
constexpr size_t kMaxErrors = 16;

using Names = std::vector<std::string>;
bool IsOneOf(const std::string& name, const Names& names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

const std::initializer_list<const char*> kAnnotations = {
    "title",     "description", "default", "examples", "deprecated", "readOnly",
    "writeOnly", "$comment",    "$schema", "$id",      "$defs",      "definitions"};

// What there is to say of each type.
const std::map<std::string, Names>& Keywords() {
  static const auto* const kKeywords = new std::map<std::string, Names>{
      {"string", {"minLength", "maxLength", "pattern", "format"}},
      {"integer", {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}},
      {"number", {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}},
      {"boolean", {}},
      {"null", {}},
      {"array", {"items", "prefixItems", "minItems", "maxItems"}},
      {"object", {"properties", "required", "additionalProperties"}}};
  return *kKeywords;
}

// Texts of formats, as expressions. Days exist in their month, 29 February in leap years only.
const std::map<std::string, std::string>& Formats() {
  static const auto* const kFormats = [] {
    const std::string leap_year =
        "([1-9]\\d(0[48]|[2468][048]|[13579][26])|([2468][048]|[13579][26])00)";
    const std::string date =
        "([1-9]\\d{3}-((0[13578]|1[02])-(0[1-9]|[12]\\d|3[01])|(0[469]|11)-(0[1-9]|[12]\\d|30)|"
        "02-(0[1-9]|1\\d|2[0-8]))|" +
        leap_year + "-02-29)";
    const std::string time =
        "([01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(\\.\\d{1,6})?(Z|[+-]([01]\\d|2[0-3]):[0-5]\\d)";
    const std::string byte = "(25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)";
    return new std::map<std::string, std::string>{
        {"date", date},
        {"time", time},
        {"date-time", date + "T" + time},
        {"uuid", "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"},
        {"ipv4", byte + "(\\." + byte + "){3}"}};
  }();
  return *kFormats;
}

bool HasType(const Json& value, const std::string& type) {
  if (type == "string") return value.is_string();
  if (type == "integer") return value.is_number_integer();
  if (type == "number") return value.is_number();
  if (type == "boolean") return value.is_boolean();
  if (type == "null") return value.is_null();
  return type == "array" ? value.is_array() : value.is_object();
}

std::string Child(const std::string& pointer, const std::string& key) {
  return absl::StrCat(pointer, "/", absl::StrReplaceAll(key, {{"~", "~0"}, {"/", "~1"}}));
}

// Collects what is wrong, all of it, and goes on with no text where something is.
class SchemaReader {
 public:
  SchemaReader(const Json& root, GrammarBuilder* builder)
      : root_(root), builder_(*builder), text_(builder) {}

  absl::Status Read() {
    for (const char* defs : {"$defs", "definitions"}) {
      if (!root_.is_object() || !root_.contains(defs)) continue;
      const Json& schemas = root_.at(defs);
      if (!schemas.is_object()) {
        Fail(absl::StrCat("/", defs), "must be an object");
        continue;
      }
      for (const auto& item : schemas.items()) {
        definitions_[absl::StrCat("#/", defs, "/", item.key())] = builder_.Declare();
      }
    }
    builder_.Define(Grammar::kRoot, Schema(root_, "", 0));
    for (const char* defs : {"$defs", "definitions"}) {
      if (!root_.is_object() || !root_.contains(defs) || !root_.at(defs).is_object()) continue;
      for (const auto& item : root_.at(defs).items()) {
        builder_.Define(definitions_.at(absl::StrCat("#/", defs, "/", item.key())),
                        Schema(item.value(), Child(absl::StrCat("/", defs), item.key()), 1));
      }
    }
    if (errors_.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrJoin(errors_, "; "));
  }

 private:
  Node Fail(const std::string& pointer, absl::string_view problem) {
    if (errors_.size() < kMaxErrors) {
      errors_.push_back(absl::StrCat(pointer.empty() ? "/" : pointer, ": ", problem));
    }
    return builder_.OneOf({});
  }

  // Every keyword of `schema` must be an annotation or one of `names`.
  void Only(const Json& schema, const std::string& pointer, absl::string_view where,
            const Names& names) {
    for (const auto& item : schema.items()) {
      const std::string& key = item.key();
      const bool annotation =
          std::find(kAnnotations.begin(), kAnnotations.end(), key) != kAnnotations.end();
      if (!pointer.empty() && (key == "$id" || key == "$defs" || key == "definitions")) {
        Fail(Child(pointer, key),
             absl::StrCat("keyword \"", key, "\" is supported at the top only"));
      } else if (!annotation && !IsOneOf(key, names)) {
        Fail(Child(pointer, key), absl::StrCat("keyword \"", key, "\" is not supported", where));
      }
    }
  }

  // NOLINTNEXTLINE(misc-no-recursion): kMaxDepth deep at most
  Node Schema(const Json& schema, const std::string& pointer, int depth) {
    if (depth > kMaxDepth) return Fail(pointer, absl::StrCat("nested deeper than ", kMaxDepth));
    if (schema.is_boolean()) {
      return schema.get<bool>() ? text_.AnyValue() : Fail(pointer, "false accepts nothing");
    }
    if (!schema.is_object()) return Fail(pointer, "a schema must be an object");
    if (schema.contains("$ref")) return Reference(schema, pointer);
    if (schema.contains("const") || schema.contains("enum")) return Values(schema, pointer);
    for (const char* key : {"anyOf", "oneOf", "allOf"}) {
      if (schema.contains(key)) return Branches(schema, pointer, key, depth);
    }
    return Typed(schema, pointer, depth);
  }

  Node Reference(const Json& schema, const std::string& pointer) {
    Only(schema, pointer, " beside $ref", {"$ref"});
    const std::string place = Child(pointer, "$ref");
    if (!schema.at("$ref").is_string()) return Fail(place, "must be a string");
    const auto target = schema.at("$ref").get<std::string>();
    if (target == "#") return builder_.Call(Grammar::kRoot);
    const auto known = definitions_.find(absl::StrReplaceAll(target, {{"~1", "/"}, {"~0", "~"}}));
    if (known != definitions_.end()) return builder_.Call(known->second);
    return Fail(place, absl::StrCat("\"", target,
                                    "\" does not exist: \"#\", \"#/$defs/NAME\" and "
                                    "\"#/definitions/NAME\" are supported"));
  }

  Node Values(const Json& schema, const std::string& pointer) {
    const bool is_enum = schema.contains("enum");
    const char* key = is_enum ? "enum" : "const";
    Only(schema, pointer, absl::StrCat(" beside ", key), {key, "type"});
    const Json values = is_enum ? schema.at(key) : Json::array({schema.at(key)});
    if (!values.is_array() || values.empty()) {
      return Fail(Child(pointer, key), "must be a list of at least one value");
    }
    std::vector<Node> choices;
    const Names types = schema.contains("type") ? Types(schema, pointer) : Names();
    for (const Json& value : values) {
      const auto fits = [&value](const std::string& type) { return HasType(value, type); };
      if (!types.empty() && std::none_of(types.begin(), types.end(), fits)) {
        Fail(Child(pointer, key), absl::StrCat(value.dump(), " is not of the type"));
      }
      choices.push_back(builder_.Literal(value.dump()));
    }
    return builder_.Choice(std::move(choices));
  }

  // NOLINTNEXTLINE(misc-no-recursion): see Schema
  Node Branches(const Json& schema, const std::string& pointer, const std::string& key, int depth) {
    Only(schema, pointer, absl::StrCat(" beside ", key), {key});
    const Json& branches = schema.at(key);
    const std::string place = Child(pointer, key);
    if (!branches.is_array() || branches.empty()) {
      return Fail(place, "must be a list of at least one schema");
    }
    if (key == "allOf" && branches.size() > 1) {
      Fail(place, "keyword \"allOf\" is supported with one schema only");
    }
    if (key == "oneOf" && !Disjoint(branches)) {
      Fail(place,
           "keyword \"oneOf\" is supported where the schemas have different types or values, or "
           "objects a required property with different const: use anyOf");
    }
    std::vector<Node> choices;
    for (size_t i = 0; i < branches.size(); ++i) {
      choices.push_back(Schema(branches[i], absl::StrCat(place, "/", i), depth + 1));
    }
    return builder_.Choice(std::move(choices));
  }

  // No value can match two of the branches.
  static bool Disjoint(const Json& branches) {
    if (branches.size() == 1) return true;
    std::set<std::string> types;
    std::set<std::string> values;
    bool distinct_types = true;
    bool distinct_values = true;
    for (const Json& branch : branches) {
      if (!branch.is_object()) return false;
      const Json listed = branch.contains("const") ? Json::array({branch.at("const")})
                                                   : branch.value("enum", Json::array());
      distinct_values = distinct_values && listed.is_array() && !listed.empty();
      for (const Json& value : listed) {
        // 1 and 1.0 are equal, and so may be what holds them.
        const bool plain = value.is_primitive() && !value.is_number_float();
        distinct_values = distinct_values && plain && values.insert(value.dump()).second;
      }
      const Json type = branch.value("type", Json());
      if (!type.is_string()) {
        distinct_types = false;
        continue;
      }
      const std::string name = type == "integer" ? "number" : type.get<std::string>();
      distinct_types = types.insert(name).second && distinct_types;
    }
    if (distinct_values) return true;
    return distinct_types || Tagged(branches);
  }

  // All are objects and require a property that has a text of its own as const in each.
  static bool Tagged(const Json& branches) {
    const Json names = branches[0].value("required", Json::array());
    if (!names.is_array()) return false;
    for (const Json& name : names) {
      if (!name.is_string()) return false;
      std::set<std::string> tags;
      for (const Json& branch : branches) {
        const Json required = branch.value("required", Json::array());
        const Json properties = branch.value("properties", Json::object());
        if (branch.value("type", Json()) != "object" || !properties.is_object() ||
            std::find(required.begin(), required.end(), name) == required.end()) {
          break;
        }
        const Json property = properties.value(name.get<std::string>(), Json());
        if (!property.is_object() || !property.value("const", Json()).is_string()) break;
        if (!tags.insert(property.at("const").get<std::string>()).second) break;
      }
      if (tags.size() == branches.size()) return true;
    }
    return false;
  }

  Names Types(const Json& schema, const std::string& pointer) {
    const Json& type = schema.at("type");
    Names names;
    for (const Json& one : type.is_array() ? type : Json::array({type})) {
      if (one.is_string() && Keywords().count(one.get<std::string>()) > 0) {
        names.push_back(one.get<std::string>());
        continue;
      }
      Names known;
      for (const auto& entry : Keywords()) known.push_back(entry.first);
      Fail(Child(pointer, "type"),
           absl::StrCat(one.dump(), " is not one of ", absl::StrJoin(known, ", ")));
    }
    if (type.is_array() && type.empty()) Fail(Child(pointer, "type"), "no types");
    return names;
  }

  // NOLINTNEXTLINE(misc-no-recursion): see Schema
  Node Typed(const Json& schema, const std::string& pointer, int depth) {
    if (!schema.contains("type")) {
      for (const auto& item : schema.items()) {
        for (const auto& [type, keywords] : Keywords()) {
          if (!IsOneOf(item.key(), keywords)) continue;
          return Fail(Child(pointer, item.key()),
                      absl::StrCat("\"type\" is missing beside it: \"", type, "\""));
        }
      }
      Only(schema, pointer, "", {});
      return text_.AnyValue();
    }
    const Names types = Types(schema, pointer);
    Names keywords = {"type"};
    for (const std::string& type : types) {
      const Names& own = Keywords().at(type);
      keywords.insert(keywords.end(), own.begin(), own.end());
    }
    Only(schema, pointer, absl::StrCat(" for type ", absl::StrJoin(types, ", ")), keywords);
    std::vector<Node> choices;
    for (const std::string& type : types) choices.push_back(OfType(schema, type, pointer, depth));
    return builder_.Choice(std::move(choices));
  }

  // NOLINTNEXTLINE(misc-no-recursion): see Schema
  Node OfType(const Json& schema, const std::string& type, const std::string& pointer, int depth) {
    if (type == "object") return Object(schema, pointer, depth);
    if (type == "array") return Array(schema, pointer, depth);
    if (type == "string") return String(schema, pointer);
    if (type == "integer") return Integer(schema, pointer);
    if (type == "number") return Number(schema, pointer);
    return type == "boolean" ? text_.Boolean() : text_.Null();
  }

  // NOLINTNEXTLINE(misc-no-recursion): see Schema
  Node Object(const Json& schema, const std::string& pointer, int depth) {
    const Json properties = schema.value("properties", Json::object());
    const Json required = schema.value("required", Json::array());
    if (!properties.is_object()) return Fail(Child(pointer, "properties"), "must be an object");
    if (!required.is_array()) return Fail(Child(pointer, "required"), "must be a list");
    for (const Json& name : required) {
      if (name.is_string() && properties.contains(name.get<std::string>())) continue;
      Fail(Child(pointer, "required"), absl::StrCat(name.dump(), " is not one of the properties"));
    }
    const Json others = schema.value("additionalProperties", Json(true));
    const std::string others_place = Child(pointer, "additionalProperties");
    if (properties.empty()) {
      // A map: keys as they come. The same key twice is the last one to every parser.
      if (others == Json(false)) {
        return builder_.Sequence({builder_.Literal("{"), text_.Space(), builder_.Literal("}")});
      }
      return text_.Object(text_.AnyString(), Schema(others, others_place, depth + 1));
    }
    if (!others.is_boolean()) {
      Fail(others_place,
           "keyword \"additionalProperties\" beside properties is supported as true or false only");
    }
    std::vector<Member> members;
    for (const auto& item : properties.items()) {
      const Node value =
          Schema(item.value(), Child(Child(pointer, "properties"), item.key()), depth + 1);
      const bool needed =
          std::find(required.begin(), required.end(), Json(item.key())) != required.end();
      members.push_back(
          {builder_.Sequence({builder_.Literal(Json(item.key()).dump()), text_.Colon(), value}),
           needed});
    }
    return Members(members);
  }

  struct Member {
    Node text;
    bool required = false;
  };
  // From the last to the first: what may follow where nothing, or something, was written before.
  Node Members(const std::vector<Member>& members) {
    Node first = builder_.Empty();
    Node next = builder_.Empty();
    for (size_t i = members.size(); i-- > 0;) {
      const Node here = builder_.Sequence({members[i].text, next});
      const Node behind = builder_.Sequence({text_.Comma(), here});
      if (members[i].required) {
        first = here;
        next = AsRule(behind);
      } else {
        first = AsRule(builder_.Choice({here, first}));
        next = AsRule(builder_.Choice({behind, next}));
      }
    }
    return text_.Enclosed('{', first, '}');
  }
  Node AsRule(Node node) {
    const uint32_t rule = builder_.Declare();
    builder_.Define(rule, node);
    return builder_.Call(rule);
  }

  std::optional<uint64_t> Count(const Json& schema, const std::string& pointer, const char* key) {
    if (!schema.contains(key)) return std::nullopt;
    const Json& value = schema.at(key);
    if (value.is_number_unsigned() && value.get<uint64_t>() <= kMaxCount) {
      return value.get<uint64_t>();
    }
    Fail(Child(pointer, key),
         absl::StrCat(value.dump(), " is not an integer in [0, ", kMaxCount, "]"));
    return std::nullopt;
  }
  bool InOrder(uint64_t min, std::optional<uint64_t> max, const std::string& place) {
    if (!max.has_value() || min <= *max) return true;
    Fail(place, absl::StrCat(*max, " is less than the minimum, ", min));
    return false;
  }

  // NOLINTNEXTLINE(misc-no-recursion): see Schema
  Node Array(const Json& schema, const std::string& pointer, int depth) {
    const uint64_t min = Count(schema, pointer, "minItems").value_or(0);
    const std::optional<uint64_t> max = Count(schema, pointer, "maxItems");
    if (!InOrder(min, max, Child(pointer, "maxItems"))) return builder_.OneOf({});
    const std::string items_place = Child(pointer, "items");
    const Json items = schema.value("items", Json(true));
    if (!schema.contains("prefixItems")) {
      if (items == Json(false) && min == 0) return text_.Array(builder_.Empty(), 0, 0);
      return text_.Array(Schema(items, items_place, depth + 1), min, max);
    }
    // All of them and nothing else: what people mean by a tuple.
    const Json& prefix = schema.at("prefixItems");
    const std::string place = Child(pointer, "prefixItems");
    if (!prefix.is_array() || prefix.empty()) {
      return Fail(place, "must be a list of at least one schema");
    }
    if (!items.is_boolean()) {
      Fail(items_place, "keyword \"items\" beside prefixItems is supported as false only");
    }
    if (min > prefix.size() || (max.has_value() && *max < prefix.size())) {
      Fail(place, "its length is outside minItems and maxItems");
    }
    std::vector<Node> parts;
    for (size_t i = 0; i < prefix.size(); ++i) {
      if (i > 0) parts.push_back(text_.Comma());
      parts.push_back(Schema(prefix[i], absl::StrCat(place, "/", i), depth + 1));
    }
    return text_.Enclosed('[', builder_.Sequence(std::move(parts)), ']');
  }

  Node String(const Json& schema, const std::string& pointer) {
    const uint64_t min = Count(schema, pointer, "minLength").value_or(0);
    const std::optional<uint64_t> max = Count(schema, pointer, "maxLength");
    for (const char* key : {"pattern", "format"}) {
      if (!schema.contains(key)) continue;
      for (const char* other : {"minLength", "maxLength", "format"}) {
        if (absl::string_view(key) == other || !schema.contains(other)) continue;
        Fail(Child(pointer, other),
             absl::StrCat("keyword \"", other, "\" is not supported beside ", key));
      }
      return Text(schema.at(key), key, Child(pointer, key));
    }
    if (!InOrder(min, max, Child(pointer, "maxLength"))) return builder_.OneOf({});
    return text_.String(min, max);
  }

  Node Text(const Json& value, absl::string_view key, const std::string& place) {
    if (!value.is_string()) return Fail(place, "must be a string");
    auto regex = value.get<std::string>();
    RegexUse use;
    use.search = key == "pattern";
    use.spell = [this](std::vector<CharacterRange> ranges) {
      return text_.Characters(std::move(ranges));
    };
    if (key == "format") {
      const auto known = Formats().find(regex);
      if (known == Formats().end()) {
        Names names;
        for (const auto& entry : Formats()) names.push_back(entry.first);
        return Fail(place,
                    absl::StrCat(value.dump(), " is not one of ", absl::StrJoin(names, ", ")));
      }
      regex = known->second;
    }
    const absl::StatusOr<Node> content = AddRegex(regex, use, &builder_);
    if (!content.ok()) return Fail(place, content.status().message());
    return text_.Quoted(*content);
  }

  Node Integer(const Json& schema, const std::string& pointer) {
    int64_t low = -kMaxIntegerValue;
    int64_t high = kMaxIntegerValue;
    for (const std::string& key : Keywords().at("integer")) {
      if (!schema.contains(key)) continue;
      const Json& value = schema.at(key);
      if (!value.is_number()) {
        Fail(Child(pointer, key), "must be a number");
        continue;
      }
      const bool exclusive = absl::StartsWith(key, "exclusive");
      if (key == "minimum" || key == "exclusiveMinimum") {
        low = std::max(low, Rounded(value, /*up=*/!exclusive) + (exclusive ? 1 : 0));
      } else {
        high = std::min(high, Rounded(value, /*up=*/exclusive) - (exclusive ? 1 : 0));
      }
    }
    if (low <= high) return text_.Integer(low, high);
    return Fail(pointer, absl::StrCat("no integer of at most ", kMaxIntegerDigits,
                                      " digits is within the bounds"));
  }

  Node Number(const Json& schema, const std::string& pointer) {
    std::optional<DecimalBound> low;
    std::optional<DecimalBound> high;
    for (const std::string& key : Keywords().at("number")) {
      if (!schema.contains(key)) continue;
      const Json& value = schema.at(key);
      const std::optional<Decimal> decimal =
          value.is_number() ? ParseDecimal(value.dump()) : std::nullopt;
      const bool is_low = key == "minimum" || key == "exclusiveMinimum";
      std::optional<DecimalBound>& bound = is_low ? low : high;
      if (!decimal.has_value() || bound.has_value()) {
        return Fail(Child(pointer, key), bound.has_value()
                                             ? "one bound to a side is supported"
                                             : absl::StrCat("must be a number of at most ",
                                                            kMaxDecimalDigits, " digits"));
      }
      bound = DecimalBound{*decimal, /*exclusive=*/absl::StartsWith(key, "exclusive")};
    }
    if (!low.has_value() && !high.has_value()) return text_.Number();
    const std::optional<Node> range = DecimalRange(low, high, &builder_);
    if (range.has_value()) return *range;
    return Fail(pointer, absl::StrCat("the bounds have more than ", kMaxDecimalDigits,
                                      " digits in front of the point and behind it"));
  }

  // To an integer, and to not much more than kMaxIntegerValue.
  static int64_t Rounded(const Json& value, bool up) {
    constexpr int64_t kBeyond = kMaxIntegerValue + 1;
    if (value.is_number_unsigned()) {
      return static_cast<int64_t>(std::min<uint64_t>(value.get<uint64_t>(), kBeyond));
    }
    if (value.is_number_integer()) {
      return std::clamp<int64_t>(value.get<int64_t>(), -kBeyond, kBeyond);
    }
    const double number = up ? std::ceil(value.get<double>()) : std::floor(value.get<double>());
    constexpr auto kEdge = static_cast<double>(kBeyond);
    return static_cast<int64_t>(std::clamp(number, -kEdge, kEdge));
  }

  const Json& root_;
  GrammarBuilder& builder_;
  JsonText text_;
  std::map<std::string, uint32_t> definitions_;
  std::vector<std::string> errors_;
};

// nlohmann's parser keeps the last of equal keys in silence, and is told of depth by its callback.
absl::StatusOr<Json> Parse(absl::string_view text) {
  bool too_deep = false;
  const auto watch = [&too_deep](int depth, Json::parse_event_t, Json&) {
    too_deep = too_deep || depth > 4 * kMaxDepth;
    return !too_deep;  // what is deeper is left out
  };
  Json json = Json::parse(text.begin(), text.end(), watch);
  if (too_deep) return absl::InvalidArgumentError("nested too deep");
  return json;
}

}  // namespace

absl::Status AddJsonSchema(absl::string_view schema, GrammarBuilder* builder) {
  try {
    const absl::StatusOr<Json> root = Parse(schema);
    if (!root.ok()) return root.status();
    return SchemaReader(*root, builder).Read();
  } catch (const Json::exception& error) {
    return absl::InvalidArgumentError(error.what());
  }
}

}  // namespace osdn
