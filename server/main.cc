// osdn-server: options, then port, then model, then serve until a signal.
#include <spdlog/spdlog.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <string>

#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "server/log.h"
#include "server/options.h"
#include "server/server.h"
#include "server/signals.h"
#include "server/version.h"

namespace osdn {
namespace {

constexpr absl::Duration kHealthInterval = absl::Seconds(1);

enum ExitCode : int { kExitOk = 0, kExitFailure = 1, kExitUsage = 2, kExitSecondSignal = 130 };

// The first signal asks for a drain, or ends a process that has nothing to drain yet; the second
// ends it as it is.
class Shutdown {
 public:
  explicit Shutdown(std::shared_ptr<spdlog::logger> logger) : logger_(std::move(logger)) {}

  void OnSignal(int signal, int count) {
    const char* name = signal == SIGINT ? "SIGINT" : "SIGTERM";
    if (count > 1) {
      logger_->warn("{} again: ending now", name);
      std::_Exit(kExitSecondSignal);
    }
    logger_->info("{} received", name);
    if (!serving_.load()) std::_Exit(kExitOk);
    signal_.store(signal);
    requested_.Notify();
  }

  void SetServing() { serving_.store(true); }
  // The signal that asked for the shutdown, or 0 when none came within `timeout`.
  int Wait(absl::Duration timeout) {
    return requested_.WaitForNotificationWithTimeout(timeout) ? signal_.load() : 0;
  }

 private:
  const std::shared_ptr<spdlog::logger> logger_;
  std::atomic<bool> serving_{false};
  std::atomic<int> signal_{0};
  absl::Notification requested_;
};

int Fail(spdlog::logger* logger, const absl::Status& status) {
  logger->error("{}", std::string(status.message()));
  return kExitFailure;
}

int Serve(const CommandLine& command) {
  const ServerOptions& options = command.options.values;
  const std::shared_ptr<spdlog::logger> logger = MakeLogger(options.log_level, options.log_format);
  Shutdown shutdown(logger);
  // Before any other thread, so that all of them have the signals blocked.
  const absl::StatusOr<std::unique_ptr<SignalListener>> listener =
      SignalListener::Create([&](int signal, int count) { shutdown.OnSignal(signal, count); });
  if (!listener.ok()) return Fail(logger.get(), listener.status());

  logger->info("osdn-server {}", std::string(Version()));
  for (const std::string& line : DescribeOptions(command.options)) logger->info("option {}", line);

  absl::StatusOr<std::unique_ptr<Server>> server = Server::Listen(options, logger);
  if (!server.ok()) return Fail(logger.get(), server.status());
  if (absl::Status s = (*server)->Load(); !s.ok()) return Fail(logger.get(), s);
  shutdown.SetServing();

  int signal = 0;
  while ((signal = shutdown.Wait(kHealthInterval)) == 0) {
    (*server)->CheckHealth();
    (*server)->SweepStates();
    (*server)->ReloadKeys();
  }
  // Who presses Ctrl-C has no balancer to wait for.
  const bool wait = signal != SIGINT;
  (*server)->Drain(wait ? options.drain_propagation : absl::ZeroDuration(), options.drain_timeout);
  return kExitOk;
}

int Main(int argc, const char* const* argv) {
  // A closed log pipe is a failed write, not the end of the process.
  std::signal(SIGPIPE, SIG_IGN);
  const absl::StatusOr<CommandLine> command = ParseCommandLine(argc, argv);
  if (!command.ok()) {
    std::fprintf(stderr, "osdn-server: %s\n", std::string(command.status().message()).c_str());
    return kExitUsage;
  }
  switch (command->action) {
    case CommandLine::Action::kShowText:
      std::fputs(command->text.c_str(), stdout);
      return kExitOk;
    case CommandLine::Action::kCheckConfig:
      for (const std::string& line : DescribeOptions(command->options)) std::puts(line.c_str());
      return kExitOk;
    case CommandLine::Action::kServe:
      return Serve(*command);
  }
  return kExitUsage;
}

}  // namespace
}  // namespace osdn

int main(int argc, char** argv) {
  try {
    return osdn::Main(argc, argv);
  } catch (const std::exception& error) {
    // Out of memory, or a thread that could not be started.
    std::fprintf(stderr, "osdn-server: %s\n", error.what());
    return osdn::kExitFailure;
  }
}
