#include "tools/pickle.h"

#include <algorithm>
#include <bit>
#include <unordered_map>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace osdn::tools {
namespace {

using Kind = PickleValue::Kind;

constexpr size_t kMaxBytes = size_t{64} << 20;
constexpr size_t kMaxValues = size_t{1} << 24;

// Opcodes of pickle protocols 2 to 5, by the names of Python's pickletools.
enum Opcode : uint8_t {
  kMark = '(',
  kStop = '.',
  kPop = '0',
  kPopMark = '1',
  kDup = '2',
  kBinFloat = 'G',
  kBinInt = 'J',
  kBinInt1 = 'K',
  kBinInt2 = 'M',
  kNone = 'N',
  kBinPersId = 'Q',
  kReduce = 'R',
  kBinString = 'T',
  kShortBinString = 'U',
  kBinUnicode = 'X',
  kAppend = 'a',
  kBuild = 'b',
  kGlobal = 'c',
  kDict = 'd',
  kAppends = 'e',
  kBinGet = 'h',
  kLongBinGet = 'j',
  kList = 'l',
  kBinPut = 'q',
  kLongBinPut = 'r',
  kSetItem = 's',
  kTuple = 't',
  kSetItems = 'u',
  kEmptyDict = '}',
  kEmptyList = ']',
  kEmptyTuple = ')',
  kBinBytes = 'B',
  kShortBinBytes = 'C',
  kProto = 0x80,
  kNewObj = 0x81,
  kTuple1 = 0x85,
  kTuple2 = 0x86,
  kTuple3 = 0x87,
  kNewTrue = 0x88,
  kNewFalse = 0x89,
  kLong1 = 0x8A,
  kLong4 = 0x8B,
  kShortBinUnicode = 0x8C,
  kBinUnicode8 = 0x8D,
  kBinBytes8 = 0x8E,
  kEmptySet = 0x8F,
  kAddItems = 0x90,
  kFrozenSet = 0x91,
  kStackGlobal = 0x93,
  kMemoize = 0x94,
  kFrame = 0x95,
};

// Opcodes that exist and are refused, so that the message can say which.
std::string RefusedOpcode(uint8_t opcode) {
  struct Known {
    uint8_t code;
    const char* name;
  };
  constexpr Known kKnown[] = {
      {'I', "INT"},
      {'L', "LONG"},
      {'F', "FLOAT"},
      {'S', "STRING"},
      {'V', "UNICODE"},
      {'g', "GET"},
      {'p', "PUT"},
      {'P', "PERSID"},
      {'i', "INST"},
      {'o', "OBJ"},
      {0x82, "EXT1"},
      {0x83, "EXT2"},
      {0x84, "EXT4"},
      {0x92, "NEWOBJ_EX"},
      {0x96, "BYTEARRAY8"},
      {0x97, "NEXT_BUFFER"},
      {0x98, "READONLY_BUFFER"},
  };
  for (const Known& known : kKnown) {
    if (known.code == opcode) return known.name;
  }
  return "";
}

}  // namespace

const PickleValue* PickleValue::Get(std::string_view key) const {
  if (kind != Kind::kDict) return nullptr;
  for (size_t i = 0; i + 1 < items.size(); i += 2) {
    if (items[i]->kind == Kind::kString && items[i]->text == key) return items[i + 1];
  }
  return nullptr;
}

class PickleMachine {
 public:
  PickleMachine(absl::Span<const std::byte> bytes, const std::string& name,
                const Pickle::Allowed& allowed, Pickle* pickle)
      : text_(reinterpret_cast<const char*>(bytes.data()), bytes.size()),
        name_(name),
        allowed_(allowed),
        pickle_(pickle) {}

  absl::Status Run() {
    if (text_.size() > kMaxBytes) {
      return absl::ResourceExhaustedError(
          absl::StrCat(name_, ": a pickle of ", text_.size(), " bytes; at most ", kMaxBytes));
    }
    while (!done_ && status_.ok()) {
      at_ = position_;
      Step(Byte());
      if (pickle_->values_.size() > kMaxValues || stack_.size() > kMaxValues) {
        return absl::ResourceExhaustedError(
            absl::StrCat(name_, ": a pickle of more than ", kMaxValues, " values"));
      }
    }
    return status_;
  }

 private:
  using Value = PickleValue;

  void Step(uint8_t opcode) {
    if (!status_.ok()) return;
    if (StepNumber(opcode) || StepText(opcode) || StepContainer(opcode) || StepStack(opcode) ||
        StepObject(opcode)) {
      return;
    }
    const std::string known = RefusedOpcode(opcode);
    if (known.empty()) return Damaged(absl::StrFormat("no opcode 0x%02X exists", opcode));
    Refuse(absl::StrCat("opcode ", known));
  }

  bool StepNumber(uint8_t opcode) {
    switch (opcode) {
      case kNone:
        Push(Kind::kNone);
        return true;
      case kNewTrue:
      case kNewFalse:
        Push(Kind::kBool)->integer = opcode == kNewTrue ? 1 : 0;
        return true;
      case kBinInt:
        Push(Kind::kInt)->integer = static_cast<int32_t>(Unsigned(4));
        return true;
      case kBinInt1:
        Push(Kind::kInt)->integer = static_cast<int64_t>(Unsigned(1));
        return true;
      case kBinInt2:
        Push(Kind::kInt)->integer = static_cast<int64_t>(Unsigned(2));
        return true;
      case kLong1:
        PushLong(Unsigned(1));
        return true;
      case kLong4:
        PushLong(Unsigned(4));
        return true;
      case kBinFloat: {  // big endian, unlike everything else
        uint64_t bits = 0;
        for (const char c : Text(sizeof(bits))) bits = bits << 8 | static_cast<uint8_t>(c);
        Push(Kind::kFloat)->real = std::bit_cast<double>(bits);
        return true;
      }
      default:
        return false;
    }
  }

  bool StepText(uint8_t opcode) {
    switch (opcode) {
      case kShortBinUnicode:
      case kShortBinString:
        PushText(Kind::kString, Unsigned(1));
        return true;
      case kBinUnicode:
      case kBinString:
        PushText(Kind::kString, Unsigned(4));
        return true;
      case kBinUnicode8:
        PushText(Kind::kString, Unsigned(8));
        return true;
      case kShortBinBytes:
        PushText(Kind::kBytes, Unsigned(1));
        return true;
      case kBinBytes:
        PushText(Kind::kBytes, Unsigned(4));
        return true;
      case kBinBytes8:
        PushText(Kind::kBytes, Unsigned(8));
        return true;
      default:
        return false;
    }
  }

  bool StepContainer(uint8_t opcode) {
    switch (opcode) {
      case kEmptyTuple:
        Push(Kind::kTuple);
        return true;
      case kEmptyList:
        Push(Kind::kList);
        return true;
      case kEmptyDict:
        Push(Kind::kDict);
        return true;
      case kEmptySet:
        Push(Kind::kSet);
        return true;
      case kTuple1:
      case kTuple2:
      case kTuple3:
        PushItems(Kind::kTuple, Take(opcode - kTuple1 + 1U));
        return true;
      case kTuple:
        PushItems(Kind::kTuple, TakeToMark());
        return true;
      case kList:
        PushItems(Kind::kList, TakeToMark());
        return true;
      case kFrozenSet:
        PushItems(Kind::kSet, TakeToMark());
        return true;
      case kDict: {
        std::vector<Value*> items = TakeToMark();
        Push(Kind::kDict);
        Extend(Kind::kDict, items);
        return true;
      }
      case kAppend:
        Extend(Kind::kList, Take(1));
        return true;
      case kAppends:
        Extend(Kind::kList, TakeToMark());
        return true;
      case kAddItems:
        Extend(Kind::kSet, TakeToMark());
        return true;
      case kSetItem:
        Extend(Kind::kDict, Take(2));
        return true;
      case kSetItems:
        Extend(Kind::kDict, TakeToMark());
        return true;
      default:
        return false;
    }
  }

  bool StepStack(uint8_t opcode) {
    switch (opcode) {
      case kProto:
        if (const uint64_t version = Unsigned(1); version < 2 || version > 5) {
          Refuse(absl::StrCat("protocol ", version));
        }
        return true;
      case kFrame:  // a hint for readers of streams
        Unsigned(8);
        return true;
      case kMark:
        marks_.push_back(stack_.size());
        if (marks_.size() > kMaxValues) Damaged("too many marks");
        return true;
      case kPop:
        Take(1);
        return true;
      case kPopMark:
        TakeToMark();
        return true;
      case kDup:
        if (Value* top = Top()) stack_.push_back(top);
        return true;
      case kBinPut:
        Remember(Unsigned(1));
        return true;
      case kLongBinPut:
        Remember(Unsigned(4));
        return true;
      case kMemoize:
        Remember(memo_.size());
        return true;
      case kBinGet:
        Recall(Unsigned(1));
        return true;
      case kLongBinGet:
        Recall(Unsigned(4));
        return true;
      case kStop:
        pickle_->root_ = Top();
        done_ = true;
        if (stack_.size() != 1 || !marks_.empty()) Damaged("it ends with values left over");
        return true;
      default:
        return false;
    }
  }

  bool StepObject(uint8_t opcode) {
    switch (opcode) {
      case kGlobal: {
        const std::string_view module = Line();
        PushGlobal(module, Line());
        return true;
      }
      case kStackGlobal: {
        const std::vector<Value*> names = Take(2);
        if (!status_.ok()) return true;
        if (!names[0]->Is(Kind::kString) || !names[1]->Is(Kind::kString)) {
          Damaged("STACK_GLOBAL without two strings");
          return true;
        }
        PushGlobal(names[0]->text, names[1]->text);
        return true;
      }
      case kReduce:
      case kNewObj:
        PushObject(Take(2));
        return true;
      case kBuild:
        Build(Take(1));
        return true;
      case kBinPersId: {
        const std::vector<Value*> id = Take(1);
        PushItems(Kind::kPersistent, id);
        return true;
      }
      default:
        return false;
    }
  }

  // --- Input ---

  std::string_view Text(uint64_t size) {
    if (!status_.ok() || size > text_.size() - position_) {
      Damaged("it ends in the middle");
      return {};
    }
    const std::string_view text = text_.substr(position_, size);
    position_ += size;
    return text;
  }

  uint8_t Byte() {
    const std::string_view text = Text(1);
    return text.empty() ? 0 : static_cast<uint8_t>(text[0]);
  }

  uint64_t Unsigned(size_t bytes) {  // little endian
    uint64_t value = 0;
    const std::string_view text = Text(bytes);
    for (size_t i = 0; i < text.size(); ++i) {
      value |= static_cast<uint64_t>(static_cast<uint8_t>(text[i])) << (8 * i);
    }
    return value;
  }

  std::string_view Line() {
    const size_t end = text_.find('\n', position_);
    if (end == std::string_view::npos) {
      Damaged("it ends in the middle");
      return {};
    }
    const std::string_view line = Text(end - position_);
    ++position_;
    return line;
  }

  // --- Stack ---

  Value* Push(Kind kind) {
    Value& value = pickle_->values_.emplace_back();
    value.kind = kind;
    stack_.push_back(&value);
    return &value;
  }

  void PushText(Kind kind, uint64_t size) { Push(kind)->text = Text(size); }

  void PushItems(Kind kind, const std::vector<Value*>& items) {
    Push(kind)->items.assign(items.begin(), items.end());
  }

  void PushLong(uint64_t size) {  // two's complement, little endian
    const std::string_view text = Text(size);
    Value* value = Push(Kind::kInt);
    if (text.size() > sizeof(int64_t)) {
      value->kind = Kind::kHugeInt;
      return;
    }
    uint64_t bits = !text.empty() && (text.back() & 0x80) != 0 ? ~uint64_t{0} : 0;
    for (size_t i = text.size(); i-- > 0;) bits = bits << 8 | static_cast<uint8_t>(text[i]);
    value->integer = static_cast<int64_t>(bits);
  }

  size_t Floor() const { return marks_.empty() ? 0 : marks_.back(); }

  Value* Top() {
    if (stack_.size() <= Floor()) {
      Damaged("it takes a value where there is none");
      return nullptr;
    }
    return stack_.back();
  }

  // The last `count` values, off the stack; with an error as many, so that callers need no check
  // before they index.
  std::vector<Value*> Take(size_t count) {
    if (stack_.size() < Floor() + count) {
      Damaged("it takes a value where there is none");
      return std::vector<Value*>(count, &nothing_);
    }
    std::vector<Value*> values(stack_.end() - static_cast<std::ptrdiff_t>(count), stack_.end());
    stack_.resize(stack_.size() - count);
    return values;
  }

  std::vector<Value*> TakeToMark() {
    if (marks_.empty()) {
      Damaged("it takes values up to a mark where there is none");
      return {};
    }
    std::vector<Value*> values = Take(stack_.size() - marks_.back());
    marks_.pop_back();
    return values;
  }

  void Extend(Kind kind, const std::vector<Value*>& items) {
    Value* container = Top();
    if (container == nullptr) return;
    if (container->kind != kind) return Damaged("it puts values into what is no such container");
    if (kind == Kind::kDict && items.size() % 2 != 0) return Damaged("a key without a value");
    container->items.insert(container->items.end(), items.begin(), items.end());
    Count(items.size());
  }

  void Remember(uint64_t index) {
    if (Value* top = Top()) memo_[index] = top;
  }

  void Recall(uint64_t index) {
    const auto it = memo_.find(index);
    if (it == memo_.end()) return Damaged(absl::StrCat("it recalls value ", index, ", not kept"));
    stack_.push_back(it->second);
  }

  // --- Objects ---

  void PushGlobal(std::string_view module, std::string_view name) {
    if (!status_.ok()) return;
    if (!allowed_(module, name)) {
      return Refuse(absl::StrCat("global ", absl::CHexEscape(std::string(module.substr(0, 100))),
                                 ".", absl::CHexEscape(std::string(name.substr(0, 100)))));
    }
    Value* value = Push(Kind::kGlobal);
    value->module = module;
    value->text = name;
  }

  void PushObject(const std::vector<Value*>& parts) {
    if (!status_.ok()) return;
    if (!parts[0]->Is(Kind::kGlobal) || !parts[1]->Is(Kind::kTuple)) {
      return Damaged("it calls what is no allowed global");
    }
    if (parts[0]->IsGlobal("collections", "OrderedDict")) return PushOrderedDict(*parts[1]);
    Value* value = Push(Kind::kObject);
    value->callable = parts[0];
    value->items = parts[1]->items;
    Count(value->items.size());
  }

  // OrderedDict(), or OrderedDict([[key, value], ...]) of old pickles.
  void PushOrderedDict(const Value& arguments) {
    Value* dict = Push(Kind::kDict);
    if (arguments.items.empty()) return;
    for (const Value* pair : arguments.items[0]->items) {
      if (pair->items.size() != 2) return Damaged("an OrderedDict of what are no pairs");
      dict->items.insert(dict->items.end(), pair->items.begin(), pair->items.end());
      Count(pair->items.size());
    }
  }

  // Containers that are built twice from the same parts must not multiply them without limit.
  void Count(size_t items) {
    items_ += items;
    if (items_ > kMaxValues) Damaged("too many values");
  }

  void Build(const std::vector<Value*>& state) {
    Value* object = Top();
    if (object == nullptr) return;
    // An OrderedDict's attributes (a state_dict's _metadata) say nothing about its items.
    if (object->Is(Kind::kDict)) return;
    if (!object->Is(Kind::kObject)) return Damaged("it gives a state to what is no object");
    object->state = state[0];
  }

  // --- Errors: the first one stays ---

  void Damaged(const std::string& what) {
    if (!status_.ok()) return;
    status_ =
        absl::DataLossError(absl::StrCat(name_, ": not a sound pickle: at byte ", at_, " ", what));
  }

  void Refuse(const std::string& what) {
    if (!status_.ok()) return;
    status_ = absl::InvalidArgumentError(absl::StrCat(
        name_, ": its pickle has ", what, " at byte ", at_,
        ", which is refused: only tensors, containers, numbers and strings are read, and nothing "
        "is executed. Save the weights alone: torch.save(model.state_dict(), FILE)"));
  }

  const std::string_view text_;
  const std::string& name_;
  const Pickle::Allowed& allowed_;
  Pickle* const pickle_;
  Value nothing_;
  std::vector<Value*> stack_;
  std::vector<size_t> marks_;  // sizes of the stack
  std::unordered_map<uint64_t, Value*> memo_;
  size_t items_ = 0;
  size_t position_ = 0;
  size_t at_ = 0;  // where the current opcode began
  bool done_ = false;
  absl::Status status_;
};

absl::StatusOr<Pickle> Pickle::Parse(absl::Span<const std::byte> bytes, const std::string& name,
                                     const Allowed& allowed) {
  Pickle pickle;
  if (absl::Status status = PickleMachine(bytes, name, allowed, &pickle).Run(); !status.ok()) {
    return status;
  }
  return pickle;
}

}  // namespace osdn::tools
