// Commands to one Redis server, from any thread.
#ifndef OSDN_ENGINE_REDIS_CLIENT_H_
#define OSDN_ENGINE_REDIS_CLIENT_H_

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

struct redisContext;

namespace osdn {

// A reply, by value.
struct RedisReply {
  enum class Kind : uint8_t { kNil, kText, kInteger, kList };
  Kind kind = Kind::kNil;
  std::string text{};  // of kText
  int64_t integer = 0;
  std::vector<RedisReply> list{};
};

// Thread-safe: a connection a call, kept for the next. Every call ends within the timeouts. A
// server that cannot be reached is tried again after a pause that doubles, up to two seconds; until
// then calls fail at once.
class RedisClient {
 public:
  struct Options {
    std::string host;
    int port = 6379;
    std::string user{};                         // empty: the default one
    std::string password{};                     // empty: none is sent
    absl::Duration timeout = absl::Seconds(2);  // to connect, and of one command
  };

  explicit RedisClient(Options options);
  ~RedisClient();
  RedisClient(const RedisClient&) = delete;
  RedisClient& operator=(const RedisClient&) = delete;

  // `arguments` may hold any bytes. A command that was cut off is sent once more over a new
  // connection: it must not matter whether it is done twice. UNAVAILABLE naming the server when it
  // cannot be reached or is not ready; RESOURCE_EXHAUSTED when it is out of memory; INTERNAL with
  // what it says for other errors.
  absl::StatusOr<RedisReply> Run(const std::vector<absl::string_view>& arguments);

  const std::string& name() const { return name_; }

 private:
  struct CloseContext {
    void operator()(redisContext* context) const;
  };
  using Connection = std::unique_ptr<redisContext, CloseContext>;

  absl::StatusOr<Connection> Connect();
  // One that is kept, or null.
  Connection TakeIdle();
  // nullopt: the connection broke.
  std::optional<absl::StatusOr<RedisReply>> Send(
      redisContext* context, const std::vector<absl::string_view>& arguments) const;
  absl::Status Unreachable(absl::string_view why) const;

  const Options options_;
  const std::string name_;
  std::mutex mutex_;  // guards all below
  std::vector<Connection> idle_;
  absl::Time not_before_ = absl::InfinitePast();
  absl::Duration pause_;
  std::string last_error_;
};

}  // namespace osdn

#endif  // OSDN_ENGINE_REDIS_CLIENT_H_
