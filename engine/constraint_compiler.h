// Compiles constraints, off everybody else's thread, and remembers what came of it.
#ifndef OSDN_ENGINE_CONSTRAINT_COMPILER_H_
#define OSDN_ENGINE_CONSTRAINT_COMPILER_H_

#include <chrono>
#include <cstddef>
#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "engine/constraint.h"
#include "engine/token_trie.h"

namespace osdn {

struct ConstraintLimits {
  size_t max_source_bytes = 64 << 10;
  size_t max_states = 200'000;  // of a grammar
  std::chrono::milliseconds max_compile_time{2000};
  size_t max_queued = 64;                     // compilations that may wait
  size_t max_cache_bytes = 64 << 20;          // of compiled constraints, with what they worked out
  size_t max_working_bytes = 8 << 20;         // of what one has worked out
  size_t max_failures = 256;                  // remembered
  std::chrono::seconds failure_lifetime{10};  // of those that ran out of time
};

// Thread-safe. One thread compiles, in order of arrival; equal constraints are compiled once.
class ConstraintCompiler {
 public:
  using Result = absl::StatusOr<std::shared_ptr<const CompiledConstraint>>;
  using Done = std::function<void(Result)>;
  // OK, or why nobody waits for the result any more.
  using Wanted = std::function<absl::Status()>;

  // `token_bytes[id]` is what a token adds to the text; tokens that add nothing are never allowed.
  ConstraintCompiler(std::vector<std::string> token_bytes, const ConstraintLimits& limits);
  // Answers what waits with UNAVAILABLE.
  ~ConstraintCompiler();
  ConstraintCompiler(const ConstraintCompiler&) = delete;
  ConstraintCompiler& operator=(const ConstraintCompiler&) = delete;

  // `done` is called once: at once where the answer is known, else on the compiler's thread.
  // Errors: INVALID_ARGUMENT with what is wrong and where, or too large; RESOURCE_EXHAUSTED where
  // it took too long or too many wait; that of `wanted`, asked when its turn has come.
  void Compile(ConstraintSpec spec, Wanted wanted, Done done);
  // The same on the caller's thread.
  Result CompileNow(const ConstraintSpec& spec);

  size_t cache_bytes() const;

 private:
  struct Job {
    ConstraintSpec spec;
    Wanted wanted;
    Done done;
  };
  struct Failure {
    absl::Status status;
    std::chrono::steady_clock::time_point until;
  };
  // Most recent first.
  template <class Value>
  struct Recent {
    using List = std::list<std::pair<std::string, Value>>;
    List list;
    absl::flat_hash_map<std::string, typename List::iterator> index;

    Value* Find(const std::string& key);
    void Put(const std::string& key, Value value);
    void DropOldest();
  };

  void Run();
  // What is known of it; nullptr and OK: nothing.
  Result Find(const std::string& fingerprint) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Result Build(const ConstraintSpec& spec, const std::string& fingerprint) const;
  absl::StatusOr<Grammar> BuildGrammar(const ConstraintSpec& spec) const;
  void Remember(const std::string& fingerprint, const Result& result)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const ConstraintLimits limits_;
  const std::shared_ptr<const TokenTrie> vocabulary_;
  mutable absl::Mutex mutex_;
  absl::CondVar work_;
  std::deque<Job> jobs_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  Recent<std::shared_ptr<const CompiledConstraint>> compiled_ ABSL_GUARDED_BY(mutex_);
  Recent<Failure> failures_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;  // last: starts when all else stands
};

}  // namespace osdn

#endif  // OSDN_ENGINE_CONSTRAINT_COMPILER_H_
