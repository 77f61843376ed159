// The tensors of a checkpoint as training left it on disk: safetensors, files of torch.save, or a
// directory of torch.distributed.checkpoint.
#ifndef OSDN_TOOLS_CHECKPOINT_H_
#define OSDN_TOOLS_CHECKPOINT_H_

#include <cstddef>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/mapped_file.h"
#include "engine/safetensors.h"
#include "tools/source_tensor.h"
#include "tools/stored_zip.h"

namespace osdn::tools {

using NamedTensors = std::map<std::string, SourceTensor>;

// Tensors point into mapped files and live as long as the Checkpoint.
class Checkpoint {
 public:
  // `path` is one file (.safetensors, or anything that torch.save wrote) or a directory, in which
  // the first of these is taken: model.safetensors, model.safetensors.index.json and its shards,
  // pytorch_model.bin, pytorch_model.bin.index.json and its shards, .metadata (DCP), or the only
  // file *.safetensors, *.pt, *.pth or *.bin.
  // NOT_FOUND when there is none of them, INVALID_ARGUMENT for an index that contradicts its shards
  // (every contradiction is listed) and for what SafetensorsFile, ReadTorchArchive and ReadDcp
  // refuse; their errors.
  static absl::StatusOr<Checkpoint> Open(const std::string& path);

  // By their names in the source, with the keys of the containers around them (see TorchArchive).
  const NamedTensors& tensors() const { return tensors_; }
  const SourceTensor* Find(const std::string& name) const;
  // "safetensors", "torch.save file", "distributed checkpoint".
  const std::string& kind() const { return kind_; }

  // Compares the bytes behind a tensor with the checksum that torch.save's archive has for them,
  // once a storage. DATA_LOSS when they differ.
  absl::Status CheckStorages(const SourceTensor& tensor);
  // Gives back the memory of the tensor's pages; they stay readable.
  static void Release(const SourceTensor& tensor);

 private:
  Checkpoint() = default;
  absl::Status OpenDirectory(const std::string& dir);
  absl::Status OpenFile(const std::string& path);
  absl::Status OpenIndexed(const std::string& dir, const std::string& index_path);
  absl::Status OpenDcp(const std::string& dir);
  absl::StatusOr<NamedTensors> ReadFile(const std::string& path);
  absl::StatusOr<NamedTensors> ReadSafetensors(const std::string& path);
  absl::StatusOr<NamedTensors> ReadTorch(const std::string& path);
  void AddStorages(const std::vector<StoredZipEntry>& storages);

  struct Storage {
    StoredZipEntry entry;
    bool checked = false;
  };

  std::string kind_;
  std::vector<std::unique_ptr<SafetensorsFile>> safetensors_;
  std::vector<std::unique_ptr<MappedFile>> files_;
  std::map<const std::byte*, Storage> storages_;  // by their first byte
  NamedTensors tensors_;
};

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_CHECKPOINT_H_
