#include "tools/stored_zip.h"

#include <minizip/unzip.h>
#include <zlib.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace osdn::tools {
namespace {

constexpr size_t kMaxName = 4096;

// A span of memory as the file that minizip reads. Every read is bounded by the span.
struct MemoryFile {
  absl::Span<const std::byte> bytes;
  uint64_t position = 0;
};

voidpf ZCALLBACK OpenMemory(voidpf opaque, const void* /*name*/, int /*mode*/) { return opaque; }

uLong ZCALLBACK ReadMemory(voidpf /*opaque*/, voidpf stream, void* buffer, uLong size) {
  auto* file = static_cast<MemoryFile*>(stream);
  if (file->position >= file->bytes.size()) return 0;
  const uint64_t count = std::min<uint64_t>(size, file->bytes.size() - file->position);
  std::memcpy(buffer, file->bytes.data() + file->position, count);
  file->position += count;
  return count;
}

uLong ZCALLBACK WriteMemory(voidpf /*opaque*/, voidpf /*stream*/, const void* /*buffer*/,
                            uLong /*size*/) {
  return 0;
}

ZPOS64_T ZCALLBACK TellMemory(voidpf /*opaque*/, voidpf stream) {
  return static_cast<MemoryFile*>(stream)->position;
}

long ZCALLBACK SeekMemory(voidpf /*opaque*/, voidpf stream, ZPOS64_T offset, int origin) {
  auto* file = static_cast<MemoryFile*>(stream);
  uint64_t base = 0;
  if (origin == ZLIB_FILEFUNC_SEEK_CUR) base = file->position;
  if (origin == ZLIB_FILEFUNC_SEEK_END) base = file->bytes.size();
  const uint64_t target = base + offset;
  if (target < base || target > file->bytes.size()) return -1;
  file->position = target;
  return 0;
}

int ZCALLBACK CloseMemory(voidpf /*opaque*/, voidpf /*stream*/) { return 0; }
int ZCALLBACK MemoryError(voidpf /*opaque*/, voidpf /*stream*/) { return 0; }

bool IsPlainPath(std::string_view path) {
  if (path.empty() || path.front() == '/' || path.find('\\') != std::string_view::npos ||
      path.find('\0') != std::string_view::npos) {
    return false;
  }
  const std::vector<std::string> parts = absl::StrSplit(std::string(path), '/');
  return std::all_of(parts.begin(), parts.end(),
                     [](const std::string& part) { return part != ".." && part != "."; });
}

// What the directory says about the entry that `zip` stands at.
struct Listed {
  std::string path;
  unz_file_info64 info = {};
};

// Why torch.save cannot have written the entry; empty if it can.
std::string Objection(const Listed& entry) {
  constexpr uLong kEncrypted = 1;
  constexpr uLong kTypeMask = 0170000;
  constexpr uLong kSymlink = 0120000;
  constexpr int kUnixModeShift = 16;
  if (!IsPlainPath(entry.path)) return "its name could lead out of the archive";
  if ((entry.info.flag & kEncrypted) != 0) return "it is encrypted";
  if (((entry.info.external_fa >> kUnixModeShift) & kTypeMask) == kSymlink) return "it is a link";
  if (entry.info.compression_method != 0) {
    return "it is compressed, which torch.save never does; save the file with torch.save";
  }
  return "";
}

std::optional<Listed> ReadListed(unzFile zip) {
  Listed entry;
  std::vector<char> path(kMaxName + 1);
  if (unzGetCurrentFileInfo64(zip, &entry.info, path.data(), path.size() - 1, nullptr, 0, nullptr,
                              0) != UNZ_OK ||
      entry.info.size_filename > kMaxName) {
    return std::nullopt;
  }
  entry.path.assign(path.data(), entry.info.size_filename);
  return entry;
}

// Where the bytes of the entry begin, from its local header.
std::optional<uint64_t> DataOffset(unzFile zip) {
  int method = 0;
  int level = 0;
  if (unzOpenCurrentFile2(zip, &method, &level, /*raw=*/1) != UNZ_OK) return std::nullopt;
  const uint64_t offset = unzGetCurrentFileZStreamPos64(zip);
  unzCloseCurrentFile(zip);
  return offset;
}

absl::Status CheckApart(const std::map<std::string, StoredZipEntry>& entries,
                        const std::string& name) {
  std::vector<std::pair<absl::Span<const std::byte>, std::string_view>> order;
  for (const auto& [path, entry] : entries) {
    if (!entry.data.empty()) order.emplace_back(entry.data, path);
  }
  std::sort(order.begin(), order.end(),
            [](const auto& a, const auto& b) { return a.first.data() < b.first.data(); });
  for (size_t i = 1; i < order.size(); ++i) {
    if (order[i - 1].first.end() <= order[i].first.begin()) continue;
    return absl::DataLossError(absl::StrCat(name, ": the archive's entries ",
                                            std::string(order[i - 1].second), " and ",
                                            std::string(order[i].second), " lie over each other"));
  }
  return absl::OkStatus();
}

}  // namespace

bool LooksLikeZip(absl::Span<const std::byte> bytes) {
  constexpr std::string_view kMagic("PK\x03\x04", 4);
  return bytes.size() >= kMagic.size() &&
         std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) == 0;
}

absl::StatusOr<std::map<std::string, StoredZipEntry>> ListStoredZip(
    absl::Span<const std::byte> archive, const std::string& name) {
  MemoryFile file{archive};
  zlib_filefunc64_def functions = {.zopen64_file = OpenMemory,
                                   .zread_file = ReadMemory,
                                   .zwrite_file = WriteMemory,
                                   .ztell64_file = TellMemory,
                                   .zseek64_file = SeekMemory,
                                   .zclose_file = CloseMemory,
                                   .zerror_file = MemoryError,
                                   .opaque = &file};
  unzFile zip = unzOpen2_64(name.c_str(), &functions);
  if (zip == nullptr) {
    return absl::DataLossError(
        absl::StrCat(name, ": no zip directory at its end: truncated or damaged"));
  }
  const absl::Cleanup close = [zip] { unzClose(zip); };
  std::map<std::string, StoredZipEntry> entries;
  int status = unzGoToFirstFile(zip);
  for (; status == UNZ_OK; status = unzGoToNextFile(zip)) {
    std::optional<Listed> listed = ReadListed(zip);
    if (!listed.has_value()) break;
    if (listed->path.ends_with('/') && listed->info.uncompressed_size == 0) continue;
    if (const std::string objection = Objection(*listed); !objection.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": the archive's entry ", listed->path, " is refused: ", objection));
    }
    const std::optional<uint64_t> offset = DataOffset(zip);
    const uint64_t size = listed->info.uncompressed_size;
    if (!offset.has_value() || size != listed->info.compressed_size || size > archive.size() ||
        *offset > archive.size() - size) {
      return absl::DataLossError(absl::StrCat(name, ": the archive's entry ", listed->path,
                                              " does not lie in it: truncated or damaged"));
    }
    const StoredZipEntry entry{archive.subspan(*offset, size),
                               static_cast<uint32_t>(listed->info.crc)};
    if (!entries.emplace(listed->path, entry).second) {
      return absl::DataLossError(
          absl::StrCat(name, ": the archive has its entry ", listed->path, " twice"));
    }
  }
  if (status != UNZ_END_OF_LIST_OF_FILE) {
    return absl::DataLossError(absl::StrCat(name, ": its zip directory is damaged"));
  }
  if (absl::Status apart = CheckApart(entries, name); !apart.ok()) return apart;
  return entries;
}

bool ChecksumMatches(const StoredZipEntry& entry) {
  constexpr size_t kPiece = size_t{1} << 30;  // zlib counts in 32 bits
  uLong crc = ::crc32(0, nullptr, 0);
  for (absl::Span<const std::byte> rest = entry.data; !rest.empty();) {
    const auto piece = rest.first(std::min(kPiece, rest.size()));
    crc =
        ::crc32(crc, reinterpret_cast<const Bytef*>(piece.data()), static_cast<uInt>(piece.size()));
    rest.remove_prefix(piece.size());
  }
  return crc == entry.crc32;
}

}  // namespace osdn::tools
