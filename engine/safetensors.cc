#include "engine/safetensors.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/safetensors_header.h"

namespace osdn {
namespace {

using internal::RawTensor;

absl::Status Corrupt(const std::string& path, const std::string& what) {
  return absl::DataLossError(absl::StrCat(path, ": ", what));
}

uint64_t ReadLittleEndian64(absl::Span<const std::byte> bytes) {
  uint64_t value = 0;
  for (size_t i = 0; i < sizeof(value); ++i) {
    value |= static_cast<uint64_t>(std::to_integer<uint8_t>(bytes[i])) << (8 * i);
  }
  return value;
}

std::string ShapeText(const std::vector<uint64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ","), "]");
}

// Checks one header entry against the size of the data section.
absl::Status CheckTensor(const std::string& path, const std::string& name, const RawTensor& raw,
                         uint64_t data_size) {
  if (raw.begin > raw.end || raw.end > data_size) {
    return Corrupt(path, absl::StrCat("tensor ", name, ": data_offsets [", raw.begin, ",", raw.end,
                                      "] do not lie in the data section of ", data_size,
                                      " bytes (truncated file?)"));
  }
  if (SafetensorsDTypeSize(raw.dtype) == 0) {
    return Corrupt(path, absl::StrCat("tensor ", name, ": unknown dtype \"", raw.dtype, "\""));
  }
  const std::optional<uint64_t> bytes = internal::TensorBytes(raw.dtype, raw.shape);
  if (!bytes.has_value()) {
    return Corrupt(path, absl::StrCat("tensor ", name, ": shape ", ShapeText(raw.shape),
                                      " overflows 64 bits"));
  }
  if (*bytes != raw.end - raw.begin) {
    return Corrupt(path,
                   absl::StrCat("tensor ", name, ": ", raw.dtype, ShapeText(raw.shape), " needs ",
                                *bytes, " bytes, data_offsets hold ", raw.end - raw.begin));
  }
  return absl::OkStatus();
}

// Tensors must tile the data section: no overlap, no hole, nothing left over.
absl::Status CheckTiling(const std::string& path, const std::map<std::string, RawTensor>& tensors,
                         uint64_t data_size) {
  std::vector<std::pair<uint64_t, const std::pair<const std::string, RawTensor>*>> order;
  order.reserve(tensors.size());
  for (const auto& item : tensors) order.emplace_back(item.second.begin, &item);
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return std::pair(a.first, a.second->second.end) < std::pair(b.first, b.second->second.end);
  });
  uint64_t expected = 0;
  for (const auto& [begin, item] : order) {
    if (begin != expected) {
      return Corrupt(path, absl::StrCat("tensor ", item->first, " starts at ", begin,
                                        begin < expected ? ", inside the tensor before it (ends at "
                                                         : ", after a hole (last data ends at ",
                                        expected, ")"));
    }
    expected = item->second.end;
  }
  if (expected != data_size) {
    return Corrupt(path, absl::StrCat("tensors cover ", expected, " bytes, the data section has ",
                                      data_size, " (truncated or padded file?)"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SafetensorsFile> SafetensorsFile::Open(const std::string& path) {
  absl::StatusOr<MappedFile> mapped = MappedFile::Open(path);
  if (!mapped.ok()) return mapped.status();
  const absl::Span<const std::byte> bytes = mapped->bytes();

  constexpr size_t kPrefix = sizeof(uint64_t);
  if (bytes.size() < kPrefix) {
    return Corrupt(path, absl::StrCat("not a safetensors file: ", bytes.size(), " bytes"));
  }
  const uint64_t header_size = ReadLittleEndian64(bytes.first(kPrefix));
  if (header_size > internal::kMaxHeaderBytes || header_size > bytes.size() - kPrefix) {
    return Corrupt(path, absl::StrCat("header of ", header_size, " bytes in a file of ",
                                      bytes.size(), " bytes (limit ", internal::kMaxHeaderBytes,
                                      "): truncated or not a safetensors file"));
  }

  const auto* text = reinterpret_cast<const char*>(bytes.data()) + kPrefix;
  absl::StatusOr<internal::RawHeader> header =
      internal::ParseHeader(std::string_view(text, header_size));
  if (!header.ok()) return Corrupt(path, std::string(header.status().message()));

  const absl::Span<const std::byte> data = bytes.subspan(kPrefix + header_size);
  for (const auto& [name, raw] : header->tensors) {
    if (absl::Status s = CheckTensor(path, name, raw, data.size()); !s.ok()) return s;
  }
  if (absl::Status s = CheckTiling(path, header->tensors, data.size()); !s.ok()) return s;

  SafetensorsFile file;
  for (auto& [name, raw] : header->tensors) {
    SafetensorsEntry& entry = file.tensors_[name];
    entry.dtype = std::move(raw.dtype);
    entry.shape.assign(raw.shape.begin(), raw.shape.end());
    entry.data = data.subspan(raw.begin, raw.end - raw.begin);
  }
  file.metadata_ = std::move(header->metadata);
  file.file_ = *std::move(mapped);
  return file;
}

const SafetensorsEntry* SafetensorsFile::Find(const std::string& name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

size_t SafetensorsDTypeSize(std::string_view dtype) {
  struct Known {
    std::string_view name;
    size_t bytes;
  };
  constexpr Known kKnown[] = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1},
      {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},
      {"U32", 4},  {"F32", 4}, {"I64", 8}, {"U64", 8},     {"F64", 8},
  };
  for (const Known& known : kKnown) {
    if (known.name == dtype) return known.bytes;
  }
  return 0;
}

namespace internal {

std::optional<uint64_t> TensorBytes(std::string_view dtype, const std::vector<uint64_t>& shape) {
  // Every dimension must fit the signed type that the rest of the engine computes with, and so must
  // the product, also when another dimension is 0.
  constexpr uint64_t kMax = std::numeric_limits<int64_t>::max();
  uint64_t bytes = SafetensorsDTypeSize(dtype);
  bool empty = false;
  for (const uint64_t dim : shape) {
    if (dim > kMax) return std::nullopt;
    if (dim == 0) {
      empty = true;
      continue;
    }
    if (bytes > kMax / dim) return std::nullopt;
    bytes *= dim;
  }
  return empty ? 0 : bytes;
}

}  // namespace internal
}  // namespace osdn
