#include "tools/interrupt.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <utility>

namespace osdn::tools {

SignalBlock::SignalBlock(std::initializer_list<int> signals) {
  sigemptyset(&signals_);
  for (const int signal : signals) sigaddset(&signals_, signal);
  pthread_sigmask(SIG_BLOCK, &signals_, &old_mask_);
}

SignalBlock::~SignalBlock() { pthread_sigmask(SIG_SETMASK, &old_mask_, nullptr); }

InterruptWatcher::InterruptWatcher(const SignalBlock& block, std::function<void()> handler)
    : handler_(std::move(handler)),
      signal_fd_(::signalfd(-1, &block.signals(), SFD_CLOEXEC)),
      stop_fd_(::eventfd(0, EFD_CLOEXEC)),
      thread_([this] { Watch(); }) {}

InterruptWatcher::~InterruptWatcher() {
  ::eventfd_write(stop_fd_, 1);
  thread_.join();
  ::close(signal_fd_);
  ::close(stop_fd_);
}

void InterruptWatcher::Watch() {
  while (true) {
    pollfd fds[2] = {{signal_fd_, POLLIN, 0}, {stop_fd_, POLLIN, 0}};
    if (::poll(fds, 2, -1) < 0) continue;  // EINTR
    if ((fds[1].revents & POLLIN) != 0) return;
    signalfd_siginfo info{};
    if (::read(signal_fd_, &info, sizeof(info)) == sizeof(info)) handler_();
  }
}

}  // namespace osdn::tools
