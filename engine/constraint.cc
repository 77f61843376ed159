#include "engine/constraint.h"

#include <xgrammar/compiler.h>
#include <xgrammar/matcher.h>

#include <algorithm>
#include <list>
#include <mutex>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/constraint_syntax.h"
#include "engine/json_schema.h"
#include "engine/row_math.h"
#include "engine/xgrammar_hooks.h"

namespace osdn {
namespace {

constexpr size_t kWordBits = 32;

const char* Name(ConstraintSpec::Kind kind) {
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

}  // namespace

struct CompiledConstraint::Impl {
  xgrammar::CompiledGrammar grammar;
  size_t vocab_size;
};

CompiledConstraint::CompiledConstraint(std::unique_ptr<const Impl> impl, size_t bytes)
    : impl_(std::move(impl)), bytes_(bytes) {}
CompiledConstraint::~CompiledConstraint() = default;

struct ConstraintMatcher::Impl {
  xgrammar::GrammarMatcher matcher;
};

ConstraintMatcher::ConstraintMatcher(std::shared_ptr<const CompiledConstraint> constraint,
                                     absl::Span<const int32_t> end_tokens)
    : constraint_(std::move(constraint)), end_tokens_(end_tokens.begin(), end_tokens.end()) {
  // Ends are decided here: told of no stop token, XGrammar knows text only.
  impl_ = std::make_unique<Impl>(Impl{xgrammar::GrammarMatcher(constraint_->impl_->grammar)});
  allowed_.resize((constraint_->impl_->vocab_size + kWordBits - 1) / kWordBits);
  Refill();
}
ConstraintMatcher::~ConstraintMatcher() = default;

std::unique_ptr<ConstraintMatcher> ConstraintMatcher::Fork() const {
  auto fork = std::make_unique<ConstraintMatcher>(constraint_, end_tokens_);
  for (const int32_t token : accepted_) fork->impl_->matcher.AcceptToken(token);
  fork->accepted_ = accepted_;
  fork->allowed_ = allowed_;
  fork->complete_ = complete_;
  return fork;
}

absl::Status ConstraintMatcher::Accept(int32_t token) {
  if (!impl_->matcher.AcceptToken(token)) {
    return absl::InternalError(absl::StrCat("token ", token, " breaks the constraint"));
  }
  accepted_.push_back(token);
  Refill();
  return absl::OkStatus();
}

void ConstraintMatcher::Refill() {
  auto size = static_cast<int64_t>(allowed_.size());
  DLTensor tensor{};
  tensor.data = allowed_.data();
  tensor.device = {kDLCPU, 0};
  tensor.ndim = 1;
  tensor.dtype = xgrammar::GetBitmaskDLType();
  tensor.shape = &size;
  if (!impl_->matcher.FillNextTokenBitmask(&tensor)) {
    std::fill(allowed_.begin(), allowed_.end(), ~uint32_t{0});
  }
  // XGrammar's own end token stands behind the vocabulary: allowed where the text is complete.
  const size_t vocab = constraint_->impl_->vocab_size - 1;
  const auto bit = [](size_t id) { return uint32_t{1} << (id % kWordBits); };
  uint32_t& end_word = allowed_[vocab / kWordBits];
  const bool may_end = (end_word & bit(vocab)) != 0;
  end_word &= bit(vocab) - 1;
  for (const int32_t token : end_tokens_) {
    if (static_cast<size_t>(token) < vocab) {
      allowed_[static_cast<size_t>(token) / kWordBits] &= ~bit(static_cast<size_t>(token));
    }
  }
  complete_ = may_end && std::all_of(allowed_.begin(), allowed_.end(),
                                     [](uint32_t word) { return word == 0; });
  if (!may_end) return;
  for (const int32_t token : end_tokens_) {
    if (static_cast<size_t>(token) < vocab) {
      allowed_[static_cast<size_t>(token) / kWordBits] |= bit(static_cast<size_t>(token));
    }
  }
}

void ConstraintMatcher::Mask(absl::Span<float> logits) const {
  const size_t known = std::min(logits.size(), allowed_.size() * kWordBits);
  row_math::ApplyBitmask(allowed_, logits.first(known));
}

struct ConstraintCompiler::Impl {
  struct Entry {
    ConstraintSpec spec;
    std::shared_ptr<const CompiledConstraint> constraint;
  };

  ConstraintLimits limits;
  size_t vocab_size;
  xgrammar::GrammarCompiler compiler;

  std::mutex compile_mutex;  // one compilation at a time
  std::mutex mutex;          // guards all below
  std::list<Entry> cache;    // last used first
  size_t cache_bytes = 0;

  std::shared_ptr<const CompiledConstraint> Find(const ConstraintSpec& spec) {
    std::lock_guard<std::mutex> lock(mutex);
    const auto it = std::find_if(cache.begin(), cache.end(),
                                 [&spec](const Entry& entry) { return entry.spec == spec; });
    if (it == cache.end()) return nullptr;
    cache.splice(cache.begin(), cache, it);
    return it->constraint;
  }

  void Keep(const ConstraintSpec& spec, std::shared_ptr<const CompiledConstraint> constraint) {
    std::lock_guard<std::mutex> lock(mutex);
    cache_bytes += constraint->bytes();
    cache.push_front({spec, std::move(constraint)});
    while (cache_bytes > limits.max_cache_bytes && cache.size() > 1) {
      cache_bytes -= cache.back().constraint->bytes();
      cache.pop_back();
    }
  }

  absl::StatusOr<xgrammar::CompiledGrammar> Build(const ConstraintSpec& spec);
};

absl::StatusOr<xgrammar::CompiledGrammar> ConstraintCompiler::Impl::Build(
    const ConstraintSpec& spec) {
  switch (spec.kind) {
    case ConstraintSpec::Kind::kJsonSchema: {
      const absl::StatusOr<std::string> schema = NormaliseJsonSchema(spec.source);
      if (!schema.ok()) return schema.status();
      return compiler.CompileJSONSchema(*schema, /*any_whitespace=*/true, std::nullopt,
                                        std::nullopt, /*strict_mode=*/true,
                                        /*max_whitespace_cnt=*/2);
    }
    case ConstraintSpec::Kind::kRegex: {
      if (absl::Status s = CheckRegex(spec.source); !s.ok()) return s;
      return compiler.CompileRegex(spec.source);
    }
    case ConstraintSpec::Kind::kGbnf: {
      if (absl::Status s = CheckGbnf(spec.source); !s.ok()) return s;
      return compiler.CompileGrammar(spec.source);
    }
    case ConstraintSpec::Kind::kNone:
      break;
  }
  return absl::InvalidArgumentError("no constraint");
}

absl::StatusOr<std::unique_ptr<ConstraintCompiler>> ConstraintCompiler::Create(
    std::vector<std::string> token_bytes, const ConstraintLimits& limits) {
  try {
    // An end token of its own, behind the vocabulary: see ConstraintMatcher::Refill.
    token_bytes.emplace_back("</s>");
    const size_t vocab_size = token_bytes.size();
    const xgrammar::TokenizerInfo info(token_bytes, xgrammar::VocabType::RAW, std::nullopt,
                                       std::vector<int32_t>{static_cast<int32_t>(vocab_size) - 1});
    // One thread, so that the scope's deadline sees all of the work.
    xgrammar::GrammarCompiler compiler(info, /*max_threads=*/1, /*cache_enabled=*/false);
    return std::unique_ptr<ConstraintCompiler>(new ConstraintCompiler(
        // NOLINTNEXTLINE(modernize-make-unique): an aggregate with mutexes, built in place
        std::unique_ptr<Impl>(new Impl{limits, vocab_size, std::move(compiler), {}, {}, {}, 0})));
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("constraints: ", error.what()));
  }
}

ConstraintCompiler::ConstraintCompiler(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ConstraintCompiler::~ConstraintCompiler() = default;

absl::StatusOr<std::shared_ptr<const CompiledConstraint>> ConstraintCompiler::Compile(
    const ConstraintSpec& spec) {
  const ConstraintLimits& limits = impl_->limits;
  if (spec.source.size() > limits.max_source_bytes) {
    return absl::ResourceExhaustedError(absl::StrCat(Name(spec.kind), ": ", spec.source.size(),
                                                     " bytes: at most ", limits.max_source_bytes));
  }
  if (auto known = impl_->Find(spec)) return known;
  std::lock_guard<std::mutex> lock(impl_->compile_mutex);
  if (auto known = impl_->Find(spec)) return known;  // compiled while this one waited

  CompileScope scope(std::chrono::steady_clock::now() + limits.max_compile_time);
  try {
    absl::StatusOr<xgrammar::CompiledGrammar> grammar = impl_->Build(spec);
    if (!grammar.ok()) return grammar.status();
    // What XGrammar warns of is something it leaves out.
    if (!scope.warning().empty()) {
      return absl::InvalidArgumentError(absl::StrCat(Name(spec.kind), ": ", scope.warning()));
    }
    const size_t bytes = grammar->MemorySizeBytes() + spec.source.size();
    std::shared_ptr<const CompiledConstraint> compiled(new CompiledConstraint(
        std::make_unique<const CompiledConstraint::Impl>(
            CompiledConstraint::Impl{*std::move(grammar), impl_->vocab_size}),
        bytes));
    impl_->Keep(spec, compiled);
    return compiled;
  } catch (const CompileDeadlineError&) {
    return absl::ResourceExhaustedError(
        absl::StrCat(Name(spec.kind), ": took longer than ", limits.max_compile_time.count(),
                     " ms to compile: make it simpler, with smaller repetitions"));
  } catch (const std::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat(Name(spec.kind), ": ", error.what()));
  }
}

}  // namespace osdn
