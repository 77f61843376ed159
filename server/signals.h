// SIGTERM and SIGINT, taken by a thread instead of a handler.
#ifndef OSDN_SERVER_SIGNALS_H_
#define OSDN_SERVER_SIGNALS_H_

#include <functional>
#include <memory>
#include <thread>

#include "absl/status/statusor.h"

namespace osdn {

// Blocks both signals for the calling thread and all it starts from now on (so: construct before
// any other thread), and calls back for each that comes.
class SignalListener {
 public:
  // `on_signal(signal, count)` runs on the listener's thread; count is 1 for the first.
  static absl::StatusOr<std::unique_ptr<SignalListener>> Create(
      std::function<void(int signal, int count)> on_signal);
  // Stops listening; the signals stay blocked.
  ~SignalListener();

  SignalListener(const SignalListener&) = delete;
  SignalListener& operator=(const SignalListener&) = delete;

 private:
  SignalListener(int signal_fd, int stop_fd, std::function<void(int, int)> on_signal);
  void Run();

  const int signal_fd_;
  const int stop_fd_;
  const std::function<void(int, int)> on_signal_;
  std::thread thread_;
};

}  // namespace osdn

#endif  // OSDN_SERVER_SIGNALS_H_
