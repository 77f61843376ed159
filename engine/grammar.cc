#include "engine/grammar.h"

#include <algorithm>
#include <limits>

#include "engine/grammar_assembler.h"

namespace osdn {
namespace {

constexpr uint32_t kFirstSurrogate = 0xD800;
constexpr uint32_t kLastSurrogate = 0xDFFF;
// Repetitions of more states than this in all call what they repeat instead of copying it. Calls
// are smaller; copies keep the number of ways to read one text within the number of states.
constexpr size_t kMaxCopied = 2000;
constexpr size_t kMaxWeight = std::numeric_limits<size_t>::max() / 4;

size_t Saturated(double weight) {
  return weight < static_cast<double>(kMaxWeight) ? static_cast<size_t>(weight) : kMaxWeight;
}

}  // namespace

size_t Grammar::size_bytes() const {
  return states_.size() * sizeof(State) + byte_edges_.size() * sizeof(ByteEdge) +
         call_edges_.size() * sizeof(CallEdge) + rules_.size() * sizeof(Rule);
}

std::vector<CharacterRange> Normalise(const std::vector<CharacterRange>& ranges) {
  std::vector<CharacterRange> parts;
  for (CharacterRange range : ranges) {
    range.high = std::min(range.high, kMaxCharacter);
    if (range.low < kFirstSurrogate && range.low <= range.high) {
      parts.push_back({range.low, std::min(range.high, kFirstSurrogate - 1)});
    }
    const uint32_t above = std::max(range.low, kLastSurrogate + 1);
    if (above <= range.high) parts.push_back({above, range.high});
  }
  std::sort(parts.begin(), parts.end(),
            [](const CharacterRange& a, const CharacterRange& b) { return a.low < b.low; });
  std::vector<CharacterRange> merged;
  for (const CharacterRange& part : parts) {
    if (!merged.empty() && part.low <= merged.back().high + 1) {
      merged.back().high = std::max(merged.back().high, part.high);
    } else {
      merged.push_back(part);
    }
  }
  return merged;
}

std::vector<CharacterRange> Complement(const std::vector<CharacterRange>& ranges) {
  std::vector<CharacterRange> others;
  uint32_t next = 0;
  for (const CharacterRange& range : Normalise(ranges)) {
    if (range.low > next) others.push_back({next, range.low - 1});
    next = range.high + 1;
  }
  if (next <= kMaxCharacter) others.push_back({next, kMaxCharacter});
  return Normalise(others);
}

void AppendUtf8(uint32_t character, std::string* out) {
  const auto put = [out](uint32_t byte) { out->push_back(static_cast<char>(byte)); };
  const auto tail = [&](int shift) { put(0x80 | (character >> shift & 0x3F)); };
  if (character < 0x80) {
    put(character);
  } else if (character < 0x800) {
    put(0xC0 | character >> 6);
    tail(0);
  } else if (character < 0x10000) {
    put(0xE0 | character >> 12);
    tail(6);
    tail(0);
  } else {
    put(0xF0 | character >> 18);
    tail(12);
    tail(6);
    tail(0);
  }
}

std::optional<uint32_t> TakeUtf8(absl::string_view* text) {
  if (text->empty()) return std::nullopt;
  const auto byte = [text](size_t i) { return static_cast<unsigned char>((*text)[i]); };
  const uint32_t first = byte(0);
  const size_t length = first < 0x80 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  if (text->size() < length || (first >= 0x80 && first < 0xC2) || first > 0xF4) return std::nullopt;
  uint32_t character = length == 1 ? first : first & (0x7FU >> length);
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return std::nullopt;
    character = character << 6 | (byte(i) & 0x3FU);
  }
  const bool overlong = (length == 3 && character < 0x800) || (length == 4 && character < 0x10000);
  if (overlong || character > kMaxCharacter ||
      (character >= kFirstSurrogate && character <= kLastSurrogate)) {
    return std::nullopt;
  }
  text->remove_prefix(length);
  return character;
}

GrammarBuilder::GrammarBuilder() { Declare(); }

GrammarBuilder::Node GrammarBuilder::Add(Expression expression) {
  Node node;
  node.index = static_cast<uint32_t>(expressions_.size());
  expressions_.push_back(std::move(expression));
  return node;
}

GrammarBuilder::Node GrammarBuilder::Empty() { return Literal(""); }

GrammarBuilder::Node GrammarBuilder::Literal(absl::string_view bytes) {
  return Add({.kind = Kind::kLiteral, .literal = std::string(bytes), .weight = bytes.size()});
}

GrammarBuilder::Node GrammarBuilder::OneOf(std::vector<CharacterRange> ranges) {
  ranges = Normalise(ranges);
  size_t weight = 1;
  for (const CharacterRange& range : ranges) weight += range.high < 0x80 ? 0 : 3;
  return Add({.kind = Kind::kOneOf, .ranges = std::move(ranges), .weight = weight});
}

GrammarBuilder::Node GrammarBuilder::Sequence(std::vector<Node> nodes) {
  double weight = 0;
  for (const Node node : nodes) weight += static_cast<double>(Weight(node));
  return Add({.kind = Kind::kSequence, .children = std::move(nodes), .weight = Saturated(weight)});
}

GrammarBuilder::Node GrammarBuilder::Choice(std::vector<Node> nodes) {
  double weight = 0;
  for (const Node node : nodes) weight += static_cast<double>(Weight(node));
  return Add({.kind = Kind::kChoice, .children = std::move(nodes), .weight = Saturated(weight)});
}

GrammarBuilder::Node GrammarBuilder::Repeat(Node node, uint64_t min, std::optional<uint64_t> max) {
  const double copies = static_cast<double>(max.has_value() ? *max : min + 1);
  if (copies > 1 && Weight(node) > 2 &&
      copies * static_cast<double>(Weight(node)) > static_cast<double>(kMaxCopied)) {
    const uint32_t rule = Declare();
    Define(rule, node);
    node = Call(rule);
  }
  return Add({.kind = Kind::kRepeat,
              .children = {node},
              .min = min,
              .max = max,
              .weight = Saturated(copies * static_cast<double>(Weight(node) + 1))});
}

uint32_t GrammarBuilder::Declare() {
  rules_.emplace_back();
  return static_cast<uint32_t>(rules_.size() - 1);
}

void GrammarBuilder::Define(uint32_t rule, Node node) { rules_[rule] = node; }

GrammarBuilder::Node GrammarBuilder::Call(uint32_t rule) {
  return Add({.kind = Kind::kCall, .rule = rule, .weight = 1});
}

absl::StatusOr<Grammar> GrammarBuilder::Build(const GrammarLimits& limits) const {
  return GrammarAssembler(*this, limits).Assemble();
}

}  // namespace osdn
