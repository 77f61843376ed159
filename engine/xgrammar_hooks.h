// Where XGrammar (cmake/OsdnXGrammar.cmake) meets the outside while it compiles: its warnings, its
// errors, and the deadline that checkpoints in its loops keep.
#ifndef OSDN_ENGINE_XGRAMMAR_HOOKS_H_
#define OSDN_ENGINE_XGRAMMAR_HOOKS_H_

#include <chrono>
#include <stdexcept>
#include <string>

namespace osdn {

// Thrown out of XGrammar, caught where the scope is.
struct CompileDeadlineError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// While it lives, compilation on this thread ends with CompileDeadlineError after `deadline`, and
// the first warning is kept. Warnings outside of any scope are dropped.
class CompileScope {
 public:
  explicit CompileScope(std::chrono::steady_clock::time_point deadline);
  ~CompileScope();
  CompileScope(const CompileScope&) = delete;
  CompileScope& operator=(const CompileScope&) = delete;

  const std::string& warning() const { return warning_; }
  void Warn(const std::string& message) {
    if (warning_.empty()) warning_ = message;
  }
  void Check() const;

 private:
  std::chrono::steady_clock::time_point deadline_;
  std::string warning_;
};

}  // namespace osdn

#endif  // OSDN_ENGINE_XGRAMMAR_HOOKS_H_
