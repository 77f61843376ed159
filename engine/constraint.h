// What the text of a completion must be: a JSON schema, a regular expression or a GBNF grammar, as
// masks over the vocabulary.
#ifndef OSDN_ENGINE_CONSTRAINT_H_
#define OSDN_ENGINE_CONSTRAINT_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "engine/grammar.h"
#include "engine/recognizer.h"
#include "engine/token_trie.h"

namespace osdn {

struct ConstraintSpec {
  enum class Kind : uint8_t { kNone, kJsonSchema, kRegex, kGbnf };
  Kind kind = Kind::kNone;
  std::string source{};

  bool operator==(const ConstraintSpec&) const = default;
};

// Its name in osdn.v1.Constraint.
absl::string_view Name(ConstraintSpec::Kind kind);
// SHA-256 of kind and source, 32 bytes.
std::string Fingerprint(const ConstraintSpec& spec);

// A constraint and a vocabulary, made ready, with what has been worked out about them so far.
// Shared by all sequences that use it, on any thread.
class CompiledConstraint {
 public:
  // What is worked out is forgotten beyond `max_bytes`.
  CompiledConstraint(std::string fingerprint, Grammar grammar,
                     std::shared_ptr<const TokenTrie> vocabulary, size_t max_bytes);

  const std::string& fingerprint() const { return fingerprint_; }
  // Held now, about.
  size_t bytes() const;

 private:
  friend class ConstraintMatcher;
  using Place = Recognizer::Place;
  // Places live as long as the automaton that numbered them.
  struct Automaton {
    explicit Automaton(const Grammar* grammar);
    Recognizer recognizer;
    absl::flat_hash_map<Place, std::vector<uint32_t>> masks;
    std::vector<uint32_t> seen;  // in which walk a place was met last
    uint32_t walk = 0;
  };
  size_t AutomatonBytes(const Automaton& automaton) const;
  // The automaton to go on with, and `*place` of `automaton` in it.
  std::shared_ptr<Automaton> Current(std::shared_ptr<Automaton> automaton, Place* place) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<absl::Span<const uint32_t>> Allowed(Automaton* automaton, Place place) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::string fingerprint_;
  const Grammar grammar_;
  const std::shared_ptr<const TokenTrie> vocabulary_;
  const size_t max_bytes_;
  mutable absl::Mutex mutex_;
  mutable std::shared_ptr<Automaton> automaton_ ABSL_GUARDED_BY(mutex_);
  mutable size_t limit_ ABSL_GUARDED_BY(mutex_);  // of this automaton
};

// How far one completion has got: a few words and its text, so a copy (a fork) is cheap. One
// thread.
//
// A step costs at most one walk over the vocabulary's tree, and each place met on it a bounded
// amount of work: a grammar that wants more ends with RESOURCE_EXHAUSTED, at the same place of the
// same text whatever else is going on.
class ConstraintMatcher {
 public:
  explicit ConstraintMatcher(std::shared_ptr<const CompiledConstraint> constraint);
  // Goes on where SaveState was called. FAILED_PRECONDITION where `state` is of another constraint,
  // or of a text to which nothing can be added; DATA_LOSS where it is none.
  static absl::StatusOr<ConstraintMatcher> Resume(
      std::shared_ptr<const CompiledConstraint> constraint, absl::string_view state);
  // For a snapshot: the constraint's fingerprint and the text so far.
  std::string SaveState() const;

  // -inf for what must not come next. `end_tokens` end the completion: they stay only where the
  // text is complete, whatever bytes they have.
  absl::Status Mask(absl::Span<const int32_t> end_tokens, absl::Span<float> logits);
  // `token` was chosen and is no end token. INTERNAL if the mask did not allow it.
  absl::Status Accept(int32_t token);
  // Nothing but the end may follow, so the completion is over.
  bool complete() const { return complete_; }

 private:
  absl::Status Follow(absl::string_view bytes);

  std::shared_ptr<const CompiledConstraint> constraint_;
  std::shared_ptr<CompiledConstraint::Automaton> automaton_;
  Recognizer::Place place_ = Recognizer::kDead;
  bool complete_ = false;
  std::string text_;
};

}  // namespace osdn

#endif  // OSDN_ENGINE_CONSTRAINT_H_
