// Zip archives whose entries are stored, not compressed, as torch.save writes them: where each
// entry's bytes lie. Nothing is unpacked.
#ifndef OSDN_TOOLS_STORED_ZIP_H_
#define OSDN_TOOLS_STORED_ZIP_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace osdn::tools {

struct StoredZipEntry {
  absl::Span<const std::byte> data;  // into the archive
  uint32_t crc32 = 0;
};

// Whether `bytes` begin as a zip archive does.
bool LooksLikeZip(absl::Span<const std::byte> bytes);

// The entries of `archive` by name; folders are left out. `name` is for messages. DATA_LOSS for a
// damaged archive: entries outside it, over each other or twice. INVALID_ARGUMENT for entries that
// torch.save does not write: compressed or encrypted ones, links, names with ".." or a root.
absl::StatusOr<std::map<std::string, StoredZipEntry>> ListStoredZip(
    absl::Span<const std::byte> archive, const std::string& name);

// Whether the entry's bytes have the checksum that the archive gives.
bool ChecksumMatches(const StoredZipEntry& entry);

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_STORED_ZIP_H_
