#include "tools/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tools/file_util.h"
#include "tools/float_convert.h"
#include "tools/json_reader.h"

namespace osdn::tools {
namespace {

constexpr char kSingleFile[] = "model.safetensors";
constexpr char kIndexFile[] = "model.safetensors.index.json";
constexpr char kLmHead[] = "lm_head.weight";
constexpr char kEmbeddings[] = "model.embeddings.weight";

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ","), "]");
}

absl::Status NoWeights(const std::string& dir) {
  std::string text = absl::StrCat(dir, ": has neither ", kSingleFile, " nor ", kIndexFile);
  std::error_code error;
  for (const char* name : {"pytorch_model.bin", "pytorch_model.bin.index.json"}) {
    if (!std::filesystem::exists(std::filesystem::path(dir) / name, error)) continue;
    absl::StrAppend(&text, "; it has ", name,
                    ", which is not read: save the model with safe_serialization=True");
    break;
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
    if (name.empty() || name == "." || name == ".." ||
        std::filesystem::path(name).filename().string() != name) {
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

bool SameBytes(const SafetensorsEntry& a, const SafetensorsEntry& b) {
  return a.dtype == b.dtype && a.shape == b.shape &&
         std::equal(a.data.begin(), a.data.end(), b.data.begin(), b.data.end());
}

// The output head of a checkpoint whose config ties it to the embeddings.
std::string CheckTiedHead(const Checkpoint& checkpoint, std::vector<std::string>* notices) {
  const SafetensorsEntry* head = checkpoint.Find(kLmHead);
  const SafetensorsEntry* embeddings = checkpoint.Find(kEmbeddings);
  if (embeddings != nullptr && SameBytes(*head, *embeddings)) {
    notices->push_back(
        absl::StrCat(kLmHead, " equals the embeddings it is tied to and is not stored again"));
    return "";
  }
  return absl::StrCat("contradicts tie_word_embeddings: ", kLmHead, " differs from ", kEmbeddings);
}

}  // namespace

const SafetensorsEntry* Checkpoint::Find(const std::string& name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : it->second;
}

absl::StatusOr<Checkpoint> Checkpoint::Open(const std::string& dir) {
  const std::filesystem::path root(dir);
  const std::string single = (root / kSingleFile).string();
  const std::string index = (root / kIndexFile).string();
  std::error_code error;
  Checkpoint checkpoint;
  absl::Status status;
  if (std::filesystem::exists(single, error)) {
    status = checkpoint.OpenSingle(single);
  } else if (std::filesystem::exists(index, error)) {
    status = checkpoint.OpenShards(dir, index);
  } else {
    status = NoWeights(dir);
  }
  if (!status.ok()) return status;
  return checkpoint;
}

absl::Status Checkpoint::OpenSingle(const std::string& path) {
  absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(path);
  if (!file.ok()) return file.status();
  files_.push_back(std::make_unique<SafetensorsFile>(*std::move(file)));
  for (const auto& [name, entry] : files_.back()->tensors()) tensors_[name] = &entry;
  return absl::OkStatus();
}

absl::Status Checkpoint::OpenShards(const std::string& dir, const std::string& index_path) {
  absl::StatusOr<std::map<std::string, std::string>> map = ReadWeightMap(index_path);
  if (!map.ok()) return map.status();
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : *map) shards.insert(shard);

  std::vector<std::string> problems;
  for (const std::string& shard : shards) {
    const std::string path = (std::filesystem::path(dir) / shard).string();
    absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(path);
    if (!file.ok()) {
      problems.emplace_back(file.status().message());
      continue;
    }
    files_.push_back(std::make_unique<SafetensorsFile>(*std::move(file)));
    for (const auto& [name, entry] : files_.back()->tensors()) {
      const auto listed = map->find(name);
      if (listed == map->end()) {
        problems.push_back(absl::StrCat(name, ": in ", shard, " but not in the index"));
      } else if (listed->second != shard) {
        problems.push_back(
            absl::StrCat(name, ": the index says ", listed->second, ", found in ", shard));
      } else {
        tensors_[name] = &entry;
      }
    }
    for (const auto& [tensor, listed] : *map) {
      if (listed == shard && files_.back()->Find(tensor) == nullptr) {
        problems.push_back(absl::StrCat(tensor, ": the index says ", shard, ", not there"));
      }
    }
  }
  if (problems.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(index_path, " and its shards:\n  ", absl::StrJoin(problems, "\n  ")));
}

absl::Status CheckTensors(const Checkpoint& checkpoint, const std::vector<TensorSpec>& specs,
                          bool tied, std::vector<std::string>* notices) {
  std::vector<std::string> problems;
  std::set<std::string> wanted;
  for (const TensorSpec& spec : specs) {
    wanted.insert(spec.name);
    const SafetensorsEntry* entry = checkpoint.Find(spec.name);
    if (entry == nullptr) {
      problems.push_back(absl::StrCat("missing: ", spec.name, " ", ShapeText(spec.shape)));
      continue;
    }
    if (entry->shape != spec.shape) {
      problems.push_back(absl::StrCat("misshapen: ", spec.name, ": shape ", ShapeText(entry->shape),
                                      ", config wants ", ShapeText(spec.shape)));
    }
    if (!ParseSourceDType(entry->dtype).has_value()) {
      problems.push_back(absl::StrCat("unreadable: ", spec.name, ": dtype ", entry->dtype,
                                      ", want F32, BF16 or F16"));
    }
  }
  for (const auto& [name, entry] : checkpoint.tensors()) {
    if (wanted.count(name) > 0) continue;
    std::string problem;
    if (tied && name == kLmHead) {
      problem = CheckTiedHead(checkpoint, notices);
    } else {
      problem = absl::StrCat("unexpected: ", name, " ", ShapeText(entry->shape));
    }
    if (!problem.empty()) problems.push_back(std::move(problem));
  }
  if (problems.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the checkpoint's tensors do not match its config.json (", problems.size(),
                   problems.size() == 1 ? " problem):\n  " : " problems):\n  ",
                   absl::StrJoin(problems, "\n  ")));
}

}  // namespace osdn::tools
