// Who may call: API keys, their scopes and their limits, from a file.
#ifndef OSDN_SERVER_API_KEYS_H_
#define OSDN_SERVER_API_KEYS_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace osdn {

enum class Scope : uint8_t { kGenerate, kState, kAdmin };
// "generate", "state", "admin".
absl::string_view ScopeName(Scope scope);

// One entry of the file. The key itself is nowhere: only its SHA-256, which is enough for keys as
// `osdn-tools key` makes them (256 random bits).
struct ApiKey {
  std::string name;    // in logs, and the owner of what it saves
  std::string digest;  // 32 bytes
  uint32_t scopes = 0;
  // 0: no limit.
  int64_t max_concurrent = 0;
  int64_t requests_per_minute = 0;
  int64_t tokens_per_minute = 0;  // prompt and completion, counted when they are known

  bool Allows(Scope scope) const { return (scopes >> static_cast<int>(scope) & 1) != 0; }
};

// The keys of a YAML text; `file` is its name for messages. INVALID_ARGUMENT listing every problem.
absl::StatusOr<std::vector<ApiKey>> ParseApiKeys(absl::string_view text, const std::string& file);

// An amount that comes back with time: so many a minute, a minute's worth at once at most.
// A rate of 0 has no end.
class RateLimit {
 public:
  RateLimit(int64_t per_minute, absl::Time now)
      : left_(static_cast<double>(per_minute)), at_(now) {}

  // How long until something is left; zero when something is.
  absl::Duration Wait(int64_t per_minute, absl::Time now);
  // May go below nothing: what was used is known only afterwards.
  void Take(int64_t per_minute, double amount, absl::Time now);

 private:
  void Refill(int64_t per_minute, absl::Time now);

  double left_;
  absl::Time at_;
};

// Thread-safe.
class ApiKeys {
 public:
  using Clock = absl::Time (*)();
  struct Account;

  // One call under one key. It counts as concurrent as long as this lives.
  class Use {
   public:
    Use(ApiKey key, std::shared_ptr<Account> account, Clock clock);
    ~Use();
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;

    const std::string& name() const { return key_.name; }
    // OK, or PERMISSION_DENIED naming the key, the scope and what it is needed for.
    absl::Status Check(Scope scope, absl::string_view what) const;
    void ChargeTokens(int64_t tokens);
    // It no longer counts, though it lives.
    void Done();

   private:
    const ApiKey key_;
    const std::shared_ptr<Account> account_;
    const Clock clock_;
    std::atomic<bool> done_{false};
  };

  // NOT_FOUND and the file system's errors, and ParseApiKeys', naming the file.
  static absl::StatusOr<std::unique_ptr<ApiKeys>> Open(const std::string& path, Clock clock);

  // Reads the file again if it changed since. An error leaves the keys as they are. True: they are
  // new. Counts and rates go on for keys of the same name.
  absl::StatusOr<bool> ReloadIfChanged();

  // What `token` may do. UNAUTHENTICATED without a token or for one that is no key, equally slowly;
  // PERMISSION_DENIED for the scope; RESOURCE_EXHAUSTED with a RetryInfo over one of the limits.
  absl::StatusOr<std::shared_ptr<Use>> Admit(absl::string_view token, Scope scope,
                                             absl::string_view what);
  size_t size() const;

 private:
  // Tells one content of a file from another.
  struct Stamp {
    int64_t seconds = -1;
    int64_t nanoseconds = 0;
    int64_t bytes = 0;
    uint64_t inode = 0;
    bool operator==(const Stamp&) const = default;
  };
  struct Entry {
    ApiKey key;
    std::shared_ptr<Account> account;
  };

  ApiKeys(std::string path, Clock clock) : path_(std::move(path)), clock_(clock) {}
  absl::StatusOr<Stamp> StampOf() const;
  absl::Status Read();

  const std::string path_;
  const Clock clock_;
  mutable absl::Mutex mutex_;
  Stamp stamp_ ABSL_GUARDED_BY(mutex_);
  std::vector<Entry> entries_ ABSL_GUARDED_BY(mutex_);
};

// A new key as clients send it, and the line of hex for its file.
struct NewApiKey {
  std::string key;
  std::string sha256;
};
// INTERNAL when the system has no random numbers.
absl::StatusOr<NewApiKey> MakeApiKey();

// The token of "Bearer TOKEN", or "".
absl::string_view BearerToken(absl::string_view authorization);

}  // namespace osdn

#endif  // OSDN_SERVER_API_KEYS_H_
