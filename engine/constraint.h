// What the text of a completion must be: a JSON schema, a regular expression or a GBNF grammar, as
// masks over the vocabulary. Hides XGrammar, whose headers engine/constraint.cc alone includes.
#ifndef OSDN_ENGINE_CONSTRAINT_H_
#define OSDN_ENGINE_CONSTRAINT_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace osdn {

struct ConstraintSpec {
  enum class Kind : uint8_t { kNone, kJsonSchema, kRegex, kGbnf };
  Kind kind = Kind::kNone;
  std::string source{};

  bool operator==(const ConstraintSpec&) const = default;
};

// A constraint and a vocabulary, made ready: what may follow where. Immutable, shared by all
// sequences that use it, on any thread.
class CompiledConstraint {
 public:
  ~CompiledConstraint();
  size_t bytes() const { return bytes_; }

 private:
  friend class ConstraintCompiler;
  friend class ConstraintMatcher;
  struct Impl;
  explicit CompiledConstraint(std::unique_ptr<const Impl> impl, size_t bytes);

  std::unique_ptr<const Impl> impl_;
  size_t bytes_;
};

// How far one completion has got. One thread.
class ConstraintMatcher {
 public:
  // `end_tokens` end the completion: allowed only where the text is complete.
  ConstraintMatcher(std::shared_ptr<const CompiledConstraint> constraint,
                    absl::Span<const int32_t> end_tokens);
  ~ConstraintMatcher();

  // A matcher that has taken the same tokens: by replaying them.
  std::unique_ptr<ConstraintMatcher> Fork() const;

  // `token` was chosen and is no end token. INTERNAL if the mask did not allow it.
  absl::Status Accept(int32_t token);
  // Nothing but the end may follow, so the completion is over.
  bool complete() const { return complete_; }
  // -inf for what must not come next.
  void Mask(absl::Span<float> logits) const;
  absl::Span<const int32_t> accepted() const { return accepted_; }

 private:
  struct Impl;
  void Refill();

  std::shared_ptr<const CompiledConstraint> constraint_;
  std::vector<int32_t> end_tokens_;
  std::unique_ptr<Impl> impl_;
  std::vector<int32_t> accepted_;
  std::vector<uint32_t> allowed_;  // a bit a token
  bool complete_ = false;
};

struct ConstraintLimits {
  size_t max_source_bytes = 64 << 10;
  size_t max_cache_bytes = 64 << 20;  // of compiled constraints
  std::chrono::milliseconds max_compile_time{2000};
};

// Compiles and remembers the last used. Thread-safe; compiling is slow work for a thread of its
// own, one at a time.
class ConstraintCompiler {
 public:
  // `token_bytes[id]` is what a token adds to the text; tokens that add nothing are never allowed.
  static absl::StatusOr<std::unique_ptr<ConstraintCompiler>> Create(
      std::vector<std::string> token_bytes, const ConstraintLimits& limits);
  ~ConstraintCompiler();

  // INVALID_ARGUMENT with what is wrong and where; for JSON schemas every keyword that is not
  // supported is refused by name and place. RESOURCE_EXHAUSTED beyond size or time.
  absl::StatusOr<std::shared_ptr<const CompiledConstraint>> Compile(const ConstraintSpec& spec);

 private:
  struct Impl;
  explicit ConstraintCompiler(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace osdn

#endif  // OSDN_ENGINE_CONSTRAINT_H_
