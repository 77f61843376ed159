#include "server/http/socket_io.h"

#include <netdb.h>
#include <netinet/in.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace osdn {
namespace {

// As the kernel's own limit is on most systems: many clients may come at once.
constexpr int kBacklog = 1024;
constexpr absl::Duration kLingerTime = absl::Milliseconds(500);
constexpr size_t kLingerBytes = size_t{1} << 20;

// poll() that is not ended by signals. True when `events` or an error came.
bool WaitFor(int socket, int16_t events, absl::Time deadline) {
  while (true) {
    const absl::Duration left = deadline - absl::Now();
    if (left <= absl::ZeroDuration()) return false;
    pollfd poll_fd{socket, events, 0};
    const int64_t ms = std::min<int64_t>(absl::ToInt64Milliseconds(left) + 1, 1 << 30);
    const int ready = poll(&poll_fd, 1, static_cast<int>(ms));
    if (ready > 0) return true;
    if (ready < 0 && errno != EINTR) return false;
  }
}

}  // namespace

bool SocketIo::StartTls(ssl_ctx_st* context, absl::Time deadline) {
  tls_ = std::unique_ptr<ssl_st, void (*)(ssl_st*)>(SSL_new(context), &SSL_free);
  if (tls_ == nullptr || SSL_set_fd(tls_.get(), socket_) != 1) return false;
  SSL_set_mode(tls_.get(), SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  while (true) {
    ERR_clear_error();
    const Step step = TlsStep(SSL_accept(tls_.get()));
    if (step.count > 0) return true;
    if (step.wait == 0 || !WaitFor(socket_, step.wait, deadline)) return false;
  }
}

SocketIo::Step SocketIo::TlsStep(int result) const {
  if (result > 0) return {result, 0};
  switch (SSL_get_error(tls_.get(), result)) {
    case SSL_ERROR_WANT_READ:
      return {-1, POLLIN};
    case SSL_ERROR_WANT_WRITE:
      return {-1, POLLOUT};
    case SSL_ERROR_ZERO_RETURN:
      return {0, 0};
    default:
      return {-1, 0};
  }
}

SocketIo::Step SocketIo::TryRead(char* data, size_t size) {
  if (tls_ != nullptr) {
    ERR_clear_error();
    return TlsStep(SSL_read(tls_.get(), data, static_cast<int>(size)));
  }
  const ssize_t got = recv(socket_, data, size, MSG_DONTWAIT);
  if (got >= 0) return {got, 0};
  const bool later = errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
  return {-1, static_cast<int16_t>(later ? POLLIN : 0)};
}

SocketIo::Step SocketIo::TryWrite(const char* data, size_t size) {
  if (tls_ != nullptr) {
    constexpr size_t kMost = size_t{1} << 20;
    ERR_clear_error();
    return TlsStep(SSL_write(tls_.get(), data, static_cast<int>(std::min(size, kMost))));
  }
  const ssize_t sent = send(socket_, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent > 0) return {sent, 0};
  const bool later = errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
  return {-1, static_cast<int16_t>(later ? POLLOUT : 0)};
}

bool SocketIo::WaitForData(absl::Duration timeout) {
  if (read_failed_) return false;
  if (begin_ < end_ || (tls_ != nullptr && SSL_pending(tls_.get()) > 0)) return true;
  return WaitFor(socket_, POLLIN, absl::Now() + timeout);
}

ssize_t SocketIo::Read(char* data, size_t size) {
  if (read_failed_ || left_ == 0) return -1;
  if (begin_ == end_) {
    Step step;
    // A slow client is waited for up to the deadline, however it parts its bytes.
    while (absl::Now() < deadline_) {
      step = TryRead(buffer_.data(), buffer_.size());
      if (step.wait == 0 || !WaitFor(socket_, step.wait, deadline_)) break;
    }
    if (step.count <= 0) {
      read_failed_ = true;
      return step.count;
    }
    begin_ = 0;
    end_ = static_cast<size_t>(step.count);
  }
  const size_t count = std::min({size, left_, end_ - begin_});
  std::memcpy(data, buffer_.data() + begin_, count);
  begin_ += count;
  left_ -= count;
  return static_cast<ssize_t>(count);
}

bool SocketIo::Write(const char* data, size_t size, absl::Duration timeout) {
  absl::Time deadline = absl::InfiniteFuture();
  while (size > 0 && !write_failed_) {
    const Step step = TryWrite(data, size);
    if (step.count > 0) {
      data += step.count;
      size -= static_cast<size_t>(step.count);
      deadline = absl::InfiniteFuture();
      continue;
    }
    if (deadline == absl::InfiniteFuture()) deadline = absl::Now() + timeout;
    if (step.wait == 0 || !WaitFor(socket_, step.wait, deadline)) break;
  }
  if (size > 0) write_failed_ = true;
  return !write_failed_;
}

void SocketIo::Linger() {
  if (tls_ != nullptr && !write_failed_) SSL_shutdown(tls_.get());
  shutdown(socket_, SHUT_WR);
  const absl::Time deadline = absl::Now() + kLingerTime;
  size_t passed = 0;
  while (passed < kLingerBytes && WaitFor(socket_, POLLIN, deadline)) {
    const ssize_t got = recv(socket_, buffer_.data(), buffer_.size(), MSG_DONTWAIT);
    if (got <= 0) return;
    passed += static_cast<size_t>(got);
  }
}

absl::StatusOr<int> ListenOn(Address* address) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  const int error =
      getaddrinfo(address->host.c_str(), absl::StrCat(address->port).c_str(), &hints, &found);
  if (error != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("cannot listen on ", address->ToString(), ": ", gai_strerror(error)));
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owned(found, freeaddrinfo);
  const int listener = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int on = 1;
  sockaddr_storage bound{};
  socklen_t length = sizeof(bound);
  // No SO_REUSEPORT: a second server on the port is told so instead of taking half of the clients.
  if (listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) != 0 ||
      bind(listener, found->ai_addr, found->ai_addrlen) != 0 || listen(listener, kBacklog) != 0 ||
      getsockname(listener, reinterpret_cast<sockaddr*>(&bound), &length) != 0) {
    const absl::Status failed = absl::FailedPreconditionError(
        absl::StrCat("cannot listen on ", address->ToString(), ": ", std::strerror(errno)));
    if (listener >= 0) close(listener);
    return failed;
  }
  address->port =
      ntohs(bound.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(&bound)->sin6_port
                                        : reinterpret_cast<sockaddr_in*>(&bound)->sin_port);
  return listener;
}

std::string PeerOf(int socket) {
  sockaddr_storage peer{};
  socklen_t length = sizeof(peer);
  std::array<char, NI_MAXHOST> host{};
  if (getpeername(socket, reinterpret_cast<sockaddr*>(&peer), &length) != 0 ||
      getnameinfo(reinterpret_cast<sockaddr*>(&peer), length, host.data(), host.size(), nullptr, 0,
                  NI_NUMERICHOST) != 0) {
    return "";
  }
  return host.data();
}

}  // namespace osdn
