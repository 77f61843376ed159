// A pickle as data. The reader knows containers, numbers and strings; calls and objects stay
// descriptions of themselves, and only of names that the caller allows. Nothing is ever executed.
#ifndef OSDN_TOOLS_PICKLE_H_
#define OSDN_TOOLS_PICKLE_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace osdn::tools {

struct PickleValue {
  enum class Kind : uint8_t {
    kNone,
    kBool,        // integer: 0 or 1
    kInt,         // integer
    kHugeInt,     // does not fit 64 bits; its value is not kept
    kFloat,       // real
    kString,      // text: UTF-8, not checked
    kBytes,       // text
    kTuple,       // items
    kList,        // items
    kSet,         // items
    kDict,        // items: key, value, key, value, ...; OrderedDict too
    kGlobal,      // module and text: a name that the caller allowed
    kObject,      // callable (a kGlobal), items: its arguments, state: of BUILD or null
    kPersistent,  // items[0]: the persistent id
  };

  Kind kind = Kind::kNone;
  int64_t integer = 0;
  double real = 0;
  std::string_view module;
  std::string_view text;
  std::vector<const PickleValue*> items;
  const PickleValue* callable = nullptr;
  const PickleValue* state = nullptr;

  bool Is(Kind wanted) const { return kind == wanted; }
  bool IsGlobal(std::string_view wanted_module, std::string_view wanted_name) const {
    return kind == Kind::kGlobal && module == wanted_module && text == wanted_name;
  }
  // The value under a string key of a kDict; null when there is none.
  const PickleValue* Get(std::string_view key) const;
};

// Owns the values. They may refer to each other in circles, so whoever walks them bounds the depth.
class Pickle {
 public:
  // Whether a global may appear in the pickle.
  using Allowed = std::function<bool(std::string_view module, std::string_view name)>;

  // Strings point into `bytes`, which must outlive the Pickle. `name` is for messages.
  // INVALID_ARGUMENT for an opcode or a global that is refused, by name and position; DATA_LOSS
  // for what is no pickle; RESOURCE_EXHAUSTED above 64 MiB or 2^24 values.
  static absl::StatusOr<Pickle> Parse(absl::Span<const std::byte> bytes, const std::string& name,
                                      const Allowed& allowed);

  const PickleValue& root() const { return *root_; }

 private:
  friend class PickleMachine;
  std::deque<PickleValue> values_;
  const PickleValue* root_ = nullptr;
};

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_PICKLE_H_
