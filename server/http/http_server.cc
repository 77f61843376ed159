#include "server/http/http_server.h"

#include <httplib.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "server/http/socket_io.h"
#include "server/http/tls_context.h"

namespace osdn {
namespace {

constexpr size_t kMaxHeadBytes = size_t{32} << 10;  // request line and headers
constexpr size_t kMaxPathBytes = 512;
// What a body takes on the wire when it comes in very small chunks; the body's own size is bounded
// by the option.
constexpr size_t kWireBytesPerBodyByte = 8;
// Kernel memory that a client which does not read may hold; the default goes up to megabytes.
constexpr int kSendBufferBytes = 128 << 10;
// When the process has no descriptors left: until some connection ends.
constexpr absl::Duration kAcceptPause = absl::Milliseconds(10);
constexpr char kRefusalBody[] =
    "{\"error\":{\"message\":\"too many connections (the server's option http.max_connections)\","
    "\"type\":\"server_error\",\"param\":null,\"code\":\"overloaded\"}}";

std::string Refusal() {
  return absl::StrCat(
      "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
      "Connection: close\r\nRetry-After: 1\r\nContent-Length: ",
      sizeof(kRefusalBody) - 1, "\r\n\r\n", kRefusalBody);
}

struct Connection {
  explicit Connection(int socket) : io(socket) {}

  SocketIo io;
  // Of its own thread.
  HttpRequest request;
  bool began = false;   // this request's head was read
  bool closes = false;  // after this response
  bool lingers = false;
  // Of the server's lock.
  bool busy = false;     // a request is being answered
  bool evicted = false;  // told to end
  uint64_t waits_since = 0;
};

class StreamAdapter final : public httplib::Stream {
 public:
  StreamAdapter(SocketIo* io, absl::Duration write_timeout)
      : io_(io), write_timeout_(write_timeout) {}

  bool is_readable() const override { return true; }
  bool is_writable() const override { return io_->writable(); }
  ssize_t read(char* data, size_t size) override { return io_->Read(data, size); }
  ssize_t write(const char* data, size_t size) override {
    return io_->Write(data, size, write_timeout_) ? static_cast<ssize_t>(size) : -1;
  }
  void get_remote_ip_and_port(std::string& ip, int&) const override { ip = PeerOf(io_->socket()); }
  void get_local_ip_and_port(std::string&, int&) const override {}
  // The library refuses descriptors that select() could not take, and uses this for nothing else.
  socket_t socket() const override { return 0; }

 private:
  SocketIo* const io_;
  const absl::Duration write_timeout_;
};

// Sockets and threads are ours; of httplib::Server only process_request() is used: reading one
// request, routing it, writing one response.
class ServerOverHttplib final : public HttpServer, private httplib::Server {
 public:
  ServerOverHttplib(const HttpServerOptions& options, Callbacks callbacks,
                    std::unique_ptr<TlsContexts> tls, int listener, int wake)
      : options_(options),
        callbacks_(std::move(callbacks)),
        tls_(std::move(tls)),
        listener_(listener),
        wake_(wake) {
    svr_sock_ = listener;  // anything valid: otherwise the library thinks it is shutting down
    set_keep_alive_timeout(absl::ToInt64Seconds(options_.idle_timeout));
    set_keep_alive_max_count(1'000'000);
    set_payload_max_length(static_cast<size_t>(options_.max_body_bytes));
    set_pre_routing_handler([this](const httplib::Request& request, httplib::Response& response) {
      return OnHead(request, &response) ? HandlerResponse::Handled : HandlerResponse::Unhandled;
    });
    Post(".*",
         [this](const httplib::Request& request, httplib::Response& response,
                const httplib::ContentReader& reader) { OnBody(request, reader, &response); });
    set_error_handler(httplib::Server::Handler(
        [this](const httplib::Request& request, httplib::Response& response) {
          if (!response.body.empty() || response.has_header("Content-Type")) return;
          Apply(callbacks_.error(response.status, "malformed HTTP request"), request, &response);
        }));
    set_exception_handler([this](const httplib::Request& request, httplib::Response& response,
                                 const std::exception_ptr&) {
      Apply(callbacks_.error(500, "the server failed to handle this request"), request, &response);
    });
    acceptor_ = std::thread([this] { Accept(); });
  }

  ServerOverHttplib(const ServerOverHttplib&) = delete;
  ServerOverHttplib& operator=(const ServerOverHttplib&) = delete;
  ~ServerOverHttplib() override {
    Stop(absl::ZeroDuration());
    close(listener_);
    close(wake_);
  }

  const Address& address() const override { return options_.address; }

  void Stop(absl::Duration grace) override {
    if (stopping_.exchange(true)) return;
    eventfd_write(wake_, 1);
    acceptor_.join();
    shutdown(listener_, SHUT_RDWR);  // who is in the backlog is told now
    {
      absl::MutexLock lock(&mutex_);
      for (const auto& [socket, connection] : connections_) {
        if (!connection->busy) shutdown(socket, SHUT_RDWR);
      }
      const auto none = [this]()
                            ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return connections_.empty(); };
      mutex_.AwaitWithTimeout(absl::Condition(&none), grace);
      for (const auto& [socket, connection] : connections_) shutdown(socket, SHUT_RDWR);
      mutex_.Await(absl::Condition(&none));
      jobs_changed_.SignalAll();
    }
    for (std::thread& thread : threads_) thread.join();
  }

 private:
  void Accept() {
    while (!stopping_.load()) {
      std::array<pollfd, 2> wanted = {pollfd{listener_, POLLIN, 0}, pollfd{wake_, POLLIN, 0}};
      if (poll(wanted.data(), wanted.size(), -1) < 0 || (wanted[0].revents & POLLIN) == 0) continue;
      const int socket = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
      if (socket >= 0) {
        Admit(socket);
      } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
        absl::SleepFor(kAcceptPause);
      }
    }
  }

  // Gives the connection to a thread, or refuses it.
  void Admit(int socket) {
    const int on = 1;
    setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    setsockopt(socket, SOL_SOCKET, SO_SNDBUF, &kSendBufferBytes, sizeof(kSendBufferBytes));
    absl::MutexLock lock(&mutex_);
    const auto most = static_cast<size_t>(options_.max_connections);
    if (connections_.size() >= most && !EvictOne()) {
      send(socket, refusal_.data(), refusal_.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      shutdown(socket, SHUT_WR);
      close(socket);
      return;
    }
    auto connection = std::make_unique<Connection>(socket);
    connection->waits_since = ++clock_;
    jobs_.push_back(connection.get());
    connections_.emplace(socket, std::move(connection));
    if (jobs_.size() > idle_threads_ && threads_.size() < most) {
      threads_.emplace_back([this] { Work(); });
    } else {
      jobs_changed_.Signal();
    }
  }

  // Ends the connection that has been without a request for the longest: connections that are kept
  // open for later, or never send a request, do not keep others out.
  bool EvictOne() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    Connection* oldest = nullptr;
    for (const auto& [socket, connection] : connections_) {
      if (connection->busy || connection->evicted) continue;
      if (oldest == nullptr || connection->waits_since < oldest->waits_since) {
        oldest = connection.get();
      }
    }
    if (oldest == nullptr) return false;
    oldest->evicted = true;
    shutdown(oldest->io.socket(), SHUT_RDWR);
    return true;
  }

  void Work() {
    while (true) {
      Connection* connection = nullptr;
      {
        absl::MutexLock lock(&mutex_);
        ++idle_threads_;
        while (jobs_.empty() && !(stopping_.load() && connections_.empty())) {
          jobs_changed_.Wait(&mutex_);
        }
        --idle_threads_;
        if (jobs_.empty()) return;
        connection = jobs_.front();
        jobs_.pop_front();
      }
      if (tls_ == nullptr ||
          connection->io.StartTls(tls_->Current().get(), absl::Now() + options_.read_timeout)) {
        Serve(connection);
      }
      if (connection->lingers) connection->io.Linger();
      absl::MutexLock lock(&mutex_);
      const int socket = connection->io.socket();
      connections_.erase(socket);  // first: the number may be another connection's once closed
      close(socket);
    }
  }

  void Serve(Connection* connection) {
    SocketIo& io = connection->io;
    while (!stopping_.load() && io.WaitForData(options_.idle_timeout)) {
      io.Allow(kMaxHeadBytes, absl::Now() + options_.read_timeout);
      connection->began = false;
      StreamAdapter stream(&io, options_.write_timeout);
      bool closed = false;
      const bool ok =
          process_request(stream, stopping_.load(), closed, [&](httplib::Request& request) {
            connection->began = true;
            // The library has no place for the caller's own; the local port is of no use here.
            request.local_port = io.socket();
            request.ranges.clear();  // they could make a response many times its size
          });
      SetBusy(connection, false);
      connection->request = HttpRequest{};  // what it held of the server is free again
      // Without a head it is not known where the next request would begin.
      if (!connection->began) connection->lingers = true;
      if (!ok || closed || !connection->began || connection->closes || !io.writable()) return;
    }
  }

  void SetBusy(Connection* connection, bool busy) {
    absl::MutexLock lock(&mutex_);
    connection->busy = busy;
    connection->waits_since = ++clock_;
  }

  // Null for a request whose head was never read.
  Connection* Find(const httplib::Request& request) {
    absl::MutexLock lock(&mutex_);
    const auto it = connections_.find(request.local_port);
    return it == connections_.end() ? nullptr : it->second.get();
  }

  // What is wrong with the head of a request, or 0.
  int CheckHead(const httplib::Request& request, bool* has_body, const char** message) const {
    const std::string length = request.get_header_value("Content-Length");
    const std::string coding = request.get_header_value("Transfer-Encoding");
    uint64_t bytes = 0;
    *has_body = !coding.empty() || (!length.empty() && length != "0");
    *message = "malformed HTTP request";
    if (request.get_header_value_count("Content-Length") > 1 ||
        request.get_header_value_count("Transfer-Encoding") > 1 ||
        (!length.empty() && !coding.empty())) {
      *message = "more than one of Content-Length and Transfer-Encoding";
      return 400;
    }
    if (!coding.empty() && !absl::EqualsIgnoreCase(coding, "chunked")) {
      *message = "Transfer-Encoding: only chunked is taken";
      return 501;
    }
    const bool digits = std::all_of(length.begin(), length.end(), absl::ascii_isdigit);
    if (!length.empty() && (!digits || !absl::SimpleAtoi(length, &bytes))) {
      *message = "Content-Length is not a number";
      return 400;
    }
    if (bytes > static_cast<uint64_t>(options_.max_body_bytes)) return 413;
    if (request.path.size() > kMaxPathBytes) return 414;
    if (request.method == "POST" && length.empty() && coding.empty()) {
      *message = "a POST wants Content-Length";
      return 411;
    }
    const std::string encoding = request.get_header_value("Content-Encoding");
    if (!encoding.empty() && !absl::EqualsIgnoreCase(encoding, "identity")) {
      *message = "Content-Encoding: compressed requests are not taken";
      return 415;
    }
    if (*has_body && request.method != "POST") {
      *message = "only a POST may have a body";
      return 400;
    }
    return 0;
  }

  // Answers what needs no body. False: the body is wanted, OnBody comes next.
  bool OnHead(const httplib::Request& request, httplib::Response* response) {
    Connection* connection = Find(request);
    bool has_body = false;
    const char* message = "";
    const int error = CheckHead(request, &has_body, &message);
    if (error != 0) {
      Close(connection, true, response);
      if (error == 413) message = TooLarge();
      Apply(callbacks_.error(error, message), request, response);
      return true;
    }
    HttpRequest& head = connection->request;
    head = HttpRequest{};
    head.method = request.method;
    head.path = request.path;
    for (const auto& [name, value] : request.params) head.query.emplace(name, value);
    head.header = [&request](const char* name) { return request.get_header_value(name); };
    head.peer = request.remote_addr;
    head.socket = connection->io.socket();
    if (std::optional<HttpResponse> refusal = callbacks_.admit(&head); refusal.has_value()) {
      if (has_body) Close(connection, true, response);
      Apply(*std::move(refusal), request, response);
      return true;
    }
    if (head.method == "POST") {
      connection->io.Allow(
          static_cast<size_t>(options_.max_body_bytes) * kWireBytesPerBodyByte + kMaxHeadBytes,
          absl::Now() + options_.read_timeout);
      return false;
    }
    SetBusy(connection, true);
    Apply(callbacks_.handle(head), request, response);
    return true;
  }

  void OnBody(const httplib::Request& request, const httplib::ContentReader& reader,
              httplib::Response* response) {
    Connection* connection = Find(request);
    std::string& body = connection->request.body;
    const auto most = static_cast<size_t>(options_.max_body_bytes);
    bool too_large = false;
    const bool whole = reader([&](const char* data, size_t size) {
      too_large = size > most - body.size();
      if (!too_large) body.append(data, size);
      return !too_large;
    });
    if (!whole) {
      Close(connection, true, response);
      Apply(too_large ? callbacks_.error(413, TooLarge())
                      : callbacks_.error(408, "the body did not come in time, or is malformed"),
            request, response);
      return;
    }
    SetBusy(connection, true);
    Apply(callbacks_.handle(connection->request), request, response);
  }

  static const char* TooLarge() {
    return "the body is larger than the server takes (its option http.max_body_bytes)";
  }

  static void Close(Connection* connection, bool lingers, httplib::Response* response) {
    connection->closes = true;
    connection->lingers = lingers;
    response->set_header("Connection", "close");
  }

  static void Apply(HttpResponse from, const httplib::Request& request,
                    httplib::Response* response) {
    response->status = from.status;
    for (const auto& [name, value] : from.headers) response->set_header(name, value);
    if (from.stream == nullptr) {
      response->set_content(from.body, from.content_type);
      return;
    }
    const auto provide = [stream = std::move(from.stream)](size_t, httplib::DataSink& sink) {
      const bool whole = stream(
          [&sink](absl::string_view piece) { return sink.write(piece.data(), piece.size()); });
      if (whole) sink.done();
      return whole;
    };
    if (request.version == "HTTP/1.0") {
      response->set_content_provider(from.content_type, provide);
    } else {
      response->set_chunked_content_provider(from.content_type, provide);
    }
  }

  const HttpServerOptions options_;
  const Callbacks callbacks_;
  const std::unique_ptr<TlsContexts> tls_;  // null: plaintext
  const int listener_;
  const int wake_;
  const std::string refusal_ = Refusal();
  std::atomic<bool> stopping_{false};
  std::thread acceptor_;

  absl::Mutex mutex_;
  absl::CondVar jobs_changed_;
  std::map<int, std::unique_ptr<Connection>> connections_ ABSL_GUARDED_BY(mutex_);
  std::deque<Connection*> jobs_ ABSL_GUARDED_BY(mutex_);
  size_t idle_threads_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t clock_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<std::thread> threads_;  // of the acceptor, then of Stop
};

}  // namespace

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Listen(const HttpServerOptions& options,
                                                               Callbacks callbacks) {
  std::unique_ptr<TlsContexts> tls;
  if (!options.tls.cert.empty()) {
    absl::StatusOr<std::unique_ptr<TlsContexts>> contexts = TlsContexts::Create(options.tls);
    if (!contexts.ok()) return contexts.status();
    tls = *std::move(contexts);
  }
  HttpServerOptions bound = options;
  const absl::StatusOr<int> listener = ListenOn(&bound.address);
  if (!listener.ok()) return listener.status();
  const int wake = eventfd(0, EFD_CLOEXEC);
  if (wake < 0) {
    close(*listener);
    return absl::ResourceExhaustedError("HTTP: no descriptors left");
  }
  return std::make_unique<ServerOverHttplib>(bound, std::move(callbacks), std::move(tls), *listener,
                                             wake);
}

}  // namespace osdn
