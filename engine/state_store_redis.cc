#include "engine/state_store_redis.h"

#include <algorithm>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace osdn {
namespace {

using Arguments = std::vector<absl::string_view>;

// Lua, run by Redis. KEYS[1] is the hash "usage"; ARGV[1] is what all keys begin with.
constexpr char kForget[] = R"lua(
local usage, prefix = KEYS[1], ARGV[1]
local function forget(id)
  local held = redis.call('HGET', prefix .. 'held', id)
  if not held then return 0 end
  local bytes, owner = held:match('^(%d+) (.*)$')
  redis.call('HDEL', prefix .. 'held', id)
  redis.call('ZREM', prefix .. 'expiry', id)
  redis.call('ZREM', prefix .. 'owner:' .. owner, id)
  redis.call('UNLINK', prefix .. 'state:' .. id)
  redis.call('HINCRBY', usage, 'bytes', '-' .. bytes)
  redis.call('HINCRBY', usage, 'states', '-1')
  return 1
end
local function sweep(now)
  local due = redis.call('ZRANGEBYSCORE', prefix .. 'expiry', '-inf', now, 'LIMIT', 0, 200)
  for _, id in ipairs(due) do
    redis.call('HINCRBY', usage, 'expired', forget(id))
  end
end
local function held()
  local found = redis.call('HMGET', usage, 'bytes', 'states', 'expired')
  for i = 1, 3 do found[i] = tonumber(found[i] or '0') end
  return found
end
)lua";

// ARGV: prefix, id, owner, now, expires, bytes, max bytes, max states, record, blob.
// -> [0 kept | 1 too many states | 2 too many bytes, bytes, states, expired]
constexpr char kPut[] = R"lua(
local id, owner, bytes = ARGV[2], ARGV[3], tonumber(ARGV[6])
local function answer(code)
  local found = held()
  table.insert(found, 1, code)
  return found
end
if redis.call('HEXISTS', prefix .. 'held', id) == 1 then return answer(0) end
sweep(ARGV[4])
local found = held()
if found[2] >= tonumber(ARGV[8]) then return answer(1) end
if bytes > tonumber(ARGV[7]) - found[1] then return answer(2) end
redis.call('HSET', prefix .. 'state:' .. id, 'record', ARGV[9], 'blob', ARGV[10])
redis.call('PEXPIREAT', prefix .. 'state:' .. id, ARGV[5])
redis.call('ZADD', prefix .. 'owner:' .. owner, 0, id)
redis.call('ZADD', prefix .. 'expiry', ARGV[5], id)
redis.call('HSET', prefix .. 'held', id, ARGV[6] .. ' ' .. owner)
redis.call('HINCRBY', usage, 'bytes', ARGV[6])
redis.call('HINCRBY', usage, 'states', 1)
return answer(0)
)lua";

// ARGV: prefix, now. -> [bytes, states, expired]
constexpr char kSweep[] = R"lua(
sweep(ARGV[2])
return held()
)lua";

// ARGV: prefix, id, owner. -> whether it was there.
constexpr char kDelete[] = R"lua(
local found = redis.call('HGET', prefix .. 'held', ARGV[2])
if not found or found:match('^%d+ (.*)$') ~= ARGV[3] then return 0 end
return forget(ARGV[2])
)lua";

// ARGV: prefix, owner, after, limit. -> records
constexpr char kList[] = R"lua(
local records, limit = {}, tonumber(ARGV[4])
local from = ARGV[3] == '' and '-' or '(' .. ARGV[3]
while #records < limit do
  local ids = redis.call('ZRANGEBYLEX', prefix .. 'owner:' .. ARGV[2], from, '+', 'LIMIT', 0, 200)
  if #ids == 0 then break end
  for _, id in ipairs(ids) do
    local record = redis.call('HGET', prefix .. 'state:' .. id, 'record')
    if record and #records < limit then table.insert(records, record) end
  end
  from = '(' .. ids[#ids]
end
return records
)lua";

class RedisStore final : public StateStore {
 public:
  RedisStore(const Options& options, const RedisClient::Options& redis, const std::string& prefix,
             Clock clock, Report report)
      : options_(options),
        redis_(redis),
        prefix_(absl::StrCat(prefix, ":{osdn}:")),
        clock_(clock),
        report_(std::move(report)) {}

  // OK too while Redis cannot be reached.
  absl::Status Begin() {
    const absl::StatusOr<RedisReply> reply = redis_.Run({"PING"});
    if (reply.ok() || absl::IsUnavailable(reply.status())) {
      Sweep();
      return absl::OkStatus();
    }
    return reply.status();
  }

  absl::StatusOr<StateRecord> Put(StateRecord record, absl::Duration ttl,
                                  absl::string_view blob) override {
    absl::StatusOr<std::string> id = MakeStateId();
    if (!id.ok()) return id.status();
    record.id = *std::move(id);
    record.bytes = static_cast<int64_t>(blob.size());
    record.created = clock_();
    record.expires =
        record.created + (ttl <= absl::ZeroDuration() ? options_.ttl : std::min(ttl, options_.ttl));
    const std::string now = Millis(record.created);
    const std::string expires = Millis(record.expires);
    const std::string bytes = absl::StrCat(record.bytes);
    const std::string max_bytes = absl::StrCat(options_.max_bytes);
    const std::string max_states = absl::StrCat(options_.max_states);
    const std::string json = EncodeRecord(record);
    const absl::StatusOr<RedisReply> reply = Script(
        kPut, {record.id, record.owner, now, expires, bytes, max_bytes, max_states, json, blob});
    if (!reply.ok()) return reply.status();
    if (reply->list.size() != 4) return Unexpected();
    const Usage usage = TakeUsage(*reply, 1);
    if (reply->list[0].integer == 1) return StateQuotaError(usage.states, options_.max_states);
    if (reply->list[0].integer == 2) {
      return StateBytesError(usage.bytes, record.bytes, options_.max_bytes);
    }
    return record;
  }

  absl::StatusOr<StateRecord> Find(absl::string_view owner, absl::string_view id) override {
    const std::string key = StateKey(id);
    const absl::StatusOr<RedisReply> reply = Run({"HGET", key, "record"});
    if (!reply.ok()) return reply.status();
    return OwnedRecord(*reply, owner, id);
  }

  absl::StatusOr<std::string> Read(absl::string_view owner, absl::string_view id) override {
    const std::string key = StateKey(id);
    absl::StatusOr<RedisReply> reply = Run({"HMGET", key, "record", "blob"});
    if (!reply.ok()) return reply.status();
    if (reply->list.size() != 2) return Unexpected();
    const absl::StatusOr<StateRecord> record = OwnedRecord(reply->list[0], owner, id);
    if (!record.ok()) return record.status();
    std::string& blob = reply->list[1].text;
    if (static_cast<int64_t>(blob.size()) != record->bytes) {
      report_(
          absl::StrCat(record->id, " has ", blob.size(), " bytes in Redis, not ", record->bytes));
      return absl::DataLossError(absl::StrCat("state ", record->id, " is damaged on the server"));
    }
    return std::move(blob);
  }

  absl::Status Delete(absl::string_view owner, absl::string_view id) override {
    const absl::StatusOr<RedisReply> reply = Script(kDelete, {id, owner});
    if (!reply.ok()) return reply.status();
    return reply->integer == 1 ? absl::OkStatus() : StateNotFound(id);
  }

  absl::StatusOr<std::vector<StateRecord>> List(absl::string_view owner, absl::string_view after,
                                                size_t limit) override {
    const std::string most = absl::StrCat(limit);
    const absl::StatusOr<RedisReply> reply = Script(kList, {owner, after, most});
    if (!reply.ok()) return reply.status();
    std::vector<StateRecord> records;
    for (const RedisReply& text : reply->list) {
      absl::StatusOr<StateRecord> record = ParseRecord(text.text);
      if (record.ok() && record->expires > clock_()) records.push_back(*std::move(record));
    }
    return records;
  }

  void Sweep() override {
    const std::string now = Millis(clock_());
    const absl::StatusOr<RedisReply> reply = Script(kSweep, {now});
    if (reply.ok()) TakeUsage(*reply, 0);
  }

  Usage usage() const override {
    std::lock_guard<std::mutex> lock(mutex_);
    return usage_;
  }
  bool durable() const override { return true; }

 private:
  static std::string Millis(absl::Time time) { return absl::StrCat(absl::ToUnixMillis(time)); }
  std::string StateKey(absl::string_view id) const { return absl::StrCat(prefix_, "state:", id); }

  absl::StatusOr<RedisReply> Script(const char* body, const Arguments& arguments) {
    const std::string text = absl::StrCat(kForget, body);
    const std::string usage = absl::StrCat(prefix_, "usage");
    Arguments all = {"EVAL", text, "1", usage, prefix_};
    all.insert(all.end(), arguments.begin(), arguments.end());
    return Run(all);
  }

  // Errors are for clients; what Redis said goes to the log, once an outage.
  absl::StatusOr<RedisReply> Run(const Arguments& arguments) {
    absl::StatusOr<RedisReply> reply = redis_.Run(arguments);
    std::lock_guard<std::mutex> lock(mutex_);
    if (reply.ok()) {
      if (failing_) report_(absl::StrCat("Redis at ", redis_.name(), " answers again"));
      failing_ = false;
      return reply;
    }
    if (!failing_) report_(std::string(reply.status().message()));
    failing_ = true;
    if (absl::IsUnavailable(reply.status())) {
      return absl::UnavailableError("the state store cannot be reached; try again later");
    }
    if (absl::IsResourceExhausted(reply.status())) return reply;
    return Unexpected();
  }

  static absl::Status Unexpected() {
    return absl::InternalError("the state store failed: the server's log says why");
  }

  Usage TakeUsage(const RedisReply& reply, size_t first) {
    if (reply.list.size() < first + 3) return usage();
    const Usage usage{.bytes = reply.list[first].integer,
                      .states = reply.list[first + 1].integer,
                      .expired = reply.list[first + 2].integer};
    std::lock_guard<std::mutex> lock(mutex_);
    usage_ = usage;
    return usage;
  }

  absl::StatusOr<StateRecord> OwnedRecord(const RedisReply& text, absl::string_view owner,
                                          absl::string_view id) {
    if (text.kind != RedisReply::Kind::kText) return StateNotFound(id);
    absl::StatusOr<StateRecord> record = ParseRecord(text.text);
    if (!record.ok()) return record.status();
    if (record->owner != owner || record->expires <= clock_()) return StateNotFound(id);
    return record;
  }

  const Options options_;
  RedisClient redis_;
  const std::string prefix_;
  const Clock clock_;
  const Report report_;
  mutable std::mutex mutex_;  // guards all below
  Usage usage_;               // as of the last answer
  bool failing_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<StateStore>> OpenRedisStore(const StateStore::Options& options,
                                                           const RedisClient::Options& redis,
                                                           const std::string& prefix,
                                                           StateStore::Clock clock,
                                                           StateStore::Report report) {
  auto store = std::make_unique<RedisStore>(options, redis, prefix, clock, std::move(report));
  if (absl::Status s = store->Begin(); !s.ok()) return s;
  return std::unique_ptr<StateStore>(std::move(store));
}

}  // namespace osdn
