// Directories of torch.distributed.checkpoint: `.metadata`, a pickle that says which piece of which
// tensor lies where, and files __N_M.distcp that are rows of torch.save archives.
#ifndef OSDN_TOOLS_DCP_H_
#define OSDN_TOOLS_DCP_H_

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/mapped_file.h"
#include "tools/source_tensor.h"
#include "tools/stored_zip.h"

namespace osdn::tools {

inline constexpr char kDcpMetadataFile[] = ".metadata";

struct DcpCheckpoint {
  std::map<std::string, SourceTensor> tensors;  // put together from their shards
  std::vector<StoredZipEntry> storages;         // as in TorchArchive
  std::vector<std::unique_ptr<MappedFile>> files;
};

// Reads the tensors whose name `wanted` accepts (optimizer states are not even looked at).
// INVALID_ARGUMENT for refused pickles, file names that lead out of the directory, compressed
// shards, and shards that do not cover their tensor exactly; NOT_FOUND for missing files; DATA_LOSS
// for damage. Everything is named.
absl::StatusOr<DcpCheckpoint> ReadDcp(const std::string& dir,
                                      const std::function<bool(std::string_view name)>& wanted);

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_DCP_H_
