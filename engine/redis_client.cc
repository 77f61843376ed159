#include "engine/redis_client.h"

#include <hiredis.h>
#include <sys/time.h>

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace osdn {
namespace {

constexpr absl::Duration kFirstPause = absl::Milliseconds(50);
constexpr absl::Duration kLongestPause = absl::Seconds(2);
constexpr size_t kMaxIdle = 8;

struct FreeReply {
  void operator()(void* reply) const { freeReplyObject(reply); }
};
using ReplyPtr = std::unique_ptr<redisReply, FreeReply>;

RedisReply ToReply(const redisReply& reply) {
  switch (reply.type) {
    case REDIS_REPLY_STRING:
    case REDIS_REPLY_STATUS:
      return {.kind = RedisReply::Kind::kText, .text = std::string(reply.str, reply.len)};
    case REDIS_REPLY_INTEGER:
      return {.kind = RedisReply::Kind::kInteger, .integer = reply.integer};
    case REDIS_REPLY_ARRAY: {
      RedisReply list{.kind = RedisReply::Kind::kList};
      for (size_t i = 0; i < reply.elements; ++i) list.list.push_back(ToReply(*reply.element[i]));
      return list;
    }
    default:
      return {};
  }
}

// What a server says while it starts, fails over or is told to wait: trying again helps.
bool NotReady(absl::string_view error) {
  for (const char* word :
       {"LOADING", "MASTERDOWN", "READONLY", "BUSY", "TRYAGAIN", "CLUSTERDOWN"}) {
    if (absl::StartsWith(error, word)) return true;
  }
  return false;
}

}  // namespace

void RedisClient::CloseContext::operator()(redisContext* context) const { redisFree(context); }

RedisClient::RedisClient(Options options)
    : options_(std::move(options)), name_(absl::StrCat(options_.host, ":", options_.port)) {}

RedisClient::~RedisClient() = default;

absl::Status RedisClient::Unreachable(absl::string_view why) const {
  return absl::UnavailableError(absl::StrCat("the state store (Redis at ", name_,
                                             ") cannot be reached: ", why, "; try again later"));
}

absl::StatusOr<RedisReply> RedisClient::Run(const std::vector<absl::string_view>& arguments) {
  // One that was kept may have been closed by the server meanwhile: then on to a new one.
  if (Connection kept = TakeIdle(); kept != nullptr) {
    if (auto reply = Send(kept.get(), arguments)) {
      std::lock_guard<std::mutex> lock(mutex_);
      if (idle_.size() < kMaxIdle) idle_.push_back(std::move(kept));
      return *std::move(reply);
    }
  }
  absl::StatusOr<Connection> fresh = Connect();
  if (!fresh.ok()) return fresh.status();
  std::optional<absl::StatusOr<RedisReply>> reply = Send(fresh->get(), arguments);
  if (!reply.has_value()) return Unreachable((*fresh)->errstr);
  std::lock_guard<std::mutex> lock(mutex_);
  if (idle_.size() < kMaxIdle) idle_.push_back(*std::move(fresh));
  return *std::move(reply);
}

RedisClient::Connection RedisClient::TakeIdle() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (idle_.empty()) return nullptr;
  Connection connection = std::move(idle_.back());
  idle_.pop_back();
  return connection;
}

absl::StatusOr<RedisClient::Connection> RedisClient::Connect() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (absl::Now() < not_before_) return Unreachable(last_error_);
  }
  const timeval timeout = absl::ToTimeval(options_.timeout);
  Connection connection(redisConnectWithTimeout(options_.host.c_str(), options_.port, timeout));
  std::string error;
  if (connection == nullptr) {
    error = "out of memory";
  } else if (connection->err != 0) {
    error = connection->errstr;
  } else if (redisSetTimeout(connection.get(), timeout) != REDIS_OK) {
    error = "its timeout cannot be set";
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!error.empty()) {
      pause_ = std::clamp(pause_ * 2, kFirstPause, kLongestPause);
      not_before_ = absl::Now() + pause_;
      last_error_ = error;
      idle_.clear();  // to the same server
      return Unreachable(error);
    }
    pause_ = absl::ZeroDuration();
  }
  if (options_.password.empty()) return connection;
  std::vector<absl::string_view> login = {"AUTH"};
  if (!options_.user.empty()) login.push_back(options_.user);
  login.push_back(options_.password);
  const std::optional<absl::StatusOr<RedisReply>> welcome = Send(connection.get(), login);
  if (!welcome.has_value()) return Unreachable(connection->errstr);
  if (!welcome->ok()) return welcome->status();
  return connection;
}

std::optional<absl::StatusOr<RedisReply>> RedisClient::Send(
    redisContext* context, const std::vector<absl::string_view>& arguments) const {
  std::vector<const char*> data;
  std::vector<size_t> sizes;
  for (const absl::string_view argument : arguments) {
    data.push_back(argument.data());
    sizes.push_back(argument.size());
  }
  const ReplyPtr reply(static_cast<redisReply*>(
      redisCommandArgv(context, static_cast<int>(arguments.size()), data.data(), sizes.data())));
  if (reply == nullptr) return std::nullopt;
  if (reply->type != REDIS_REPLY_ERROR) return ToReply(*reply);
  const absl::string_view error(reply->str, reply->len);
  if (NotReady(error)) return Unreachable(error);
  if (absl::StartsWith(error, "OOM")) {
    return absl::ResourceExhaustedError("the state store has no room left");
  }
  // Its own words are for the log; they may repeat arguments.
  return absl::InternalError(absl::StrCat("Redis at ", name_, ": ", error));
}

}  // namespace osdn
