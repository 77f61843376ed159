#include "tools/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tools/dcp.h"
#include "tools/file_util.h"
#include "tools/json_reader.h"
#include "tools/torch_file.h"
#include "tools/weights_key.h"

namespace osdn::tools {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFiles[] = {"model.safetensors", "pytorch_model.bin"};
constexpr char kIndexSuffix[] = ".index.json";

bool Exists(const fs::path& path) {
  std::error_code error;
  return fs::exists(path, error);
}

// The one file of weights that has none of the usual names; what there is instead otherwise.
absl::StatusOr<std::string> OnlyWeightsFile(const std::string& dir) {
  std::vector<std::string> found;
  std::error_code error;
  for (fs::directory_iterator it(dir, error), end; !error && it != end; it.increment(error)) {
    const std::string extension = it->path().extension().string();
    for (const char* known : {".safetensors", ".pt", ".pth", ".bin"}) {
      if (extension == known) found.push_back(it->path().string());
    }
  }
  if (error) return absl::ErrnoToStatus(error.value(), absl::StrCat("cannot read ", dir));
  if (found.size() == 1) return found[0];
  std::sort(found.begin(), found.end());
  std::string text = absl::StrCat(dir,
                                  ": has no model.safetensors, pytorch_model.bin, index of "
                                  "their shards or ",
                                  kDcpMetadataFile);
  if (!found.empty()) {
    absl::StrAppend(&text, "; name one of its files as the source: ", absl::StrJoin(found, ", "));
  }
  return absl::NotFoundError(text);
}

// weight_map of the index: tensor name -> shard file name, which must be a plain name so that an
// index cannot point out of its directory.
absl::StatusOr<std::map<std::string, std::string>> ReadWeightMap(const std::string& path) {
  absl::StatusOr<std::string> text = ReadSmallFile(path);
  if (!text.ok()) return text.status();
  absl::StatusOr<nlohmann::json> root = ParseJsonObject(*text, path);
  if (!root.ok()) return root.status();
  const auto it = root->find("weight_map");
  if (it == root->end() || !it->is_object() || it->empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": weight_map: want an object of tensor names and shard files"));
  }
  std::map<std::string, std::string> map;
  std::vector<std::string> problems;
  for (const auto& [tensor, file] : it->items()) {
    const std::string name = file.is_string() ? file.get<std::string>() : "";
    if (name.empty() || name == "." || name == ".." || fs::path(name).filename().string() != name) {
      problems.push_back(absl::StrCat(tensor, ": \"", name, "\" is not a plain file name"));
    }
    map[tensor] = name;
  }
  if (!problems.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": weight_map:\n  ", absl::StrJoin(problems, "\n  ")));
  }
  return map;
}

}  // namespace

const SourceTensor* Checkpoint::Find(const std::string& name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

absl::StatusOr<Checkpoint> Checkpoint::Open(const std::string& path) {
  Checkpoint checkpoint;
  std::error_code error;
  absl::Status status =
      fs::is_directory(path, error) ? checkpoint.OpenDirectory(path) : checkpoint.OpenFile(path);
  if (!status.ok()) return status;
  return checkpoint;
}

absl::Status Checkpoint::OpenDirectory(const std::string& dir) {
  for (const char* name : kFiles) {
    const std::string path = (fs::path(dir) / name).string();
    if (Exists(path)) return OpenFile(path);
    if (Exists(path + kIndexSuffix)) return OpenIndexed(dir, path + kIndexSuffix);
  }
  if (Exists(fs::path(dir) / kDcpMetadataFile)) return OpenDcp(dir);
  absl::StatusOr<std::string> only = OnlyWeightsFile(dir);
  if (!only.ok()) return only.status();
  return OpenFile(*only);
}

absl::Status Checkpoint::OpenFile(const std::string& path) {
  absl::StatusOr<NamedTensors> tensors = ReadFile(path);
  if (!tensors.ok()) return tensors.status();
  tensors_ = *std::move(tensors);
  return absl::OkStatus();
}

absl::Status Checkpoint::OpenIndexed(const std::string& dir, const std::string& index_path) {
  absl::StatusOr<std::map<std::string, std::string>> map = ReadWeightMap(index_path);
  if (!map.ok()) return map.status();
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : *map) shards.insert(shard);

  std::vector<std::string> problems;
  for (const std::string& shard : shards) {
    absl::StatusOr<NamedTensors> tensors = ReadFile((fs::path(dir) / shard).string());
    if (!tensors.ok()) {
      problems.emplace_back(tensors.status().message());
      continue;
    }
    for (const auto& [tensor, listed] : *map) {
      if (listed == shard && tensors->find(tensor) == tensors->end()) {
        problems.push_back(absl::StrCat(tensor, ": the index says ", shard, ", not there"));
      }
    }
    for (auto& [name, tensor] : *tensors) {
      const auto listed = map->find(name);
      if (listed == map->end()) {
        problems.push_back(absl::StrCat(name, ": in ", shard, " but not in the index"));
      } else if (listed->second != shard) {
        problems.push_back(
            absl::StrCat(name, ": the index says ", listed->second, ", found in ", shard));
      } else {
        tensors_[name] = std::move(tensor);
      }
    }
  }
  if (problems.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(index_path, " and its shards:\n  ", absl::StrJoin(problems, "\n  ")));
}

absl::Status Checkpoint::OpenDcp(const std::string& dir) {
  absl::StatusOr<DcpCheckpoint> read =
      ReadDcp(dir, [](std::string_view name) { return !IsTrainingState(name); });
  if (!read.ok()) return read.status();
  kind_ = "distributed checkpoint";
  tensors_ = std::move(read->tensors);
  files_ = std::move(read->files);
  AddStorages(read->storages);
  return absl::OkStatus();
}

absl::StatusOr<NamedTensors> Checkpoint::ReadFile(const std::string& path) {
  return absl::EndsWith(path, ".safetensors") ? ReadSafetensors(path) : ReadTorch(path);
}

absl::StatusOr<NamedTensors> Checkpoint::ReadSafetensors(const std::string& path) {
  absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(path);
  if (!file.ok()) return file.status();
  kind_ = "safetensors";
  safetensors_.push_back(std::make_unique<SafetensorsFile>(*std::move(file)));
  NamedTensors tensors;
  for (const auto& [name, entry] : safetensors_.back()->tensors()) {
    tensors[name] = WholeTensor(entry.dtype, entry.shape, entry.data);
  }
  return tensors;
}

absl::StatusOr<NamedTensors> Checkpoint::ReadTorch(const std::string& path) {
  absl::StatusOr<MappedFile> file = MappedFile::Open(path);
  if (!file.ok()) return file.status();
  kind_ = "torch.save file";
  files_.push_back(std::make_unique<MappedFile>(*std::move(file)));
  absl::StatusOr<TorchArchive> archive = ReadTorchArchive(files_.back()->bytes(), path);
  if (!archive.ok()) return archive.status();
  AddStorages(archive->storages);
  return std::move(archive->tensors);
}

void Checkpoint::AddStorages(const std::vector<StoredZipEntry>& storages) {
  for (const StoredZipEntry& entry : storages) {
    if (!entry.data.empty()) storages_[entry.data.data()] = {.entry = entry};
  }
}

absl::Status Checkpoint::CheckStorages(const SourceTensor& tensor) {
  for (const TensorPiece& piece : tensor.pieces) {
    auto it = storages_.upper_bound(piece.data.data());
    if (piece.data.empty() || it == storages_.begin()) continue;
    Storage& storage = std::prev(it)->second;
    const absl::Span<const std::byte> bytes = storage.entry.data;
    if (storage.checked || std::less_equal<>()(bytes.end(), piece.data.begin())) continue;
    if (!ChecksumMatches(storage.entry)) {
      return absl::DataLossError(
          "its bytes do not match the checksum in the file: damaged (or saved with "
          "torch.serialization.set_crc32_options(False): then give --ignore-checksums)");
    }
    storage.checked = true;
  }
  return absl::OkStatus();
}

void Checkpoint::Release(const SourceTensor& tensor) {
  // Release needs the addresses only, not the file that they belong to.
  for (const TensorPiece& piece : tensor.pieces) MappedFile().Release(piece.data);
}

}  // namespace osdn::tools
