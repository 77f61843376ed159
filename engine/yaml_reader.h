// Strict reading of YAML maps, for sources only: every problem is collected under its full key
// ("architecture.num_heads"), so that a file's errors are reported all at once. yaml-cpp stays out
// of the public headers.
#ifndef OSDN_ENGINE_YAML_READER_H_
#define OSDN_ENGINE_YAML_READER_H_

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "yaml-cpp/yaml.h"

namespace osdn::internal {

enum class Presence : uint8_t { kRequired, kOptional };

// One map of a document. Readers leave `out` alone when the key is absent or wrong.
class YamlMap {
 public:
  // `path` is the map's full key, empty for the root. `errors` must outlive the reader.
  YamlMap(const YAML::Node& node, std::string path, std::vector<std::string>* errors);

  void Read(const std::string& key, Presence presence, int64_t* out);
  void Read(const std::string& key, Presence presence, double* out);
  void Read(const std::string& key, Presence presence, bool* out);
  void Read(const std::string& key, Presence presence, std::string* out);
  // A name out of a fixed set: `parse` returns false for others; `choices` is for the message.
  void ReadChoice(const std::string& key, Presence presence, const std::string& choices,
                  const std::function<bool(std::string_view)>& parse);
  // The elements of a list (at most `max_size`) with their full keys.
  void ReadList(
      const std::string& key, Presence presence, size_t max_size,
      const std::function<void(const YAML::Node& node, const std::string& path)>& element);
  std::optional<YamlMap> Child(const std::string& key, Presence presence);

  // Keys of the map in name order.
  std::vector<std::string> Keys() const;
  bool Has(const std::string& key) const { return values_.contains(key); }
  // Full key of `key`.
  std::string Path(const std::string& key) const;
  void Error(const std::string& key, const std::string& what);
  // Reports every key that was not read. Call last.
  void RejectUnknownKeys();

 private:
  std::optional<YAML::Node> Take(const std::string& key, Presence presence);
  std::optional<std::string> TakeScalar(const std::string& key, Presence presence,
                                        const std::string& wanted);

  std::string path_;
  std::vector<std::string>* errors_;
  std::map<std::string, YAML::Node> values_;
  std::map<std::string, bool> taken_;
};

// A list element that must be a scalar; reports under `path`.
std::optional<std::string> YamlScalar(const YAML::Node& node, const std::string& path,
                                      std::vector<std::string>* errors);

// Runs `read` on the root of the document in `text`; yaml-cpp's exceptions and the collected errors
// come back as one INVALID_ARGUMENT that starts with `name`.
absl::Status ReadYaml(
    const std::string& name, const std::string& text,
    const std::function<void(const YAML::Node& root, std::vector<std::string>* errors)>& read);

// A small text file (at most 1 MiB): NOT_FOUND and open(2)'s other errors, INVALID_ARGUMENT when
// larger.
absl::StatusOr<std::string> ReadTextFile(const std::string& path);

}  // namespace osdn::internal

#endif  // OSDN_ENGINE_YAML_READER_H_
