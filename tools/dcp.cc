#include "tools/dcp.h"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tools/pickle.h"
#include "tools/torch_file.h"

namespace osdn::tools {
namespace {

using Kind = PickleValue::Kind;

// The classes of `.metadata` since PyTorch 2.0. Their instances stay descriptions: class, arguments
// and state.
bool IsAllowed(std::string_view module, std::string_view name) {
  if (module == "torch") return name == "Size" || SafetensorsName(name).has_value();
  if (module.starts_with("torch.distributed.checkpoint") ||
      module.starts_with("torch.distributed._shard")) {
    for (const std::string_view known :
         {"Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata",
          "TensorProperties", "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
          "MEM_FORMAT_ENCODING", "_StorageInfo", "_StoragePrefix"}) {
      if (name == known) return true;
    }
    return false;
  }
  if (module == "torch.serialization") return name == "_get_layout";
  // A path may say where it was saved; Python 3.11 pickles an enum by getattr(class, name).
  if (module == "pathlib" || module == "pathlib._local") return name == "PosixPath";
  if (module == "builtins") return name == "getattr";
  return module == "collections" && name == "OrderedDict";
}

bool IsInstance(const PickleValue* value, std::string_view name) {
  return value != nullptr && value->Is(Kind::kObject) && value->callable->text == name;
}

// An attribute of an instance of a dataclass; null when there is none.
const PickleValue* Attribute(const PickleValue* value, std::string_view name) {
  if (value == nullptr || !value->Is(Kind::kObject) || value->state == nullptr) return nullptr;
  return value->state->Get(name);
}

std::optional<std::vector<int64_t>> IntsAttribute(const PickleValue* value, std::string_view name) {
  const PickleValue* ints = Attribute(value, name);
  if (ints == nullptr) return std::nullopt;
  return PickledInts(*ints);
}

// TensorProperties has a dict as its state, or a tuple that begins with the dtype.
std::optional<std::string> DTypeOf(const PickleValue* properties) {
  if (properties == nullptr || !properties->Is(Kind::kObject) || properties->state == nullptr) {
    return std::nullopt;
  }
  const PickleValue& state = *properties->state;
  const PickleValue* dtype = state.Get("dtype");
  if (state.Is(Kind::kTuple) && !state.items.empty()) dtype = state.items[0];
  if (dtype == nullptr || !dtype->Is(Kind::kGlobal)) return std::nullopt;
  return SafetensorsName(dtype->text);
}

// Where one shard lies.
struct Shard {
  std::string_view file;
  int64_t offset = 0;
  int64_t length = 0;
  bool transformed = false;
};

std::string ShardKey(std::string_view tensor, absl::Span<const int64_t> offsets) {
  return absl::StrCat(std::string(tensor), " ", ShapeText(offsets));
}

class DcpReader {
 public:
  explicit DcpReader(const std::string& dir) : dir_(dir) {}

  absl::Status Read(const std::function<bool(std::string_view)>& wanted, DcpCheckpoint* out) {
    out_ = out;
    const std::string path = (std::filesystem::path(dir_) / kDcpMetadataFile).string();
    absl::StatusOr<MappedFile> file = MappedFile::Open(path);
    if (!file.ok()) return file.status();
    absl::StatusOr<Pickle> pickle = Pickle::Parse(file->bytes(), path, IsAllowed);
    if (!pickle.ok()) return pickle.status();
    const PickleValue* root = &pickle->root();
    const PickleValue* tensors = Attribute(root, "state_dict_metadata");
    const PickleValue* storage = Attribute(root, "storage_data");
    if (!IsInstance(root, "Metadata") || tensors == nullptr || !tensors->Is(Kind::kDict) ||
        storage == nullptr || !storage->Is(Kind::kDict)) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": not the metadata of a torch.distributed.checkpoint on disk"));
    }
    absl::Status status = ReadShards(*storage);
    for (size_t i = 0; status.ok() && i + 1 < tensors->items.size(); i += 2) {
      const PickleValue& name = *tensors->items[i];
      if (!name.Is(Kind::kString)) return Malformed("", "a name that is no string");
      if (!wanted(name.text)) continue;
      if (IsInstance(tensors->items[i + 1], "BytesStorageMetadata")) continue;  // not a tensor
      status = ReadTensor(std::string(name.text), tensors->items[i + 1]);
    }
    return status;
  }

 private:
  absl::Status ReadShards(const PickleValue& storage) {
    for (size_t i = 0; i + 1 < storage.items.size(); i += 2) {
      const PickleValue* name = Attribute(storage.items[i], "fqn");
      const PickleValue* info = storage.items[i + 1];
      const PickleValue* file = Attribute(info, "relative_path");
      const PickleValue* offset = Attribute(info, "offset");
      const PickleValue* length = Attribute(info, "length");
      if (name == nullptr || file == nullptr || offset == nullptr || length == nullptr ||
          !file->Is(Kind::kString) || !offset->Is(Kind::kInt) || !length->Is(Kind::kInt)) {
        return Malformed(name == nullptr ? "" : name->text, "a shard that lies nowhere");
      }
      const PickleValue* transforms = Attribute(info, "transform_descriptors");
      const bool transformed = transforms != nullptr && !transforms->items.empty();
      const std::optional<std::vector<int64_t>> at = IntsAttribute(storage.items[i], "offset");
      if (!at.has_value()) continue;  // not a tensor
      shards_[ShardKey(name->text, *at)] = {file->text, offset->integer, length->integer,
                                            transformed};
    }
    return absl::OkStatus();
  }

  absl::Status ReadTensor(const std::string& name, const PickleValue* metadata) {
    const std::optional<std::string> dtype = DTypeOf(Attribute(metadata, "properties"));
    const std::optional<std::vector<int64_t>> size = IntsAttribute(metadata, "size");
    const PickleValue* chunks = Attribute(metadata, "chunks");
    if (!IsInstance(metadata, "TensorStorageMetadata") || !size.has_value() || chunks == nullptr ||
        !chunks->Is(Kind::kList)) {
      return Malformed(name, "metadata that torch.distributed.checkpoint does not write");
    }
    if (!dtype.has_value()) return Malformed(name, "a dtype that cannot be read");
    SourceTensor tensor{*dtype, *size, {}};
    for (const PickleValue* chunk : chunks->items) {
      const std::optional<std::vector<int64_t>> offsets = IntsAttribute(chunk, "offsets");
      const std::optional<std::vector<int64_t>> sizes = IntsAttribute(chunk, "sizes");
      if (!offsets.has_value() || !sizes.has_value()) return Malformed(name, "a malformed shard");
      // A rank whose share of a dimension is empty writes an empty shard.
      if (std::count(sizes->begin(), sizes->end(), 0) > 0) continue;
      absl::Status status = AddPiece(name, *offsets, *sizes, &tensor);
      if (!status.ok()) return status;
    }
    if (absl::Status status = CheckPieces(tensor); !status.ok()) {
      return Malformed(name, absl::StrCat("its shards: ", std::string(status.message())));
    }
    out_->tensors[name] = std::move(tensor);
    return absl::OkStatus();
  }

  absl::Status AddPiece(const std::string& name, const std::vector<int64_t>& offsets,
                        const std::vector<int64_t>& sizes, SourceTensor* tensor) {
    const auto shard = shards_.find(ShardKey(name, offsets));
    if (shard == shards_.end()) {
      return Malformed(name, absl::StrCat("no file has its shard at ", ShapeText(offsets)));
    }
    if (shard->second.transformed) {
      return Malformed(name,
                       "its shards are transformed (compressed); save without stream extensions");
    }
    absl::StatusOr<const MappedFile*> file = Open(name, shard->second.file);
    if (!file.ok()) return file.status();
    const auto total = static_cast<int64_t>((*file)->bytes().size());
    const auto& [path, begin, length, transformed] = shard->second;
    if (begin < 0 || length < 0 || length > total || begin > total - length) {
      return absl::DataLossError(absl::StrCat((*file)->path(), ": bytes ", begin, " + ", length,
                                              " of tensor ", name, " in a file of ", total,
                                              ": truncated?"));
    }
    const std::string origin = absl::StrCat((*file)->path(), ": tensor ", name);
    absl::StatusOr<TorchArchive> archive = ReadTorchArchive(
        (*file)->bytes().subspan(static_cast<size_t>(begin), static_cast<size_t>(length)), origin);
    if (!archive.ok()) return archive.status();
    const auto found = archive->tensors.find("");
    if (found == archive->tensors.end() || found->second.shape != sizes ||
        found->second.dtype != tensor->dtype) {
      return Malformed(
          name, absl::StrCat("its shard at ", ShapeText(offsets), " is not the ", tensor->dtype,
                             ShapeText(sizes), " that the metadata promises"));
    }
    TensorPiece piece = found->second.pieces[0];
    piece.offset = offsets;
    tensor->pieces.push_back(std::move(piece));
    out_->storages.insert(out_->storages.end(), archive->storages.begin(), archive->storages.end());
    return absl::OkStatus();
  }

  absl::StatusOr<const MappedFile*> Open(const std::string& tensor, std::string_view name) {
    const auto opened = opened_.find(name);
    if (opened != opened_.end()) return opened->second;
    const std::filesystem::path plain{std::string(name)};
    if (name.empty() || name == "." || name == ".." || plain.filename() != plain ||
        name.find('\0') != std::string_view::npos) {
      return Malformed(tensor, "its shard is in what is no plain file name");
    }
    absl::StatusOr<MappedFile> file =
        MappedFile::Open((std::filesystem::path(dir_) / plain).string());
    if (!file.ok()) return file.status();
    out_->files.push_back(std::make_unique<MappedFile>(*std::move(file)));
    return opened_[std::string(name)] = out_->files.back().get();
  }

  absl::Status Malformed(std::string_view tensor, const std::string& what) const {
    return absl::InvalidArgumentError(
        absl::StrCat(dir_, "/", kDcpMetadataFile, ": tensor ", std::string(tensor), ": ", what));
  }

  const std::string& dir_;
  DcpCheckpoint* out_ = nullptr;
  std::map<std::string, Shard> shards_;  // by ShardKey
  std::map<std::string, const MappedFile*, std::less<>> opened_;
};

}  // namespace

absl::StatusOr<DcpCheckpoint> ReadDcp(const std::string& dir,
                                      const std::function<bool(std::string_view name)>& wanted) {
  DcpCheckpoint checkpoint;
  if (absl::Status status = DcpReader(dir).Read(wanted, &checkpoint); !status.ok()) return status;
  return checkpoint;
}

}  // namespace osdn::tools
