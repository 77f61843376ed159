// A connection's bytes, under limits of size and time.
#ifndef OSDN_SERVER_HTTP_SOCKET_IO_H_
#define OSDN_SERVER_HTTP_SOCKET_IO_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/address.h"

struct ssl_ctx_st;  // OpenSSL's SSL_CTX and SSL
struct ssl_st;

namespace osdn {

// Buffered reading and whole writes of a socket, which it does not own. One thread at a time.
// What failed once fails from then on.
class SocketIo {
 public:
  // The socket does not block.
  explicit SocketIo(int socket) : socket_(socket), tls_(nullptr, nullptr) {}

  // Speaks TLS from here on; false where the peer does not until `deadline`.
  bool StartTls(ssl_ctx_st* context, absl::Time deadline);

  // True when there is something to read within `timeout`.
  bool WaitForData(absl::Duration timeout);
  // From here on at most `bytes` may be read, until `deadline`.
  void Allow(size_t bytes, absl::Time deadline) {
    left_ = bytes;
    deadline_ = deadline;
  }
  // At most `size` bytes; 0 at the end, -1 on an error or at a limit.
  ssize_t Read(char* data, size_t size);
  // All of it, or false: the peer is gone, or took nothing for `timeout`.
  bool Write(const char* data, size_t size, absl::Duration timeout);
  // Lets the peer read what was written before the socket is closed: what it still sends would
  // reset the connection.
  void Linger();

  // False after a failed write.
  bool writable() const { return !write_failed_; }
  int socket() const { return socket_; }

 private:
  // `count` bytes went; or, with -1, `wait` for these poll events and try again, 0: for nothing.
  struct Step {
    ssize_t count = -1;
    int16_t wait = 0;
  };
  Step TryRead(char* data, size_t size);
  Step TryWrite(const char* data, size_t size);
  Step TlsStep(int result) const;

  const int socket_;
  std::unique_ptr<ssl_st, void (*)(ssl_st*)> tls_;
  size_t left_ = 0;
  absl::Time deadline_ = absl::InfinitePast();
  bool read_failed_ = false;
  bool write_failed_ = false;
  std::array<char, 8192> buffer_;
  size_t begin_ = 0;
  size_t end_ = 0;
};

// A listening socket; `address` gets the port. FAILED_PRECONDITION naming address and cause.
absl::StatusOr<int> ListenOn(Address* address);

// The peer's address without its port; "" where the socket has none.
std::string PeerOf(int socket);

}  // namespace osdn

#endif  // OSDN_SERVER_HTTP_SOCKET_IO_H_
