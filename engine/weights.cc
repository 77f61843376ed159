#include "engine/weights.h"

#include <cstdint>
#include <filesystem>
#include <optional>
#include <set>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/sha256.h"
#include "engine/tensor_specs.h"

namespace osdn {
namespace {

const char* SafetensorsName(kernels::DType dtype) {
  return dtype == kernels::DType::kBF16 ? "BF16" : "F32";
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ","), "]");
}

std::string FilePath(const std::string& model_dir, const std::string& name) {
  return (std::filesystem::path(model_dir) / name).string();
}

// Compares every listed file with its size, and with its checksum on request.
absl::Status VerifyFiles(const std::string& model_dir, const ModelConfig& config, bool checksums) {
  for (const FileDigest& file : config.files) {
    const std::string path = FilePath(model_dir, file.name);
    std::error_code error;
    const uintmax_t size = std::filesystem::file_size(path, error);
    if (error) {
      return absl::ErrnoToStatus(
          error.value(), absl::StrCat("cannot read ", path, ", listed in ", kModelFileName));
    }
    if (size != static_cast<uintmax_t>(file.bytes)) {
      return absl::DataLossError(absl::StrCat(path, ": ", size, " bytes, ", kModelFileName,
                                              " says ", file.bytes,
                                              ": truncated or replaced, copy it again"));
    }
    if (!checksums) continue;
    const absl::StatusOr<FileHash> hash = HashFile(path);
    if (!hash.ok()) return hash.status();
    if (hash->sha256 != file.sha256) {
      return absl::DataLossError(absl::StrCat(path, ": sha256 ", hash->sha256, ", ", kModelFileName,
                                              " says ", file.sha256, ": corrupt, copy it again"));
    }
  }
  return absl::OkStatus();
}

// What is wrong with one tensor, or nothing.
std::optional<std::string> CheckTensor(const TensorSpec& spec, kernels::DType matrix_dtype,
                                       const SafetensorsEntry* entry) {
  const char* dtype =
      SafetensorsName(spec.kind == TensorKind::kMatrix ? matrix_dtype : kernels::DType::kF32);
  if (entry == nullptr) {
    return absl::StrCat("missing ", spec.name, " ", dtype, ShapeText(spec.shape));
  }
  if (entry->shape != spec.shape) {
    return absl::StrCat("tensor ", spec.name, ": shape ", ShapeText(entry->shape),
                        ", config wants ", ShapeText(spec.shape));
  }
  if (entry->dtype != dtype) {
    return absl::StrCat("tensor ", spec.name, ": dtype ", entry->dtype, ", config wants ", dtype);
  }
  if (reinterpret_cast<uintptr_t>(entry->data.data()) % SafetensorsDTypeSize(dtype) != 0) {
    return absl::StrCat("tensor ", spec.name, ": data is not aligned to its ",
                        SafetensorsDTypeSize(dtype), "-byte elements: rewrite the file with ",
                        "`osdn-tools convert`");
  }
  return std::nullopt;
}

absl::Status CheckTensors(const SafetensorsFile& file, const ModelConfig& config) {
  std::vector<std::string> problems;
  std::set<std::string> known;
  for (const TensorSpec& spec : TensorSpecs(config.arch)) {
    known.insert(spec.name);
    auto problem = CheckTensor(spec, config.dtype, file.Find(spec.name));
    if (problem.has_value()) problems.push_back(*std::move(problem));
  }
  for (const auto& [name, entry] : file.tensors()) {
    if (known.contains(name)) continue;
    problems.push_back(absl::StrCat("unexpected ", name, " ", entry.dtype, ShapeText(entry.shape)));
  }
  if (problems.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(file.path(), " does not fit ", kModelFileName,
                                                 ": ", absl::StrJoin(problems, "; ")));
}

}  // namespace

absl::StatusOr<Weights> Weights::Load(const std::string& model_dir, const ModelConfig& config,
                                      const Options& options) {
  if (absl::Status s = ValidateArchitecture(config.arch); !s.ok()) return s;
  if (absl::Status s = VerifyFiles(model_dir, config, options.verify_checksums); !s.ok()) return s;
  absl::StatusOr<SafetensorsFile> file =
      SafetensorsFile::Open(FilePath(model_dir, kWeightsFileName));
  if (!file.ok()) return file.status();
  if (absl::Status s = CheckTensors(*file, config); !s.ok()) return s;
  return Weights(*std::move(file));
}

kernels::HostTensor Weights::Get(const std::string& name) const {
  const SafetensorsEntry* entry = file_.Find(name);
  if (entry == nullptr) return {};
  const auto dtype = entry->dtype == "BF16" ? kernels::DType::kBF16 : kernels::DType::kF32;
  return {entry->data.data(), dtype, entry->shape};
}

size_t Weights::bytes() const {
  size_t total = 0;
  for (const auto& [name, entry] : file_.tensors()) total += entry.data.size();
  return total;
}

}  // namespace osdn
