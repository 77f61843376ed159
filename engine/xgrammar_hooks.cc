#include "engine/xgrammar_hooks.h"

namespace osdn {
namespace {

// A library without a context argument leaves no other way in. Set by CompileScope only.
thread_local CompileScope* current_scope = nullptr;

}  // namespace

CompileScope::CompileScope(std::chrono::steady_clock::time_point deadline) : deadline_(deadline) {
  current_scope = this;
}

CompileScope::~CompileScope() { current_scope = nullptr; }

void CompileScope::Check() const {
  if (std::chrono::steady_clock::now() > deadline_) throw CompileDeadlineError("too complex");
}

}  // namespace osdn

void osdn_xgrammar_checkpoint() {
  if (osdn::current_scope != nullptr) osdn::current_scope->Check();
}

namespace xgrammar {

[[noreturn]] void LogFatalImpl(const std::string&, int, const std::string& message) {
  throw std::runtime_error(message);
}

void LogMessageImpl(const std::string&, int, int, const std::string& message) {
  if (osdn::current_scope != nullptr) osdn::current_scope->Warn(message);
}

}  // namespace xgrammar
