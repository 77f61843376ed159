#include "server/http/connection_watch.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <utility>

namespace osdn {
namespace {

constexpr uint64_t kWakeId = 0;

}  // namespace

absl::StatusOr<std::unique_ptr<ConnectionWatch>> ConnectionWatch::Create() {
  const int epoll = epoll_create1(EPOLL_CLOEXEC);
  const int wake = eventfd(0, EFD_CLOEXEC);
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = kWakeId;
  if (epoll < 0 || wake < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, wake, &event) != 0) {
    if (epoll >= 0) close(epoll);
    if (wake >= 0) close(wake);
    return absl::ResourceExhaustedError("HTTP: no descriptors left to watch connections with");
  }
  return std::unique_ptr<ConnectionWatch>(new ConnectionWatch(epoll, wake));
}

ConnectionWatch::~ConnectionWatch() {
  eventfd_write(wake_, 1);
  thread_.join();
  close(epoll_);
  close(wake_);
}

void ConnectionWatch::Run() {
  std::array<epoll_event, 64> events{};
  while (true) {
    const int count = epoll_wait(epoll_, events.data(), static_cast<int>(events.size()), -1);
    for (int i = 0; i < count; ++i) {
      const uint64_t id = events[static_cast<size_t>(i)].data.u64;
      if (id == kWakeId) return;
      // Under the lock, so that the end of a Watch waits for what it started.
      absl::MutexLock lock(&mutex_);
      const auto it = watches_.find(id);
      if (it != watches_.end()) it->second();
    }
  }
}

ConnectionWatch::Watch::Watch(ConnectionWatch* owner, int socket, std::function<void()> gone)
    : owner_(owner), socket_(socket) {
  absl::MutexLock lock(&owner_->mutex_);
  id_ = owner_->next_id_++;
  owner_->watches_.emplace(id_, std::move(gone));
  epoll_event event{};
  // A client that has sent all it will send has also closed its side: it is gone.
  event.events = EPOLLRDHUP | EPOLLONESHOT;
  event.data.u64 = id_;
  epoll_ctl(owner_->epoll_, EPOLL_CTL_ADD, socket_, &event);
}

ConnectionWatch::Watch::~Watch() {
  epoll_ctl(owner_->epoll_, EPOLL_CTL_DEL, socket_, nullptr);
  absl::MutexLock lock(&owner_->mutex_);
  owner_->watches_.erase(id_);
}

}  // namespace osdn
