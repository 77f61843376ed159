#include "engine/constraint.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/row_math.h"
#include "engine/sha256.h"

namespace osdn {
namespace {

constexpr size_t kWordBits = 32;
constexpr size_t kFingerprintBytes = 32;
// Beside a visit of each node of the vocabulary's tree: the work of all places met on one walk.
constexpr uint64_t kMaxWalkWork = 1'000'000;

absl::Status TooComplex() {
  return absl::ResourceExhaustedError(
      "constraint: following the text takes too much work here: the grammar is too ambiguous, or "
      "the text is nested some thousand levels deep");
}

}  // namespace

absl::string_view Name(ConstraintSpec::Kind kind) {
  switch (kind) {
    case ConstraintSpec::Kind::kJsonSchema:
      return "json_schema";
    case ConstraintSpec::Kind::kRegex:
      return "regex";
    case ConstraintSpec::Kind::kGbnf:
      return "gbnf";
    case ConstraintSpec::Kind::kNone:
      break;
  }
  return "constraint";
}

std::string Fingerprint(const ConstraintSpec& spec) {
  const std::string text = absl::StrCat(Name(spec.kind), ":", spec.source);
  return Sha256Digest({reinterpret_cast<const std::byte*>(text.data()), text.size()});
}

CompiledConstraint::Automaton::Automaton(const Grammar* grammar)
    : recognizer(grammar, Recognizer::Limits()) {}

CompiledConstraint::CompiledConstraint(std::string fingerprint, Grammar grammar,
                                       std::shared_ptr<const TokenTrie> vocabulary,
                                       size_t max_bytes)
    : fingerprint_(std::move(fingerprint)),
      grammar_(std::move(grammar)),
      vocabulary_(std::move(vocabulary)),
      max_bytes_(max_bytes),
      automaton_(std::make_shared<Automaton>(&grammar_)),
      limit_(max_bytes) {}

size_t CompiledConstraint::AutomatonBytes(const Automaton& automaton) const {
  const size_t mask = (vocabulary_->vocab_size() + kWordBits - 1) / kWordBits * sizeof(uint32_t);
  return automaton.recognizer.size_bytes() + automaton.masks.size() * mask +
         automaton.seen.size() * sizeof(uint32_t);
}

size_t CompiledConstraint::bytes() const {
  absl::MutexLock lock(&mutex_);
  return grammar_.size_bytes() + AutomatonBytes(*automaton_);
}

std::shared_ptr<CompiledConstraint::Automaton> CompiledConstraint::Current(
    std::shared_ptr<Automaton> automaton, Place* place) const {
  if (AutomatonBytes(*automaton_) > limit_) {
    automaton_ = std::make_shared<Automaton>(&grammar_);
    limit_ = max_bytes_;
  }
  if (automaton == automaton_) return automaton;
  *place = automaton_->recognizer.Import(automaton->recognizer, *place);
  // Where what is in use fills it already, it is not to be thrown away at every step.
  limit_ = std::max(limit_, 2 * AutomatonBytes(*automaton_));
  return automaton_;
}

absl::StatusOr<absl::Span<const uint32_t>> CompiledConstraint::Allowed(Automaton* automaton,
                                                                       Place place) const {
  const auto known = automaton->masks.find(place);
  if (known != automaton->masks.end()) return absl::MakeConstSpan(known->second);
  std::vector<uint32_t> mask((vocabulary_->vocab_size() + kWordBits - 1) / kWordBits);
  Recognizer& recognizer = automaton->recognizer;
  const absl::Span<const TokenTrie::Node> nodes = vocabulary_->nodes();
  std::vector<Place> path(vocabulary_->max_depth() + 1);
  path[0] = place;
  const uint32_t walk = ++automaton->walk;
  uint64_t work = 0;
  for (size_t i = 0; i < nodes.size();) {
    const Place next = recognizer.Step(path[nodes[i].depth - 1], nodes[i].byte);
    if (next == Recognizer::kDead) {
      i = nodes[i].end;
      continue;
    }
    if (next == Recognizer::kTooComplex) return TooComplex();
    if (next >= automaton->seen.size()) automaton->seen.resize(next + next / 2 + 64);
    // Counted as if nothing were known yet, so that the limit depends on the text alone.
    if (std::exchange(automaton->seen[next], walk) != walk) work += recognizer.work(next);
    if (work > kMaxWalkWork) return TooComplex();
    for (const int32_t token : vocabulary_->tokens(i)) {
      mask[static_cast<size_t>(token) / kWordBits] |= 1U
                                                      << (static_cast<size_t>(token) % kWordBits);
    }
    path[nodes[i].depth] = next;
    ++i;
  }
  return absl::MakeConstSpan(automaton->masks[place] = std::move(mask));
}

ConstraintMatcher::ConstraintMatcher(std::shared_ptr<const CompiledConstraint> constraint)
    : constraint_(std::move(constraint)) {
  absl::MutexLock lock(&constraint_->mutex_);
  automaton_ = constraint_->automaton_;
  place_ = automaton_->recognizer.start();
  // With nothing to read: the empty text is the only one.
  complete_ = automaton_->recognizer.is_last(place_);
}

absl::StatusOr<ConstraintMatcher> ConstraintMatcher::Resume(
    std::shared_ptr<const CompiledConstraint> constraint, absl::string_view state) {
  if (state.size() < kFingerprintBytes) return absl::DataLossError("the constraint's state is cut");
  if (!absl::StartsWith(state, constraint->fingerprint())) {
    return absl::FailedPreconditionError(
        "the state was left in a text under another constraint: send that one to go on with the "
        "text, or a prompt to begin a new one");
  }
  ConstraintMatcher matcher(std::move(constraint));
  if (absl::Status s = matcher.Follow(state.substr(kFingerprintBytes)); !s.ok()) return s;
  if (matcher.complete()) {
    return absl::FailedPreconditionError(
        "the state's constrained text is complete: send a prompt to begin a new one");
  }
  return matcher;
}

std::string ConstraintMatcher::SaveState() const {
  return absl::StrCat(constraint_->fingerprint(), text_);
}

absl::Status ConstraintMatcher::Mask(absl::Span<const int32_t> end_tokens,
                                     absl::Span<float> logits) {
  absl::MutexLock lock(&constraint_->mutex_);
  automaton_ = constraint_->Current(std::move(automaton_), &place_);
  const absl::StatusOr<absl::Span<const uint32_t>> allowed =
      constraint_->Allowed(automaton_.get(), place_);
  if (!allowed.ok()) return allowed.status();
  std::vector<uint32_t> mask(allowed->begin(), allowed->end());
  mask.resize((logits.size() + kWordBits - 1) / kWordBits);
  const bool may_end = automaton_->recognizer.accepts(place_);
  for (const int32_t token : end_tokens) {
    if (token < 0 || static_cast<size_t>(token) >= logits.size()) continue;
    const uint32_t bit = 1U << (static_cast<size_t>(token) % kWordBits);
    uint32_t& word = mask[static_cast<size_t>(token) / kWordBits];
    word = may_end ? word | bit : word & ~bit;
  }
  row_math::ApplyBitmask(mask, logits);
  return absl::OkStatus();
}

absl::Status ConstraintMatcher::Accept(int32_t token) {
  const absl::string_view bytes = constraint_->vocabulary_->bytes(token);
  if (bytes.empty()) {
    return absl::InternalError(absl::StrCat("token ", token, " is no text for the constraint"));
  }
  return Follow(bytes);
}

absl::Status ConstraintMatcher::Follow(absl::string_view bytes) {
  absl::MutexLock lock(&constraint_->mutex_);
  automaton_ = constraint_->Current(std::move(automaton_), &place_);
  Recognizer& recognizer = automaton_->recognizer;
  Recognizer::Place place = place_;
  for (const char byte : bytes) {
    place = recognizer.Step(place, static_cast<uint8_t>(byte));
    if (place == Recognizer::kTooComplex) return TooComplex();
    if (place == Recognizer::kDead) {
      return absl::InternalError("the constraint does not allow what was chosen");
    }
  }
  place_ = place;
  text_.append(bytes.data(), bytes.size());
  complete_ = recognizer.is_last(place);
  return absl::OkStatus();
}

}  // namespace osdn
