#include "tools/weights_key.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace osdn::tools {
namespace {

// Two tensors that every model has, in fla's names with and without the language model around.
constexpr char kNorm[] = "norm.weight";
constexpr char kEmbeddings[] = "embeddings.weight";
constexpr char kBackbone[] = "model.";
constexpr char kHead[] = "lm_head.";

bool IsWrapper(std::string_view part) {
  return part == "_orig_mod" || part == "_fsdp_wrapped_module" ||
         part == "_checkpoint_wrapped_module";
}

std::string WithoutWrappers(const std::string& name) {
  std::vector<std::string> kept = absl::StrSplit(name, '.');
  kept.erase(std::remove_if(kept.begin(), kept.end(), IsWrapper), kept.end());
  return absl::StrJoin(kept, ".");
}

bool IsEma(const std::string& prefix) {
  for (const std::string& part : std::vector<std::string>(absl::StrSplit(prefix, '.'))) {
    if (part == "ema" || part.starts_with("ema_") || part.ends_with("_ema")) {
      return true;
    }
  }
  return false;
}

// A place where a model is: the prefix of its tensors' names, and whether they lack "model.".
struct Place {
  std::string prefix;
  bool bare = false;
};

std::string WithoutDot(std::string text) {
  if (text.ends_with('.')) text.pop_back();
  return text;
}

std::string PlaceText(const std::string& prefix) {
  return prefix.empty() ? "(top level)" : WithoutDot(prefix);
}

std::vector<Place> FindPlaces(const std::set<std::string>& names, std::string_view under) {
  std::vector<Place> places;
  for (const std::string& name : names) {
    if (!name.starts_with(under) || !name.ends_with(kNorm)) continue;
    std::string prefix = name.substr(0, name.size() - (sizeof(kNorm) - 1));
    if (!prefix.empty() && prefix.back() != '.') continue;  // "attn_norm.weight"
    if (names.count(prefix + kEmbeddings) == 0) continue;
    const bool full = prefix == kBackbone || prefix.ends_with(".model.");
    // {"model": backbone} looks like a backbone called model, unless lm_head is inside as well.
    const bool nested = full && names.count(absl::StrCat(prefix, kHead, "weight")) > 0;
    const size_t outer = prefix.size() - (full && !nested ? sizeof(kBackbone) - 1 : 0);
    // The same where "model" is the key that was asked for.
    const bool bare = !full || nested || outer < under.size();
    if (!bare) prefix.resize(outer);
    places.push_back({std::move(prefix), bare});
  }
  return places;
}

absl::StatusOr<Place> ChoosePlace(const std::set<std::string>& names, const std::string& key) {
  const std::string under = key.empty() ? "" : absl::StrCat(WithoutDot(key), ".");
  std::vector<Place> places = FindPlaces(names, under);
  if (key.empty()) {
    const auto ema = std::stable_partition(places.begin(), places.end(),
                                           [](const Place& p) { return !IsEma(p.prefix); });
    if (ema != places.begin()) places.erase(ema, places.end());
  }
  if (places.size() == 1) return places[0];
  if (places.size() > 1) {
    std::vector<std::string> texts;
    texts.reserve(places.size());
    for (const Place& place : places) texts.push_back(PlaceText(place.prefix));
    return absl::InvalidArgumentError(absl::StrCat(
        "several models are in it; choose one with --weights-key: ", absl::StrJoin(texts, ", ")));
  }
  if (under.empty()) {
    // Other names than fla's: only the containers around all of them go.
    Place place;
    for (bool stripped = true; stripped && !names.empty();) {
      stripped = false;
      for (const char* container : {"state_dict.", "model_state_dict.", "module."}) {
        const std::string longer = absl::StrCat(place.prefix, container);
        stripped = std::all_of(names.begin(), names.end(),
                               [&](const std::string& name) { return name.starts_with(longer); });
        if (!stripped) continue;
        place.prefix = longer;
        break;
      }
    }
    return place;
  }
  const auto first = names.lower_bound(under);
  if (first != names.end() && absl::StartsWith(*first, under)) return Place{under};
  std::set<std::string> tops;
  for (const std::string& name : names) tops.insert(name.substr(0, name.find('.')));
  return absl::InvalidArgumentError(absl::StrCat(
      "--weights-key ", key, ": no tensors there; the top level has ", absl::StrJoin(tops, ", ")));
}

}  // namespace

bool IsTrainingState(std::string_view name) {
  const std::string_view top = name.substr(0, name.find('.'));
  for (const std::string_view known :
       {"optimizer", "optimizers", "optim", "optimizer_states", "optimizer_state_dict", "scheduler",
        "lr_scheduler", "lr_schedulers", "train_state", "dataloader", "dataloaders", "rng_state",
        "rng_states", "scaler", "grad_scaler"}) {
    if (top == known) return true;
  }
  return false;
}

absl::StatusOr<SelectedWeights> SelectWeights(const std::map<std::string, SourceTensor>& tensors,
                                              const std::string& key) {
  std::set<std::string> names;
  size_t training = 0;
  std::vector<std::pair<std::string, const std::pair<const std::string, SourceTensor>*>> cleaned;
  for (const auto& item : tensors) {
    if (IsTrainingState(item.first)) {
      ++training;
      continue;
    }
    cleaned.emplace_back(WithoutWrappers(item.first), &item);
    if (names.insert(cleaned.back().first).second) continue;
    return absl::InvalidArgumentError(absl::StrCat("two tensors are called ", cleaned.back().first,
                                                   " without wrappers like _orig_mod"));
  }
  absl::StatusOr<Place> place = ChoosePlace(names, WithoutWrappers(key));
  if (!place.ok()) return place.status();
  SelectedWeights selected;
  selected.prefix = place->prefix;
  size_t outside = 0;
  for (const auto& [name, item] : cleaned) {
    if (!name.starts_with(place->prefix)) {
      ++outside;
      continue;
    }
    std::string inside = name.substr(place->prefix.size());
    if (place->bare && !inside.starts_with(kHead)) inside = absl::StrCat(kBackbone, inside);
    selected.tensors.push_back({std::move(inside), item->first, &item->second});
  }
  if (!place->prefix.empty()) {
    selected.notices.push_back(
        absl::StrCat("the weights are those under ", PlaceText(place->prefix)));
  }
  if (outside > 0) {
    selected.notices.push_back(absl::StrCat(outside, " tensors elsewhere are left out"));
  }
  if (training > 0) {
    selected.notices.push_back(absl::StrCat(training, " tensors of training state are left out"));
  }
  return selected;
}

}  // namespace osdn::tools
