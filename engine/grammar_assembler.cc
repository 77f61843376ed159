#include "engine/grammar_assembler.h"

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/str_cat.h"

namespace osdn {
namespace {

constexpr uint32_t kWorkPerClock = 4096;

// Characters of one length in UTF-8.
struct Plane {
  CharacterRange range;
  int length = 0;
};
constexpr std::array<Plane, 4> kPlanes = {
    {{{0x0, 0x7F}, 1}, {{0x80, 0x7FF}, 2}, {{0x800, 0xFFFF}, 3}, {{0x10000, kMaxCharacter}, 4}}};

}  // namespace

uint32_t GrammarAssembler::NewState() {
  Spend(1, 0);
  drafts_.emplace_back();
  return static_cast<uint32_t>(drafts_.size() - 1);
}

bool GrammarAssembler::Spend(size_t states, size_t edges) {
  if (!status_.ok()) return false;
  edges_ += edges;
  if (drafts_.size() + states > limits_.max_states || edges_ > limits_.max_edges) {
    status_ = absl::InvalidArgumentError(
        absl::StrCat("too large: more than ", limits_.max_states, " states or ", limits_.max_edges,
                     " edges; make repetitions and alternatives smaller"));
    return false;
  }
  if (until_clock_-- > 0) return true;
  until_clock_ = kWorkPerClock;
  if (std::chrono::steady_clock::now() <= limits_.deadline) return true;
  status_ = absl::DeadlineExceededError("took too long to compile: make it simpler");
  return false;
}

absl::StatusOr<Grammar> GrammarAssembler::Assemble() {
  for (size_t rule = 0; rule < builder_.rules_.size(); ++rule) starts_.push_back(NewState());
  for (size_t rule = 0; rule < builder_.rules_.size() && status_.ok(); ++rule) {
    const uint32_t end = NewState();
    drafts_[end].is_final = true;
    Expand(*builder_.rules_[rule], starts_[rule], end);
  }
  if (status_.ok()) FollowEmptyEdges();
  if (!status_.ok()) return status_;
  nullable_ = FindEnds(/*through_bytes=*/false).rules;
  CutDeadEnds();
  const Draft& root = drafts_[starts_[Grammar::kRoot]];
  if (!root.is_final && root.bytes.empty() && root.calls.empty()) {
    return absl::InvalidArgumentError(
        "no text fits: whatever is written, something must still follow");
  }
  return Pack();
}

// NOLINTNEXTLINE(misc-no-recursion): as deep as the front ends let expressions nest
void GrammarAssembler::Expand(Node node, uint32_t from, uint32_t to) {
  const GrammarBuilder::Expression& expression = builder_.expressions_[node.index];
  switch (expression.kind) {
    case GrammarBuilder::Kind::kLiteral: {
      if (expression.literal.empty()) {
        if (Spend(0, 1)) drafts_[from].empty.push_back(to);
        return;
      }
      for (size_t i = 0; i < expression.literal.size() && Spend(0, 1); ++i) {
        const uint32_t next = i + 1 == expression.literal.size() ? to : NewState();
        const auto byte = static_cast<uint8_t>(expression.literal[i]);
        drafts_[from].bytes.push_back({byte, byte, next});
        from = next;
      }
      return;
    }
    case GrammarBuilder::Kind::kOneOf:
      return ExpandCharacters(expression.ranges, from, to);
    case GrammarBuilder::Kind::kSequence: {
      if (expression.children.empty() && Spend(0, 1)) drafts_[from].empty.push_back(to);
      for (size_t i = 0; i < expression.children.size() && status_.ok(); ++i) {
        const uint32_t next = i + 1 == expression.children.size() ? to : NewState();
        Expand(expression.children[i], from, next);
        from = next;
      }
      return;
    }
    case GrammarBuilder::Kind::kChoice:
      for (const Node child : expression.children) {
        if (!Spend(0, 1)) return;
        Expand(child, from, to);
      }
      return;
    case GrammarBuilder::Kind::kRepeat:
      return ExpandRepeat(expression, from, to);
    case GrammarBuilder::Kind::kCall:
      if (Spend(0, 1)) drafts_[from].calls.push_back({expression.rule, to});
      return;
  }
}

// NOLINTNEXTLINE(misc-no-recursion): see Expand
void GrammarAssembler::ExpandRepeat(const GrammarBuilder::Expression& expression, uint32_t from,
                                    uint32_t to) {
  const Node body = expression.children.front();
  for (uint64_t i = 0; i < expression.min && status_.ok(); ++i) {
    const uint32_t next = NewState();
    Expand(body, from, next);
    from = next;
  }
  if (!expression.max.has_value()) {
    const uint32_t loop = NewState();
    drafts_[from].empty.push_back(loop);
    Expand(body, loop, loop);
    from = loop;
  } else {
    for (uint64_t i = expression.min; i < *expression.max && status_.ok(); ++i) {
      const uint32_t next = NewState();
      drafts_[from].empty.push_back(to);
      Expand(body, from, next);
      from = next;
    }
  }
  if (Spend(0, 1)) drafts_[from].empty.push_back(to);
}

void GrammarAssembler::ExpandCharacters(const std::vector<CharacterRange>& ranges, uint32_t from,
                                        uint32_t to) {
  for (const CharacterRange& range : ranges) {
    for (const Plane& plane : kPlanes) {
      const CharacterRange part = {std::max(range.low, plane.range.low),
                                   std::min(range.high, plane.range.high)};
      if (part.low <= part.high && Spend(0, 1)) ExpandUtf8(part, from, to);
    }
  }
}

// NOLINTNEXTLINE(misc-no-recursion): three times at most
void GrammarAssembler::ExpandUtf8(CharacterRange range, uint32_t from, uint32_t to) {
  // Split until all bytes but the first few equal ones run from their least to their greatest.
  for (int shift = 6; range.high >= 0x80; shift += 6) {
    const uint32_t low_bits = (1U << shift) - 1;
    if ((range.low & ~low_bits) == (range.high & ~low_bits)) break;
    if ((range.low & low_bits) != 0) {
      ExpandUtf8({range.low, range.low | low_bits}, from, to);
      return ExpandUtf8({(range.low | low_bits) + 1, range.high}, from, to);
    }
    if ((range.high & low_bits) != low_bits) {
      ExpandUtf8({range.low, (range.high & ~low_bits) - 1}, from, to);
      return ExpandUtf8({range.high & ~low_bits, range.high}, from, to);
    }
  }
  std::string low;
  std::string high;
  AppendUtf8(range.low, &low);
  AppendUtf8(range.high, &high);
  for (size_t i = 0; i < low.size() && Spend(0, 1); ++i) {
    const uint32_t next = i + 1 == low.size() ? to : NewState();
    drafts_[from].bytes.push_back(
        {static_cast<uint8_t>(low[i]), static_cast<uint8_t>(high[i]), next});
    from = next;
  }
}

void GrammarAssembler::FollowEmptyEdges() {
  std::vector<uint32_t> seen(drafts_.size(), 0);  // by which state, plus one
  std::vector<Draft> followed(drafts_.size());
  std::vector<uint32_t> reached;
  for (uint32_t state = 0; state < drafts_.size(); ++state) {
    Draft& all = followed[state];
    reached.assign(1, state);
    seen[state] = state + 1;
    for (size_t i = 0; i < reached.size(); ++i) {
      const Draft& part = drafts_[reached[i]];
      if (!Spend(0, 1 + part.empty.size() + part.bytes.size() + part.calls.size())) return;
      all.is_final = all.is_final || part.is_final;
      all.bytes.insert(all.bytes.end(), part.bytes.begin(), part.bytes.end());
      all.calls.insert(all.calls.end(), part.calls.begin(), part.calls.end());
      for (const uint32_t next : part.empty) {
        if (std::exchange(seen[next], state + 1) != state + 1) reached.push_back(next);
      }
    }
  }
  drafts_ = std::move(followed);
}

GrammarAssembler::Ends GrammarAssembler::FindEnds(bool through_bytes) const {
  Ends ends{std::vector<bool>(drafts_.size(), false), std::vector<bool>(starts_.size(), false)};
  // Backwards from where rules end. A call leads on only once its rule is known to end.
  std::vector<std::vector<uint32_t>> sources(drafts_.size());
  std::vector<std::vector<std::pair<uint32_t, uint32_t>>> callers(drafts_.size());  // state, rule
  std::vector<std::vector<uint32_t>> waiting(starts_.size());
  std::vector<std::vector<uint32_t>> rules_at(drafts_.size());
  for (uint32_t rule = 0; rule < starts_.size(); ++rule) rules_at[starts_[rule]].push_back(rule);
  std::vector<uint32_t> work;
  const auto mark = [&](uint32_t state) {
    if (ends.states[state]) return;
    ends.states[state] = true;
    work.push_back(state);
  };
  for (uint32_t state = 0; state < drafts_.size(); ++state) {
    if (through_bytes) {
      for (const Grammar::ByteEdge& edge : drafts_[state].bytes) {
        sources[edge.target].push_back(state);
      }
    }
    for (const Grammar::CallEdge& call : drafts_[state].calls) {
      callers[call.target].emplace_back(state, call.rule);
    }
    if (drafts_[state].is_final) mark(state);
  }
  while (!work.empty()) {
    const uint32_t state = work.back();
    work.pop_back();
    for (const uint32_t source : sources[state]) mark(source);
    for (const auto& [caller, rule] : callers[state]) {
      ends.rules[rule] ? mark(caller) : waiting[rule].push_back(caller);
    }
    for (const uint32_t rule : rules_at[state]) {
      ends.rules[rule] = true;
      for (const uint32_t caller : waiting[rule]) mark(caller);
    }
  }
  return ends;
}

void GrammarAssembler::CutDeadEnds() {
  const Ends ends = FindEnds(/*through_bytes=*/true);
  for (Draft& draft : drafts_) {
    const auto dead_byte = [&](const Grammar::ByteEdge& edge) { return !ends.states[edge.target]; };
    const auto dead_call = [&](const Grammar::CallEdge& call) {
      return !ends.states[call.target] || !ends.rules[call.rule];
    };
    draft.bytes.erase(std::remove_if(draft.bytes.begin(), draft.bytes.end(), dead_byte),
                      draft.bytes.end());
    draft.calls.erase(std::remove_if(draft.calls.begin(), draft.calls.end(), dead_call),
                      draft.calls.end());
  }
}

Grammar GrammarAssembler::Pack() const {
  constexpr uint32_t kNone = ~uint32_t{0};
  std::vector<uint32_t> place(drafts_.size(), kNone);
  std::vector<uint32_t> order;
  const auto reach = [&](uint32_t state) {
    if (place[state] != kNone) return;
    place[state] = static_cast<uint32_t>(order.size());
    order.push_back(state);
  };
  reach(starts_[Grammar::kRoot]);
  for (size_t i = 0; i < order.size(); ++i) {
    for (const Grammar::ByteEdge& edge : drafts_[order[i]].bytes) reach(edge.target);
    for (const Grammar::CallEdge& call : drafts_[order[i]].calls) {
      reach(starts_[call.rule]);
      reach(call.target);
    }
  }
  Grammar grammar;
  for (size_t rule = 0; rule < starts_.size(); ++rule) {
    const uint32_t start = place[starts_[rule]];
    grammar.rules_.push_back({start == kNone ? 0 : start, nullable_[rule]});
  }
  for (const uint32_t state : order) {
    const Draft& draft = drafts_[state];
    grammar.states_.push_back({static_cast<uint32_t>(grammar.byte_edges_.size()),
                               static_cast<uint32_t>(grammar.call_edges_.size()), draft.is_final});
    for (Grammar::ByteEdge edge : draft.bytes) {
      edge.target = place[edge.target];
      grammar.byte_edges_.push_back(edge);
    }
    for (Grammar::CallEdge call : draft.calls) {
      call.target = place[call.target];
      grammar.call_edges_.push_back(call);
    }
  }
  grammar.states_.push_back({static_cast<uint32_t>(grammar.byte_edges_.size()),
                             static_cast<uint32_t>(grammar.call_edges_.size()), false});
  return grammar;
}

}  // namespace osdn
