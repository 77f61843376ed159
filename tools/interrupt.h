// Ctrl-C as an ordinary function call: no code runs in a signal handler, so what is called may
// lock, print and cancel.
#ifndef OSDN_TOOLS_INTERRUPT_H_
#define OSDN_TOOLS_INTERRUPT_H_

#include <csignal>
#include <functional>
#include <initializer_list>
#include <thread>

namespace osdn::tools {

// Keeps signals from the calling thread and from threads that it starts. Make it before anything
// that starts threads (gRPC channels, engines), so that only an InterruptWatcher gets the signals.
class SignalBlock {
 public:
  explicit SignalBlock(std::initializer_list<int> signals);
  ~SignalBlock();
  SignalBlock(const SignalBlock&) = delete;
  SignalBlock& operator=(const SignalBlock&) = delete;

  const sigset_t& signals() const { return signals_; }

 private:
  sigset_t signals_{};
  sigset_t old_mask_{};
};

// Calls `handler` on a thread of its own for every blocked signal that arrives. No handler runs
// after the destructor returned, so make it after what the handler uses.
class InterruptWatcher {
 public:
  InterruptWatcher(const SignalBlock& block, std::function<void()> handler);
  ~InterruptWatcher();
  InterruptWatcher(const InterruptWatcher&) = delete;
  InterruptWatcher& operator=(const InterruptWatcher&) = delete;

 private:
  void Watch();

  const std::function<void()> handler_;
  const int signal_fd_;
  const int stop_fd_;
  std::thread thread_;
};

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_INTERRUPT_H_
