// Files of torch.save: a zip archive with a pickle that describes tensors, and their storages.
#ifndef OSDN_TOOLS_TORCH_FILE_H_
#define OSDN_TOOLS_TORCH_FILE_H_

#include <cstddef>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "tools/pickle.h"
#include "tools/source_tensor.h"
#include "tools/stored_zip.h"

namespace osdn::tools {

struct TorchArchive {
  // By dotted path: {"model": {"norm.weight": T}} is "model.norm.weight". A file that is one tensor
  // has it under the empty path.
  std::map<std::string, SourceTensor> tensors;
  // The storages that tensors lie in, to compare their checksums when they are read.
  std::vector<StoredZipEntry> storages;
};

// Reads the archive in `bytes`, which must outlive the result; `name` is for messages.
// INVALID_ARGUMENT for what is refused, by name and with a remedy: globals and opcodes (see
// Pickle), the format before PyTorch 1.6, TorchScript, big-endian files, tensor types that have no
// safetensors name, views beyond their storage. DATA_LOSS for damage.
absl::StatusOr<TorchArchive> ReadTorchArchive(absl::Span<const std::byte> bytes,
                                              const std::string& name);

// safetensors' name of a torch dtype ("bfloat16": "BF16"); nullopt for those that have none.
std::optional<std::string> SafetensorsName(std::string_view torch_dtype);

// The integers of a tuple, list or torch.Size; nullopt for anything else or more than 16 of them.
std::optional<std::vector<int64_t>> PickledInts(const PickleValue& value);

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_TORCH_FILE_H_
