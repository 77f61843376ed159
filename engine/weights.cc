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

// What is wrong with one entry of the file, or nothing.
std::optional<std::string> CheckEntry(const StoredTensor& want, const SafetensorsEntry* entry) {
  if (entry == nullptr) {
    return absl::StrCat("missing ", want.name, " ", want.dtype, ShapeText(want.shape));
  }
  if (entry->dtype != want.dtype) {
    return absl::StrCat("tensor ", want.name, ": dtype ", entry->dtype, ", config wants ",
                        want.dtype);
  }
  if (entry->shape != want.shape) {
    return absl::StrCat("tensor ", want.name, ": shape ", ShapeText(entry->shape),
                        ", config wants ", ShapeText(want.shape));
  }
  const size_t element = SafetensorsDTypeSize(want.dtype);
  if (reinterpret_cast<uintptr_t>(entry->data.data()) % element != 0) {
    return absl::StrCat("tensor ", want.name, ": data is not aligned to its ", element,
                        "-byte elements: rewrite the file with `osdn-tools convert`");
  }
  return std::nullopt;
}

absl::Status CheckTensors(const SafetensorsFile& file, const ModelConfig& config) {
  std::vector<std::string> problems;
  std::set<std::string> known;
  for (const TensorSpec& spec : TensorSpecs(config.arch)) {
    for (const StoredTensor& want : StoredTensors(spec, StoredDType(spec, config.dtype))) {
      known.insert(want.name);
      auto problem = CheckEntry(want, file.Find(want.name));
      if (problem.has_value()) problems.push_back(*std::move(problem));
    }
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

absl::Status VerifyModelFiles(const std::string& model_dir, const ModelConfig& config) {
  return VerifyFiles(model_dir, config, /*checksums=*/true);
}

absl::StatusOr<Weights> Weights::Load(const std::string& model_dir, const ModelConfig& config,
                                      const Options& options) {
  if (absl::Status s = ValidateArchitecture(config.arch); !s.ok()) return s;
  if (absl::Status s = VerifyFiles(model_dir, config, options.verify_checksums); !s.ok()) return s;
  absl::StatusOr<SafetensorsFile> file =
      SafetensorsFile::Open(FilePath(model_dir, kWeightsFileName));
  if (!file.ok()) return file.status();
  if (absl::Status s = CheckTensors(*file, config); !s.ok()) return s;
  Weights weights(*std::move(file));
  weights.Index(config);
  return weights;
}

void Weights::Index(const ModelConfig& config) {
  for (const TensorSpec& spec : TensorSpecs(config.arch)) {
    kernels::HostTensor& tensor = tensors_[spec.name];
    tensor.data = file_.Find(spec.name)->data.data();
    tensor.dtype = StoredDType(spec, config.dtype);
    tensor.shape = spec.shape;
    if (kernels::IsQuantized(tensor.dtype)) {
      tensor.scales = file_.Find(ScaleName(spec.name))->data.data();
    }
  }
}

kernels::HostTensor Weights::Get(const std::string& name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? kernels::HostTensor() : found->second;
}

void Weights::Release(const std::string& name) const {
  if (const SafetensorsEntry* entry = file_.Find(name)) file_.Release(entry->data);
}

size_t Weights::bytes() const {
  size_t total = 0;
  for (const auto& [name, entry] : file_.tensors()) total += entry.data.size();
  return total;
}

}  // namespace osdn
