#include "engine/constraint_compiler.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/gbnf_grammar.h"
#include "engine/json_schema_grammar.h"
#include "engine/regex_grammar.h"

namespace osdn {
namespace {

using Clock = std::chrono::steady_clock;

absl::Status WithPrefix(absl::string_view prefix, const absl::Status& status) {
  if (status.ok()) return status;
  // Out of time is no deadline of the client's.
  const bool late = absl::IsDeadlineExceeded(status);
  return {late ? absl::StatusCode::kResourceExhausted : status.code(),
          absl::StrCat(prefix, ": ", status.message())};
}

}  // namespace

template <class Value>
Value* ConstraintCompiler::Recent<Value>::Find(const std::string& key) {
  const auto it = index.find(key);
  if (it == index.end()) return nullptr;
  list.splice(list.begin(), list, it->second);
  return &it->second->second;
}

template <class Value>
void ConstraintCompiler::Recent<Value>::Put(const std::string& key, Value value) {
  if (Value* old = Find(key); old != nullptr) {
    *old = std::move(value);
    return;
  }
  list.emplace_front(key, std::move(value));
  index.emplace(key, list.begin());
}

template <class Value>
void ConstraintCompiler::Recent<Value>::DropOldest() {
  index.erase(list.back().first);
  list.pop_back();
}

ConstraintCompiler::ConstraintCompiler(std::vector<std::string> token_bytes,
                                       const ConstraintLimits& limits)
    : limits_(limits),
      vocabulary_(std::make_shared<const TokenTrie>(std::move(token_bytes))),
      thread_([this] { Run(); }) {}

ConstraintCompiler::~ConstraintCompiler() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    work_.SignalAll();
  }
  thread_.join();
}

void ConstraintCompiler::Compile(ConstraintSpec spec, Wanted wanted, Done done) {
  Result known = nullptr;
  {
    absl::MutexLock lock(&mutex_);
    known = Find(Fingerprint(spec));
    if (known.ok() && *known == nullptr) {
      if (jobs_.size() < limits_.max_queued && !stopping_) {
        jobs_.push_back({std::move(spec), std::move(wanted), std::move(done)});
        work_.Signal();
        return;
      }
      known = absl::ResourceExhaustedError(
          absl::StrCat(jobs_.size(), " constraints wait to be compiled already; try again later"));
    }
  }
  done(std::move(known));
}

void ConstraintCompiler::Run() {
  while (true) {
    Job job;
    bool stopping = false;
    {
      absl::MutexLock lock(&mutex_);
      while (jobs_.empty() && !stopping_) work_.Wait(&mutex_);
      if (jobs_.empty()) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
      stopping = stopping_;
    }
    const absl::Status wanted =
        stopping ? absl::UnavailableError("the server is shutting down") : job.wanted();
    job.done(wanted.ok() ? CompileNow(job.spec) : Result(wanted));
  }
}

ConstraintCompiler::Result ConstraintCompiler::CompileNow(const ConstraintSpec& spec) {
  const std::string fingerprint = Fingerprint(spec);
  {
    absl::MutexLock lock(&mutex_);
    Result known = Find(fingerprint);
    if (!known.ok() || *known != nullptr) return known;
  }
  Result result = Build(spec, fingerprint);
  absl::MutexLock lock(&mutex_);
  Remember(fingerprint, result);
  return result;
}

ConstraintCompiler::Result ConstraintCompiler::Find(const std::string& fingerprint) {
  const auto* compiled = compiled_.Find(fingerprint);
  if (compiled != nullptr) return *compiled;
  const Failure* failure = failures_.Find(fingerprint);
  if (failure != nullptr && Clock::now() < failure->until) return failure->status;
  return nullptr;
}

ConstraintCompiler::Result ConstraintCompiler::Build(const ConstraintSpec& spec,
                                                     const std::string& fingerprint) const {
  if (spec.source.size() > limits_.max_source_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(Name(spec.kind), ": ", spec.source.size(),
                                                   " bytes: at most ", limits_.max_source_bytes));
  }
  absl::StatusOr<Grammar> grammar = BuildGrammar(spec);
  if (!grammar.ok()) return WithPrefix(Name(spec.kind), grammar.status());
  return std::make_shared<const CompiledConstraint>(fingerprint, *std::move(grammar), vocabulary_,
                                                    limits_.max_working_bytes);
}

absl::StatusOr<Grammar> ConstraintCompiler::BuildGrammar(const ConstraintSpec& spec) const {
  GrammarLimits limits{.max_states = limits_.max_states,
                       .max_edges = 5 * limits_.max_states,
                       .deadline = Clock::now() + limits_.max_compile_time};
  GrammarBuilder builder;
  absl::Status read;
  switch (spec.kind) {
    case ConstraintSpec::Kind::kJsonSchema:
      read = AddJsonSchema(spec.source, &builder);
      break;
    case ConstraintSpec::Kind::kRegex: {
      const absl::StatusOr<GrammarBuilder::Node> node = AddRegex(spec.source, {}, &builder);
      read = node.status();
      if (read.ok()) builder.Define(Grammar::kRoot, *node);
      break;
    }
    case ConstraintSpec::Kind::kGbnf:
      read = AddGbnf(spec.source, &builder);
      break;
    case ConstraintSpec::Kind::kNone:
      read = absl::InvalidArgumentError("no constraint");
      break;
  }
  if (!read.ok()) return read;
  return builder.Build(limits);
}

void ConstraintCompiler::Remember(const std::string& fingerprint, const Result& result) {
  if (!result.ok()) {
    // What is wrong stays wrong; the machine may only have been busy.
    const bool always = absl::IsInvalidArgument(result.status());
    failures_.Put(fingerprint, {result.status(), always ? Clock::time_point::max()
                                                        : Clock::now() + limits_.failure_lifetime});
    if (failures_.list.size() > limits_.max_failures) failures_.DropOldest();
    return;
  }
  compiled_.Put(fingerprint, *result);
  size_t bytes = 0;
  for (const auto& entry : compiled_.list) bytes += entry.second->bytes();
  while (bytes > limits_.max_cache_bytes && compiled_.list.size() > 1) {
    bytes -= std::min(bytes, compiled_.list.back().second->bytes());
    compiled_.DropOldest();
  }
}

size_t ConstraintCompiler::cache_bytes() const {
  absl::MutexLock lock(&mutex_);
  size_t bytes = 0;
  for (const auto& entry : compiled_.list) bytes += entry.second->bytes();
  return bytes;
}

}  // namespace osdn
