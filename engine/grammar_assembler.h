// Turns the expressions of a GrammarBuilder into a Grammar's automata.
#ifndef OSDN_ENGINE_GRAMMAR_ASSEMBLER_H_
#define OSDN_ENGINE_GRAMMAR_ASSEMBLER_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/grammar.h"

namespace osdn {

// For one use. Expressions become automata with empty edges, these are followed out, and what leads
// to no end is cut away.
class GrammarAssembler {
 public:
  GrammarAssembler(const GrammarBuilder& builder, const GrammarLimits& limits)
      : builder_(builder), limits_(limits) {}
  absl::StatusOr<Grammar> Assemble();

 private:
  using Node = GrammarBuilder::Node;
  struct Draft {
    std::vector<uint32_t> empty;  // edges that read nothing
    std::vector<Grammar::ByteEdge> bytes;
    std::vector<Grammar::CallEdge> calls;
    bool is_final = false;
  };

  uint32_t NewState();
  // Leaves only what `from` gets: nothing ever leads back to it but through `to`.
  void Expand(Node node, uint32_t from, uint32_t to);
  void ExpandRepeat(const GrammarBuilder::Expression& expression, uint32_t from, uint32_t to);
  void ExpandCharacters(const std::vector<CharacterRange>& ranges, uint32_t from, uint32_t to);
  void ExpandUtf8(CharacterRange range, uint32_t from, uint32_t to);
  // Spends one unit of the limits; false when there is none left (`status_` says which).
  bool Spend(size_t states, size_t edges);
  // No edge reads nothing any more.
  void FollowEmptyEdges();
  // What reaches the end of its rule: with any bytes, or with none.
  struct Ends {
    std::vector<bool> states;
    std::vector<bool> rules;
  };
  Ends FindEnds(bool through_bytes) const;
  void CutDeadEnds();
  Grammar Pack() const;

  const GrammarBuilder& builder_;
  const GrammarLimits limits_;
  absl::Status status_;
  std::vector<Draft> drafts_;
  std::vector<uint32_t> starts_;  // of each rule
  std::vector<bool> nullable_;
  size_t edges_ = 0;
  uint32_t until_clock_ = 0;
};

}  // namespace osdn

#endif  // OSDN_ENGINE_GRAMMAR_ASSEMBLER_H_
