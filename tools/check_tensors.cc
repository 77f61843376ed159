#include "tools/check_tensors.h"

#include <algorithm>
#include <numeric>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tools/float_convert.h"

namespace osdn::tools {
namespace {

using NamedTensors = std::map<std::string, SourceTensor>;

constexpr char kLmHead[] = "lm_head.weight";
constexpr char kEmbeddings[] = "model.embeddings.weight";

// The output head of a checkpoint whose config ties it to the embeddings.
std::string CheckTiedHead(const NamedTensors& tensors, std::vector<std::string>* notices) {
  const auto embeddings = tensors.find(kEmbeddings);
  if (embeddings != tensors.end() && SameElements(tensors.at(kLmHead), embeddings->second)) {
    notices->push_back(
        absl::StrCat(kLmHead, " equals the embeddings it is tied to and is not stored again"));
    return "";
  }
  return absl::StrCat("contradicts tie_word_embeddings: ", kLmHead, " differs from ", kEmbeddings);
}

// The unexpected tensors that may be the missing one by another name: the same shape and the names
// most like it. " (nearest: ...)" or empty.
std::string Nearest(const TensorSpec& spec,
                    const std::vector<std::pair<std::string, const SourceTensor*>>& unexpected) {
  constexpr size_t kShown = 2;
  std::vector<std::pair<size_t, std::string>> ranked;
  for (const auto& [name, tensor] : unexpected) {
    if (tensor->shape != spec.shape) continue;
    const size_t limit = std::max(name.size(), spec.name.size()) / 2;
    const size_t distance = EditDistance(name, spec.name, limit);
    if (distance < limit) ranked.emplace_back(distance, name);
  }
  std::sort(ranked.begin(), ranked.end());
  ranked.resize(std::min(ranked.size(), kShown));
  if (ranked.empty()) return "";
  return absl::StrCat(" (nearest: ",
                      absl::StrJoin(ranked, ", ",
                                    [](std::string* out, const auto& entry) {
                                      absl::StrAppend(out, entry.second);
                                    }),
                      ")");
}

}  // namespace

size_t EditDistance(std::string_view a, std::string_view b, size_t limit) {
  if (std::max(a.size(), b.size()) - std::min(a.size(), b.size()) >= limit) return limit;
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i + 1;
    size_t least = row[0];
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, diagonal + 1, row[j] + 1});
      least = std::min(least, row[j + 1]);
    }
    if (least >= limit) return limit;
  }
  return std::min(row.back(), limit);
}

absl::Status CheckTensors(const NamedTensors& tensors, const std::vector<TensorSpec>& specs,
                          bool tied, std::vector<std::string>* notices) {
  std::set<std::string> wanted;
  for (const TensorSpec& spec : specs) wanted.insert(spec.name);
  std::vector<std::pair<std::string, const SourceTensor*>> unexpected;
  for (const auto& [name, tensor] : tensors) {
    if (wanted.count(name) == 0 && !(tied && name == kLmHead))
      unexpected.emplace_back(name, &tensor);
  }

  std::vector<std::string> problems;
  int suggestions = 64;  // each looks at every unexpected tensor
  for (const TensorSpec& spec : specs) {
    const auto found = tensors.find(spec.name);
    if (found == tensors.end()) {
      problems.push_back(absl::StrCat("missing: ", spec.name, " ", ShapeText(spec.shape),
                                      suggestions-- > 0 ? Nearest(spec, unexpected) : ""));
      continue;
    }
    const SourceTensor& tensor = found->second;
    if (tensor.shape != spec.shape) {
      problems.push_back(absl::StrCat("misshapen: ", spec.name, ": shape ", ShapeText(tensor.shape),
                                      ", config wants ", ShapeText(spec.shape)));
    }
    if (!ParseSourceDType(tensor.dtype).has_value()) {
      problems.push_back(absl::StrCat("unreadable: ", spec.name, ": dtype ", tensor.dtype,
                                      ", want F32, BF16 or F16"));
    }
  }
  for (const auto& [name, tensor] : unexpected) {
    problems.push_back(absl::StrCat("unexpected: ", name, " ", ShapeText(tensor->shape)));
  }
  if (tied && tensors.count(kLmHead) > 0) {
    std::string problem = CheckTiedHead(tensors, notices);
    if (!problem.empty()) problems.push_back(std::move(problem));
  }
  if (problems.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the checkpoint's tensors do not match its config.json (", problems.size(),
                   problems.size() == 1 ? " problem):\n  " : " problems):\n  ",
                   absl::StrJoin(problems, "\n  ")));
}

}  // namespace osdn::tools
