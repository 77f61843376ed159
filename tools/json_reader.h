// Strict reading of one JSON object: every key is asked for by name and type, every problem is
// kept, and what nobody asked for is a problem too.
#ifndef OSDN_TOOLS_JSON_READER_H_
#define OSDN_TOOLS_JSON_READER_H_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace osdn::tools {

// `file` is for the error text: not JSON, or not an object.
absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text, const std::string& file);

// The names a string key may have and what each means.
template <typename T>
using NameTable = std::vector<std::pair<std::string, T>>;

// `object` must outlive the reader. `prefix` is put in front of keys in messages ("osdn.").
// Absent keys give the default. A key with a wrong type or value gives the default and a problem,
// so that one pass finds everything.
class JsonReader {
 public:
  JsonReader(const nlohmann::json& object, std::string prefix);

  bool Has(const std::string& key);
  int64_t Int(const std::string& key, int64_t default_value, int64_t min, int64_t max);
  double Number(const std::string& key, double default_value, double min, double max);
  bool Bool(const std::string& key, bool default_value);
  // null counts as absent.
  std::optional<int64_t> OptionalInt(const std::string& key, int64_t min, int64_t max);
  std::optional<double> OptionalNumber(const std::string& key, double min, double max);
  // An integer, a list of integers, or null (empty).
  std::vector<int64_t> IntOrList(const std::string& key, int64_t min, int64_t max);

  template <typename T>
  T Name(const std::string& key, const NameTable<T>& names, T default_value) {
    const std::optional<std::string> value = String(key);
    if (!value.has_value()) return default_value;
    std::vector<std::string> known;
    for (const auto& [name, meaning] : names) {
      if (name == *value) return meaning;
      known.push_back(name);
    }
    AddUnknownName(key, *value, known);
    return default_value;
  }

  // A key that, where present, must have one of `allowed`; `reason` says why.
  void Only(const std::string& key, const std::vector<nlohmann::json>& allowed,
            const std::string& reason);
  void Ignore(const std::string& key) { seen_.insert(key); }
  // Makes a problem of every key that was never asked for.
  void RefuseUnknown();

  void AddProblem(std::string problem) { problems_.push_back(std::move(problem)); }
  void AddProblems(const std::vector<std::string>& problems);
  const std::vector<std::string>& problems() const { return problems_; }
  // OK, or INVALID_ARGUMENT with all problems, one a line.
  absl::Status ToStatus(const std::string& file) const;

 private:
  const nlohmann::json* Find(const std::string& key);
  std::optional<std::string> String(const std::string& key);
  std::optional<int64_t> CheckInt(const std::string& key, const nlohmann::json& value, int64_t min,
                                  int64_t max);
  std::optional<double> CheckNumber(const std::string& key, const nlohmann::json& value, double min,
                                    double max);
  void AddUnknownName(const std::string& key, const std::string& value,
                      const std::vector<std::string>& known);

  const nlohmann::json& object_;
  std::string prefix_;
  std::set<std::string> seen_;
  std::vector<std::string> problems_;
};

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_JSON_READER_H_
