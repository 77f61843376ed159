// Tells when clients close their connections, while nobody reads from them.
#ifndef OSDN_SERVER_HTTP_CONNECTION_WATCH_H_
#define OSDN_SERVER_HTTP_CONNECTION_WATCH_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <unordered_map>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

namespace osdn {

// Thread-safe. One thread for all connections.
class ConnectionWatch {
 public:
  // RESOURCE_EXHAUSTED where the system has no descriptors left.
  static absl::StatusOr<std::unique_ptr<ConnectionWatch>> Create();
  ~ConnectionWatch();

  ConnectionWatch(const ConnectionWatch&) = delete;
  ConnectionWatch& operator=(const ConnectionWatch&) = delete;

  // As long as it lives, `gone` is called when the peer closes or resets; at most once. It is short
  // and does not touch the watch.
  class Watch {
   public:
    Watch(ConnectionWatch* owner, int socket, std::function<void()> gone);
    ~Watch();  // afterwards `gone` is not called any more
    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;

   private:
    ConnectionWatch* const owner_;
    const int socket_;
    uint64_t id_ = 0;
  };

 private:
  ConnectionWatch(int epoll, int wake) : epoll_(epoll), wake_(wake), thread_([this] { Run(); }) {}
  void Run();

  const int epoll_;
  const int wake_;  // readable: end
  absl::Mutex mutex_;
  uint64_t next_id_ ABSL_GUARDED_BY(mutex_) = 1;
  std::unordered_map<uint64_t, std::function<void()>> watches_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace osdn

#endif  // OSDN_SERVER_HTTP_CONNECTION_WATCH_H_
