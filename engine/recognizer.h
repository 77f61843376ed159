// Follows texts through a grammar, byte by byte: Earley's algorithm, with what it finds at a place
// of a text kept as a value, so that equal places are worked out once.
#ifndef OSDN_ENGINE_RECOGNIZER_H_
#define OSDN_ENGINE_RECOGNIZER_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/types/span.h"
#include "engine/grammar.h"

namespace osdn {

// How Earley's sets are made values. An item is a state of a rule's automaton and a return: the set
// in which the rule was called, and the rule. A set is known by its kernel, the items that reading
// a byte left; the rest follows from it. Rules that can only end have ended in it. A call in a
// rule's last place passes its caller's return on, so right recursion costs no more than a loop.
// Left recursion and ambiguity need nothing special.
//
// Grows as texts are followed: whoever owns it watches size_bytes(). What one place may cost is
// bounded, and depends on the text alone, not on what was followed before. One thread at a time.
class Recognizer {
 public:
  using Place = uint32_t;
  static constexpr Place kDead = 0;        // no text begins like this
  static constexpr Place kTooComplex = 1;  // a limit was hit

  struct Limits {
    uint32_t max_work = 50'000;  // items and edges of one place; about a millisecond
    // The same, of a place and those it may return to on the longest way: what a text holds in
    // memory. Some thousand open brackets, or some hundred characters of the most ambiguous
    // grammars.
    uint32_t max_depth = 250'000;
  };

  // `grammar` outlives the recognizer.
  Recognizer(const Grammar* grammar, const Limits& limits);

  Place start() const { return start_; }
  // `place` is neither dead nor too complex.
  Place Step(Place place, uint8_t byte);
  // The text may end here.
  bool accepts(Place place) const { return sets_[place]->accepts; }
  // Nothing can follow.
  bool is_last(Place place) const { return !sets_[place]->reads; }
  // What the place cost, once.
  uint32_t work(Place place) const { return sets_[place]->work; }
  size_t num_places() const { return sets_.size(); }
  size_t size_bytes() const { return bytes_; }

  // The place of `other`, which has the same grammar, in this recognizer.
  Place Import(const Recognizer& other, Place place);

 private:
  // State in the upper half, index of the return in the lower one.
  using Item = uint64_t;
  static Item MakeItem(uint32_t state, uint32_t back) { return Item{state} << 32 | back; }
  static uint32_t StateOf(Item item) { return static_cast<uint32_t>(item >> 32); }
  static uint32_t ReturnOf(Item item) { return static_cast<uint32_t>(item); }
  static constexpr uint32_t kFromRoot = 0;

  struct Return {
    Place place = kDead;
    uint32_t rule = 0;
  };
  struct Caller {
    uint32_t rule = 0;
    Item after = 0;  // once the rule is read
  };
  struct Set {
    std::vector<Item> kernel;
    std::vector<Caller> callers;                  // in order of rules
    std::array<uint8_t, 256> class_of{};          // bytes of a class lead to the same place
    std::vector<Place> next;                      // of each class, where it is known
    std::vector<std::vector<Item>> next_kernels;  // where it is not yet
    uint32_t work = 0;
    uint32_t depth = 0;
    bool reads = false;
    bool accepts = false;
  };

  Place Intern(std::vector<Item> kernel);
  // Ends the rules that can do nothing else.
  void EndLast(std::vector<Item>* kernel) const;
  absl::Span<const Caller> CallersOf(const Return& back) const;
  // Works out all that follows from the kernel; false beyond the limits.
  bool Close(Place self, Set* set);
  void Complete(Place self, Item item, Set* set);
  void Call(Place self, Item item, Set* set);
  void Add(Item item);
  uint32_t InternReturn(Place place, uint32_t rule);
  // What each byte leads to from the items that read one.
  bool SortMoves(Set* set);

  const Grammar& grammar_;
  const Limits limits_;
  std::vector<std::unique_ptr<Set>> sets_;
  absl::flat_hash_map<std::vector<Item>, Place> places_;  // by kernel
  std::vector<Return> returns_;
  absl::flat_hash_map<uint64_t, uint32_t> return_index_;
  // Of Close.
  std::vector<Item> items_;
  absl::flat_hash_set<Item> seen_;
  Place start_ = kDead;
  size_t bytes_ = 0;
};

}  // namespace osdn

#endif  // OSDN_ENGINE_RECOGNIZER_H_
