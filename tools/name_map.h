// From the tensor names of other checkpoints to fla's: rules that rename, turn, cut and join.
// docs/converting.md describes the file.
#ifndef OSDN_TOOLS_NAME_MAP_H_
#define OSDN_TOOLS_NAME_MAP_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "tools/source_tensor.h"
#include "tools/weights_key.h"

namespace re2 {
class RE2;
}  // namespace re2

namespace osdn::tools {

// One line of the mapping table.
struct MappedTensor {
  std::string source;     // its name in the checkpoint
  std::string operation;  // "", "transposed", "part 2 of 3", "ignored", ...
  std::string target;     // empty when it is ignored
  std::string dtype;
  std::vector<int64_t> shape;  // of the target
};

struct MappedWeights {
  std::map<std::string, SourceTensor> tensors;  // by target
  std::vector<MappedTensor> table;              // in the source's order
  std::vector<std::string> notices;             // rules that fitted nothing
};

class NameMap {
 public:
  // The map that leaves every name as it is.
  NameMap() = default;

  // A built-in map by its name, else a file. INVALID_ARGUMENT lists everything that is wrong in it
  // by its key; NOT_FOUND names the built-in maps too.
  static absl::StatusOr<NameMap> Load(const std::string& name_or_path);
  static absl::StatusOr<NameMap> Parse(const std::string& yaml, const std::string& name);
  static std::vector<std::string> BuiltInNames();

  // Names that no rule fits stay. INVALID_ARGUMENT lists everything that cannot be done: two
  // tensors of one name, parts that do not fit together, a shape that cannot be cut.
  absl::StatusOr<MappedWeights> Apply(const SelectedWeights& weights) const;

 private:
  struct Rule {
    std::string pattern;
    std::shared_ptr<const re2::RE2> match;  // of the whole name
    bool ignore = false;
    bool transpose = false;
    int64_t unsqueeze = -1;           // where a dimension of size 1 comes in; -1: none
    int64_t squeeze = -1;             // which one goes
    std::vector<std::string> target;  // one, or those of a split
    std::vector<int64_t> sizes;       // of a split; empty: equal ones
    int64_t dim = 0;                  // of a split or concat
    std::string part;                 // of a concat: order among those of one target; empty: none
  };
  class Application;
  class Reader;

  std::string name_;
  std::vector<Rule> rules_;
};

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_NAME_MAP_H_
