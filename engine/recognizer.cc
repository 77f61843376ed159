#include "engine/recognizer.h"

#include <algorithm>
#include <utility>

namespace osdn {
namespace {

constexpr Recognizer::Place kUnknown = ~Recognizer::Place{0};
// What the tables hold for a set beside its vectors, about.
constexpr size_t kSetOverhead = 256;
// The same in units of work.
constexpr uint32_t kSetWork = 32;

}  // namespace

Recognizer::Recognizer(const Grammar* grammar, const Limits& limits)
    : grammar_(*grammar), limits_(limits) {
  sets_.resize(2);  // kDead and kTooComplex have none
  returns_.emplace_back();
  start_ = Intern({MakeItem(grammar_.start(Grammar::kRoot), kFromRoot)});
}

Recognizer::Place Recognizer::Step(Place place, uint8_t byte) {
  Set& set = *sets_[place];  // stays where it is
  const uint8_t byte_class = set.class_of[byte];
  if (set.next[byte_class] == kUnknown) {
    set.next[byte_class] = Intern(std::move(set.next_kernels[byte_class]));
  }
  return set.next[byte_class];
}

void Recognizer::EndLast(std::vector<Item>* kernel) const {
  std::vector<Item> ended;
  for (const Item item : *kernel) {
    if (ReturnOf(item) == kFromRoot || !grammar_.is_last(StateOf(item))) {
      ended.push_back(item);
      continue;
    }
    // Where it was called is not the last place of a rule again: Call passes that on.
    for (const Caller& caller : CallersOf(returns_[ReturnOf(item)])) ended.push_back(caller.after);
    if (ended.size() > 2 * size_t{limits_.max_work}) break;  // too complex, whatever else comes
  }
  *kernel = std::move(ended);
}

absl::Span<const Recognizer::Caller> Recognizer::CallersOf(const Return& back) const {
  const std::vector<Caller>& callers = sets_[back.place]->callers;
  const auto first =
      std::lower_bound(callers.begin(), callers.end(), back.rule,
                       [](const Caller& other, uint32_t rule) { return other.rule < rule; });
  const auto last =
      std::find_if(first, callers.end(), [&](const Caller& c) { return c.rule != back.rule; });
  return absl::MakeConstSpan(callers).subspan(static_cast<size_t>(first - callers.begin()),
                                              static_cast<size_t>(last - first));
}

Recognizer::Place Recognizer::Intern(std::vector<Item> kernel) {
  EndLast(&kernel);
  std::sort(kernel.begin(), kernel.end());
  kernel.erase(std::unique(kernel.begin(), kernel.end()), kernel.end());
  const auto known = places_.find(kernel);
  if (known != places_.end()) return known->second;
  auto place = static_cast<Place>(sets_.size());
  auto set = std::make_unique<Set>();
  set->kernel = kernel;
  bytes_ += kSetOverhead + sizeof(Set) + 2 * kernel.size() * sizeof(Item);
  if (Close(place, set.get())) {
    sets_.push_back(std::move(set));
  } else {
    place = kTooComplex;
  }
  places_.emplace(std::move(kernel), place);
  return place;
}

bool Recognizer::Close(Place self, Set* set) {
  items_.clear();
  seen_.clear();
  for (const Item item : set->kernel) {
    if (ReturnOf(item) != kFromRoot) {
      set->depth = std::max(set->depth, sets_[returns_[ReturnOf(item)].place]->depth);
    }
    Add(item);
  }
  for (size_t i = 0; i < items_.size(); ++i) {
    const Item item = items_[i];
    set->work += 1 + static_cast<uint32_t>(grammar_.calls(StateOf(item)).size());
    if (grammar_.is_final(StateOf(item))) Complete(self, item, set);
    Call(self, item, set);
    if (set->work > limits_.max_work) return false;
  }
  std::stable_sort(set->callers.begin(), set->callers.end(),
                   [](const Caller& a, const Caller& b) { return a.rule < b.rule; });
  set->callers.shrink_to_fit();
  bytes_ += set->callers.size() * sizeof(Caller);
  return SortMoves(set);
}

bool Recognizer::SortMoves(Set* set) {
  std::array<bool, 257> begins{};
  for (const Item item : items_) {
    for (const Grammar::ByteEdge& edge : grammar_.bytes(StateOf(item))) {
      begins[edge.low] = true;
      begins[size_t{edge.high} + 1] = true;
    }
  }
  uint8_t byte_class = 0;
  for (size_t byte = 0; byte < 256; ++byte) {
    if (byte > 0 && begins[byte]) ++byte_class;
    set->class_of[byte] = byte_class;
  }
  set->next_kernels.resize(size_t{byte_class} + 1);
  for (const Item item : items_) {
    for (const Grammar::ByteEdge& edge : grammar_.bytes(StateOf(item))) {
      const size_t last = set->class_of[edge.high];
      for (size_t c = set->class_of[edge.low]; c <= last; ++c) {
        set->next_kernels[c].push_back(MakeItem(edge.target, ReturnOf(item)));
        ++set->work;
      }
    }
    if (set->work > limits_.max_work) return false;
  }
  set->depth += set->work + kSetWork;
  if (set->depth > limits_.max_depth) return false;
  for (const std::vector<Item>& kernel : set->next_kernels) {
    set->next.push_back(kernel.empty() ? kDead : kUnknown);
    set->reads = set->reads || !kernel.empty();
    bytes_ += sizeof(std::vector<Item>) + sizeof(Place) + kernel.size() * sizeof(Item);
  }
  return true;
}

void Recognizer::Complete(Place self, Item item, Set* set) {
  if (ReturnOf(item) == kFromRoot) {
    set->accepts = true;
    return;
  }
  const Return back = returns_[ReturnOf(item)];
  // A rule that was called and read here has no text: Call went past it already.
  if (back.place == self) return;
  for (const Caller& caller : CallersOf(back)) {
    ++set->work;
    Add(caller.after);
  }
}

void Recognizer::Call(Place self, Item item, Set* set) {
  for (const Grammar::CallEdge& call : grammar_.calls(StateOf(item))) {
    const Item after = MakeItem(call.target, ReturnOf(item));
    if (grammar_.is_last(call.target)) {
      Add(MakeItem(grammar_.start(call.rule), ReturnOf(item)));
    } else {
      set->callers.push_back({call.rule, after});
      Add(MakeItem(grammar_.start(call.rule), InternReturn(self, call.rule)));
    }
    if (grammar_.is_nullable(call.rule)) Add(after);
  }
}

void Recognizer::Add(Item item) {
  if (seen_.insert(item).second) items_.push_back(item);
}

uint32_t Recognizer::InternReturn(Place place, uint32_t rule) {
  const auto [it, is_new] = return_index_.try_emplace(uint64_t{place} << 32 | rule,
                                                      static_cast<uint32_t>(returns_.size()));
  if (is_new) {
    returns_.push_back({place, rule});
    bytes_ += 4 * sizeof(Return);
  }
  return it->second;
}

Recognizer::Place Recognizer::Import(const Recognizer& other, Place place) {
  absl::flat_hash_map<Place, Place> imported;
  std::vector<Place> open = {place};
  while (!open.empty()) {
    const Place current = open.back();
    if (imported.contains(current)) {
      open.pop_back();
      continue;
    }
    const std::vector<Item>& kernel = other.sets_[current]->kernel;
    const size_t before = open.size();
    for (const Item item : kernel) {
      const uint32_t back = ReturnOf(item);
      if (back != kFromRoot && !imported.contains(other.returns_[back].place)) {
        open.push_back(other.returns_[back].place);
      }
    }
    if (open.size() > before) continue;  // what it returns to comes first
    open.pop_back();
    std::vector<Item> mapped;
    for (const Item item : kernel) {
      uint32_t back = ReturnOf(item);
      if (back != kFromRoot) {
        const Return& from = other.returns_[back];
        back = InternReturn(imported.at(from.place), from.rule);
      }
      mapped.push_back(MakeItem(StateOf(item), back));
    }
    imported[current] = Intern(std::move(mapped));
  }
  return imported.at(place);
}

}  // namespace osdn
