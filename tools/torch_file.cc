#include "tools/torch_file.h"

#include <cstring>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/safetensors.h"

namespace osdn::tools {
namespace {

using Kind = PickleValue::Kind;

constexpr size_t kMaxDimensions = 16;

struct TorchType {
  const char* storage;      // class in module torch
  const char* dtype;        // torch.<dtype>
  const char* safetensors;  // null: read by nobody here
};

constexpr TorchType kTypes[] = {
    {"FloatStorage", "float32", "F32"},
    {"HalfStorage", "float16", "F16"},
    {"BFloat16Storage", "bfloat16", "BF16"},
    {"DoubleStorage", "float64", "F64"},
    {"LongStorage", "int64", "I64"},
    {"IntStorage", "int32", "I32"},
    {"ShortStorage", "int16", "I16"},
    {"CharStorage", "int8", "I8"},
    {"ByteStorage", "uint8", "U8"},
    {"BoolStorage", "bool", "BOOL"},
    {nullptr, "float8_e4m3fn", "F8_E4M3"},
    {nullptr, "float8_e5m2", "F8_E5M2"},
    {nullptr, "uint16", "U16"},
    {nullptr, "uint32", "U32"},
    {nullptr, "uint64", "U64"},
    {"ComplexFloatStorage", "complex64", nullptr},
    {"ComplexDoubleStorage", "complex128", nullptr},
};

bool IsAllowed(std::string_view module, std::string_view name) {
  struct Known {
    std::string_view module;
    std::string_view name;
  };
  constexpr Known kKnown[] = {
      {"collections", "OrderedDict"},
      {"torch", "Size"},
      {"torch", "device"},
      {"torch", "Tensor"},
      {"torch._tensor", "_rebuild_from_type_v2"},
      {"torch._utils", "_rebuild_parameter"},
      {"torch._utils", "_rebuild_parameter_with_state"},
      {"torch._utils", "_rebuild_tensor"},
      {"torch._utils", "_rebuild_tensor_v2"},
      {"torch._utils", "_rebuild_tensor_v3"},
      {"torch.nn.parameter", "Parameter"},
      {"torch.serialization", "_get_layout"},
      {"torch.storage", "UntypedStorage"},
  };
  for (const Known& known : kKnown) {
    if (known.module == module && known.name == name) return true;
  }
  if (module != "torch") return false;
  for (const TorchType& type : kTypes) {
    if (name == type.dtype || (type.storage != nullptr && name == type.storage)) return true;
  }
  return false;
}

bool IsCallOf(const PickleValue& value, std::string_view module, std::string_view name) {
  return value.Is(Kind::kObject) && value.callable->IsGlobal(module, name);
}

// Finds the tensors of one archive.
class ArchiveReader {
 public:
  ArchiveReader(const std::string& name, std::map<std::string, StoredZipEntry> entries,
                std::string folder)
      : name_(name), entries_(std::move(entries)), folder_(std::move(folder)) {}

  absl::Status Read(TorchArchive* archive) {
    if (absl::Status status = CheckFormat(); !status.ok()) return status;
    const StoredZipEntry& text = entries_.at(folder_ + "data.pkl");
    if (!ChecksumMatches(text)) {
      return absl::DataLossError(absl::StrCat(name_, ": data.pkl does not match its checksum"));
    }
    absl::StatusOr<Pickle> pickle =
        Pickle::Parse(text.data, absl::StrCat(name_, ": data.pkl"), IsAllowed);
    if (!pickle.ok()) return pickle.status();
    archive_ = archive;
    return Walk(pickle->root(), "", 0);
  }

 private:
  absl::Status CheckFormat() const {
    if (entries_.count(folder_ + "constants.pkl") > 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(name_,
                       ": is a TorchScript program, not a checkpoint; save "
                       "torch.jit.load(FILE).state_dict() with torch.save"));
    }
    const auto order = entries_.find(folder_ + "byteorder");
    if (order == entries_.end()) return absl::OkStatus();
    const std::string_view text(reinterpret_cast<const char*>(order->second.data.data()),
                                order->second.data.size());
    if (text == "little") return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(name_, ": byte order \"", std::string(text.substr(0, 20)),
                     "\"; only little is read: load and save it again on a little-endian machine"));
  }

  absl::Status Walk(const PickleValue& value, const std::string& path, int depth) {
    constexpr int kMaxDepth = 32;
    constexpr size_t kMaxVisits = size_t{1} << 22;  // shared parts are visited again
    if (depth > kMaxDepth || ++visits_ > kMaxVisits) {
      return absl::ResourceExhaustedError(
          absl::StrCat(name_, ": containers inside each other more than ", kMaxDepth,
                       " deep, or more than ", kMaxVisits, " values, at ", path.substr(0, 200)));
    }
    const auto child = [&](std::string_view key) {
      return path.empty() ? std::string(key) : absl::StrCat(path, ".", std::string(key));
    };
    absl::Status status;
    switch (value.kind) {
      case Kind::kDict:
        for (size_t i = 0; status.ok() && i + 1 < value.items.size(); i += 2) {
          const PickleValue& key = *value.items[i];
          if (key.Is(Kind::kString)) {
            status = Walk(*value.items[i + 1], child(key.text), depth + 1);
          } else if (key.Is(Kind::kInt)) {
            status = Walk(*value.items[i + 1], child(absl::StrCat(key.integer)), depth + 1);
          }
        }
        return status;
      case Kind::kList:
      case Kind::kTuple:
        for (size_t i = 0; status.ok() && i < value.items.size(); ++i) {
          if (IsContainer(*value.items[i])) {
            status = Walk(*value.items[i], child(absl::StrCat(i)), depth + 1);
          }
        }
        return status;
      case Kind::kObject:
        return AddTensor(value, path);
      default:
        return status;  // numbers, strings and names hold no weights
    }
  }

  static bool IsContainer(const PickleValue& value) {
    return value.Is(Kind::kDict) || value.Is(Kind::kList) || value.Is(Kind::kTuple) ||
           value.Is(Kind::kObject);
  }

  absl::Status AddTensor(const PickleValue& value, const std::string& path) {
    const std::optional<Call> call = Unwrap(value);
    if (!call.has_value()) return Malformed(path, "a call that torch.save does not write");
    if (!call->function.starts_with("_rebuild_tensor")) return absl::OkStatus();  // torch.Size
    absl::StatusOr<SourceTensor> tensor = Rebuild(*call, path);
    if (!tensor.ok()) return tensor.status();
    if (!archive_->tensors.emplace(path, *std::move(tensor)).second) {
      return Malformed(path, "two tensors of this name");
    }
    return absl::OkStatus();
  }

  struct Call {
    std::string_view function;
    const std::vector<const PickleValue*>* arguments;
  };

  // The call that makes a tensor, behind those that make a parameter of it or give it attributes;
  // nullopt for malformed ones.
  static std::optional<Call> Unwrap(const PickleValue& value) {
    constexpr int kMaxLayers = 4;
    Call call{value.callable->text, &value.items};
    for (int layer = 0; layer < kMaxLayers; ++layer) {
      const std::vector<const PickleValue*>& arguments = *call.arguments;
      if (call.function.starts_with("_rebuild_parameter")) {  // (tensor, ...)
        if (arguments.empty() || !arguments[0]->Is(Kind::kObject)) return std::nullopt;
        call = {arguments[0]->callable->text, &arguments[0]->items};
      } else if (call.function == "_rebuild_from_type_v2") {  // (function, type, arguments, state)
        if (arguments.size() != 4 || !arguments[0]->Is(Kind::kGlobal) ||
            !arguments[2]->Is(Kind::kTuple)) {
          return std::nullopt;
        }
        call = {arguments[0]->text, &arguments[2]->items};
      } else {
        return call;
      }
    }
    return std::nullopt;
  }

  // _rebuild_tensor(storage, offset, shape, strides), _v2(..., requires_grad, hooks) and
  // _v3(..., requires_grad, hooks, dtype), whose storage is counted in bytes.
  absl::StatusOr<SourceTensor> Rebuild(const Call& call, const std::string& path) {
    const std::vector<const PickleValue*>& arguments = *call.arguments;
    constexpr size_t kDTypeArgument = 6;
    const bool untyped = call.function == "_rebuild_tensor_v3";
    if (arguments.size() < (untyped ? kDTypeArgument + 1 : 4) || !arguments[1]->Is(Kind::kInt)) {
      return Malformed(
          path, absl::StrCat("arguments that ", std::string(call.function), " does not take"));
    }
    std::optional<std::vector<int64_t>> shape = PickledInts(*arguments[2]);
    std::optional<std::vector<int64_t>> strides = PickledInts(*arguments[3]);
    if (!shape.has_value() || !strides.has_value()) {
      return Malformed(path, absl::StrCat("a shape or strides that are not up to ", kMaxDimensions,
                                          " integers"));
    }
    std::string_view type;
    absl::StatusOr<absl::Span<const std::byte>> storage = Storage(*arguments[0], path, &type);
    if (!storage.ok()) return storage.status();
    if (untyped) type = arguments[kDTypeArgument]->text;
    const std::optional<std::string> dtype =
        untyped ? SafetensorsName(type) : SafetensorsNameOfStorage(type);
    if (!dtype.has_value()) {
      return Malformed(path, absl::StrCat("type ", std::string(type), " cannot be read"));
    }
    absl::StatusOr<SourceTensor> tensor = StridedTensor(
        *dtype, *std::move(shape), *std::move(strides), arguments[1]->integer, *storage);
    if (!tensor.ok()) return Malformed(path, std::string(tensor.status().message()));
    return tensor;
  }

  static std::optional<std::string> SafetensorsNameOfStorage(std::string_view storage) {
    for (const TorchType& type : kTypes) {
      if (type.storage == nullptr || storage != type.storage) continue;
      if (type.safetensors == nullptr) return std::nullopt;
      return type.safetensors;
    }
    return std::nullopt;
  }

  // The bytes behind a persistent id ("storage", type, key, location, size).
  absl::StatusOr<absl::Span<const std::byte>> Storage(const PickleValue& id,
                                                      const std::string& path,
                                                      std::string_view* type) {
    constexpr size_t kIdParts = 5;
    if (!id.Is(Kind::kPersistent) || !id.items[0]->Is(Kind::kTuple) ||
        id.items[0]->items.size() != kIdParts) {
      return Malformed(path, "no storage");
    }
    const std::vector<const PickleValue*>& parts = id.items[0]->items;
    if (parts[0]->text != "storage" || !parts[1]->Is(Kind::kGlobal) ||
        !parts[2]->Is(Kind::kString)) {
      return Malformed(path, "no storage");
    }
    *type = parts[1]->text;
    const auto entry = entries_.find(absl::StrCat(folder_, "data/", std::string(parts[2]->text)));
    if (entry == entries_.end()) {
      return Malformed(path,
                       absl::StrCat("its storage data/", std::string(parts[2]->text.substr(0, 100)),
                                    " is missing from the file"));
    }
    if (used_.insert(entry->first).second) archive_->storages.push_back(entry->second);
    return entry->second.data;
  }

  absl::Status Malformed(const std::string& path, const std::string& what) const {
    return absl::InvalidArgumentError(absl::StrCat(name_, ": tensor ", path, ": ", what));
  }

  const std::string& name_;
  const std::map<std::string, StoredZipEntry> entries_;
  const std::string folder_;  // of the archive: "archive/"
  TorchArchive* archive_ = nullptr;
  std::set<std::string> used_;  // storages
  size_t visits_ = 0;
};

// The folder that everything in the archive is in, by its data.pkl: "archive/".
absl::StatusOr<std::string> FindFolder(const std::map<std::string, StoredZipEntry>& entries,
                                       const std::string& name) {
  constexpr std::string_view kText = "data.pkl";
  std::optional<std::string> folder;
  for (const auto& [path, entry] : entries) {
    if (path != kText && !path.ends_with("/data.pkl")) continue;
    if (folder.has_value()) {
      return absl::InvalidArgumentError(absl::StrCat(name, ": more than one data.pkl"));
    }
    folder = path.substr(0, path.size() - kText.size());
  }
  if (folder.has_value()) return *folder;
  return absl::InvalidArgumentError(
      absl::StrCat(name, ": a zip archive without data.pkl: not a file of torch.save"));
}

absl::Status NotZip(absl::Span<const std::byte> bytes, const std::string& name) {
  constexpr unsigned char kPickleStart = 0x80;
  if (!bytes.empty() && std::to_integer<unsigned char>(bytes[0]) == kPickleStart) {
    return absl::InvalidArgumentError(absl::StrCat(
        name,
        ": the format of torch.save before PyTorch 1.6 (or a bare pickle), which is not read; "
        "convert it once with a newer PyTorch: torch.save(torch.load(FILE, map_location='cpu', "
        "weights_only=True), NEW_FILE)"));
  }
  return absl::DataLossError(
      absl::StrCat(name, ": not a file of torch.save (no zip archive): truncated or damaged"));
}

}  // namespace

absl::StatusOr<TorchArchive> ReadTorchArchive(absl::Span<const std::byte> bytes,
                                              const std::string& name) {
  if (!LooksLikeZip(bytes)) return NotZip(bytes, name);
  absl::StatusOr<std::map<std::string, StoredZipEntry>> entries = ListStoredZip(bytes, name);
  if (!entries.ok()) return entries.status();
  absl::StatusOr<std::string> folder = FindFolder(*entries, name);
  if (!folder.ok()) return folder.status();
  TorchArchive archive;
  ArchiveReader reader(name, *std::move(entries), *std::move(folder));
  if (absl::Status status = reader.Read(&archive); !status.ok()) return status;
  return archive;
}

std::optional<std::string> SafetensorsName(std::string_view torch_dtype) {
  for (const TorchType& type : kTypes) {
    if (torch_dtype != type.dtype) continue;
    if (type.safetensors == nullptr) return std::nullopt;
    return type.safetensors;
  }
  return std::nullopt;
}

std::optional<std::vector<int64_t>> PickledInts(const PickleValue& value) {
  const PickleValue* list = &value;
  if (IsCallOf(value, "torch", "Size")) {
    if (value.items.size() != 1) return std::nullopt;
    list = value.items[0];
  }
  if (!list->Is(Kind::kTuple) && !list->Is(Kind::kList)) return std::nullopt;
  if (list->items.size() > kMaxDimensions) return std::nullopt;
  std::vector<int64_t> ints;
  for (const PickleValue* item : list->items) {
    if (!item->Is(Kind::kInt)) return std::nullopt;
    ints.push_back(item->integer);
  }
  return ints;
}

}  // namespace osdn::tools
