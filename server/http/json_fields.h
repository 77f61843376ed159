// JSON bodies, read under limits and field by field, so that errors name what is wrong.
#ifndef OSDN_SERVER_HTTP_JSON_FIELDS_H_
#define OSDN_SERVER_HTTP_JSON_FIELDS_H_

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/sampling_params.h"

namespace osdn {

// Ordered: a JSON schema's properties are written in the order in which they stand.
using Json = nlohmann::ordered_json;

inline constexpr int kMaxJsonDepth = 64;
inline constexpr size_t kMaxJsonMembers = 2048;  // of one object

// `text` as an object. INVALID_ARGUMENT telling place and reason: not JSON, not UTF-8, no object,
// too deep, an object of too many members.
absl::StatusOr<Json> ParseJsonObject(absl::string_view text);

// The text of a value, for messages and JSON schemas. Never fails.
std::string JsonText(const Json& value);

// Reads the members of one object. A member that is null is as good as missing. What is wrong goes
// to `violations`, and reads as missing.
class JsonFields {
 public:
  // `prefix` stands before the names in violations, e.g. "messages[2].".
  JsonFields(const Json& object, std::string prefix, std::vector<FieldViolation>* violations)
      : object_(object), prefix_(std::move(prefix)), violations_(violations) {}

  // The member, or null; it counts as known.
  const Json* Find(absl::string_view name);
  bool Flag(absl::string_view name);
  std::optional<double> Number(absl::string_view name);
  std::optional<uint64_t> Whole(absl::string_view name,
                                uint64_t most = std::numeric_limits<uint32_t>::max());
  std::optional<std::string> Text(absl::string_view name);
  const Json* Object(absl::string_view name);
  const Json* Array(absl::string_view name);

  // Members that say nothing to this server.
  void Ignore(std::initializer_list<absl::string_view> names);
  // A member that this server cannot heed: unless it is missing, null, false or empty, a violation.
  void Refuse(absl::string_view name, absl::string_view why);
  // A violation for each member that nothing above has named.
  void RefuseOthers();

  void Add(absl::string_view name, absl::string_view description);
  std::string Name(absl::string_view name) const;

 private:
  const Json& object_;
  const std::string prefix_;
  std::vector<FieldViolation>* const violations_;
  std::vector<std::string> known_;
};

}  // namespace osdn

#endif  // OSDN_SERVER_HTTP_JSON_FIELDS_H_
