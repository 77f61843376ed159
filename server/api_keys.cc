#include "server/api_keys.h"

#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "engine/sha256.h"
#include "engine/yaml_reader.h"
#include "server/status.h"

namespace osdn {
namespace {

using internal::Presence;
using internal::YamlMap;

constexpr Scope kScopes[] = {Scope::kGenerate, Scope::kState, Scope::kAdmin};
constexpr size_t kMaxKeys = 10'000;
constexpr size_t kMaxNameBytes = 64;
constexpr int64_t kMaxRate = int64_t{1} << 50;

std::string DigestOf(absl::string_view text) {
  return Sha256Digest(absl::MakeSpan(reinterpret_cast<const std::byte*>(text.data()), text.size()));
}

bool IsHexDigest(absl::string_view text) {
  return text.size() == 64 && std::all_of(text.begin(), text.end(),
                                          [](unsigned char c) { return absl::ascii_isxdigit(c); });
}

bool IsName(absl::string_view name) {
  return !name.empty() && name.size() <= kMaxNameBytes &&
         std::all_of(name.begin(), name.end(), [](unsigned char c) {
           return absl::ascii_isalnum(c) || c == '-' || c == '_' || c == '.' || c == '@';
         });
}

uint32_t ReadScopes(YamlMap* map, std::vector<std::string>* errors) {
  uint32_t scopes = 0;
  map->ReadList("scopes", Presence::kRequired, std::size(kScopes),
                [&](const YAML::Node& node, const std::string& path) {
                  const std::optional<std::string> name = internal::YamlScalar(node, path, errors);
                  if (!name.has_value()) return;
                  for (const Scope scope : kScopes) {
                    if (*name != ScopeName(scope)) continue;
                    scopes |= 1U << static_cast<int>(scope);
                    return;
                  }
                  errors->push_back(absl::StrCat(path, ": \"", *name,
                                                 "\" is no scope: generate, state or admin"));
                });
  return scopes;
}

void ReadLimit(YamlMap* map, const std::string& key, int64_t* out) {
  map->Read(key, Presence::kOptional, out);
  if (*out < 0 || *out > kMaxRate) {
    map->Error(key, absl::StrCat(*out, " is outside [0, ", kMaxRate, "]; 0 is no limit"));
  }
}

ApiKey ReadKey(const YAML::Node& node, const std::string& path, std::vector<std::string>* errors) {
  ApiKey key;
  YamlMap map(node, path, errors);
  map.Read("name", Presence::kRequired, &key.name);
  if (map.Has("name") && !IsName(key.name)) {
    map.Error("name", "wants 1 to 64 letters, digits and any of -_.@");
  }
  std::string digest;
  map.Read("sha256", Presence::kRequired, &digest);
  if (IsHexDigest(digest)) {
    key.digest = absl::HexStringToBytes(digest);
  } else if (map.Has("sha256")) {
    map.Error("sha256", "wants the 64 hex digits of the key's SHA-256 (osdn-tools key makes one)");
  }
  key.scopes = ReadScopes(&map, errors);
  ReadLimit(&map, "max_concurrent", &key.max_concurrent);
  ReadLimit(&map, "requests_per_minute", &key.requests_per_minute);
  ReadLimit(&map, "tokens_per_minute", &key.tokens_per_minute);
  map.RejectUnknownKeys();
  return key;
}

}  // namespace

absl::string_view ScopeName(Scope scope) {
  switch (scope) {
    case Scope::kGenerate:
      return "generate";
    case Scope::kState:
      return "state";
    case Scope::kAdmin:
      return "admin";
  }
  return "";
}

absl::StatusOr<std::vector<ApiKey>> ParseApiKeys(absl::string_view text, const std::string& file) {
  std::vector<ApiKey> keys;
  const absl::Status read = internal::ReadYaml(
      file, std::string(text), [&](const YAML::Node& root, std::vector<std::string>* errors) {
        YamlMap map(root, "", errors);
        std::set<std::string> names;
        std::set<std::string> digests;
        map.ReadList(
            "keys", Presence::kRequired, kMaxKeys,
            [&](const YAML::Node& node, const std::string& path) {
              ApiKey key = ReadKey(node, path, errors);
              if (!key.name.empty() && !names.insert(key.name).second) {
                errors->push_back(absl::StrCat(path, ".name: ", key.name, " is there twice"));
              }
              if (!key.digest.empty() && !digests.insert(key.digest).second) {
                errors->push_back(absl::StrCat(path, ".sha256: is another key's too"));
              }
              keys.push_back(std::move(key));
            });
        map.RejectUnknownKeys();
      });
  if (!read.ok()) return read;
  return keys;
}

void RateLimit::Refill(int64_t per_minute, absl::Time now) {
  const auto most = static_cast<double>(per_minute);
  const double minutes = std::max(0.0, absl::ToDoubleMinutes(now - at_));
  left_ = std::min(most, left_ + most * minutes);
  at_ = std::max(at_, now);
}

absl::Duration RateLimit::Wait(int64_t per_minute, absl::Time now) {
  if (per_minute == 0) return absl::ZeroDuration();
  Refill(per_minute, now);
  // A whole one, so that a rate of 1 a minute is one.
  if (left_ >= 1.0) return absl::ZeroDuration();
  return absl::Minutes((1.0 - left_) / static_cast<double>(per_minute));
}

void RateLimit::Take(int64_t per_minute, double amount, absl::Time now) {
  if (per_minute == 0) return;
  Refill(per_minute, now);
  left_ -= amount;
}

struct ApiKeys::Account {
  Account(const ApiKey& key, absl::Time now)
      : requests(key.requests_per_minute, now), tokens(key.tokens_per_minute, now) {}

  absl::Mutex mutex;
  int64_t concurrent ABSL_GUARDED_BY(mutex) = 0;
  RateLimit requests ABSL_GUARDED_BY(mutex);
  RateLimit tokens ABSL_GUARDED_BY(mutex);
};

ApiKeys::Use::Use(ApiKey key, std::shared_ptr<Account> account, Clock clock)
    : key_(std::move(key)), account_(std::move(account)), clock_(clock) {}

ApiKeys::Use::~Use() { Done(); }

void ApiKeys::Use::Done() {
  if (done_.exchange(true)) return;
  absl::MutexLock lock(&account_->mutex);
  --account_->concurrent;
}

absl::Status ApiKeys::Use::Check(Scope scope, absl::string_view what) const {
  if (key_.Allows(scope)) return absl::OkStatus();
  return absl::PermissionDeniedError(absl::StrCat("API key ", key_.name, " lacks the scope ",
                                                  ScopeName(scope), ", which ", what, " needs"));
}

void ApiKeys::Use::ChargeTokens(int64_t tokens) {
  absl::MutexLock lock(&account_->mutex);
  account_->tokens.Take(key_.tokens_per_minute, static_cast<double>(tokens), clock_());
}

absl::StatusOr<std::unique_ptr<ApiKeys>> ApiKeys::Open(const std::string& path, Clock clock) {
  std::unique_ptr<ApiKeys> keys(new ApiKeys(path, clock));
  if (absl::Status s = keys->Read(); !s.ok()) return s;
  return keys;
}

absl::StatusOr<ApiKeys::Stamp> ApiKeys::StampOf() const {
  struct stat info {};
  if (::stat(path_.c_str(), &info) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("API keys: cannot read ", path_));
  }
  return Stamp{info.st_mtim.tv_sec, info.st_mtim.tv_nsec, info.st_size, info.st_ino};
}

absl::Status ApiKeys::Read() {
  // Before the content: what is written in between is read next time.
  const absl::StatusOr<Stamp> stamp = StampOf();
  if (!stamp.ok()) return stamp.status();
  const absl::StatusOr<std::string> text = internal::ReadTextFile(path_);
  if (!text.ok()) return text.status();
  absl::StatusOr<std::vector<ApiKey>> keys = ParseApiKeys(*text, path_);
  absl::MutexLock lock(&mutex_);
  // A file that is wrong is told of once, not at every look.
  stamp_ = *stamp;
  if (!keys.ok()) return keys.status();
  std::vector<Entry> entries;
  for (ApiKey& key : *keys) {
    std::shared_ptr<Account> account;
    for (const Entry& old : entries_) {
      if (old.key.name == key.name) account = old.account;
    }
    if (account == nullptr) account = std::make_shared<Account>(key, clock_());
    entries.push_back({std::move(key), std::move(account)});
  }
  entries_ = std::move(entries);
  return absl::OkStatus();
}

absl::StatusOr<bool> ApiKeys::ReloadIfChanged() {
  const absl::StatusOr<Stamp> stamp = StampOf();
  if (!stamp.ok()) return stamp.status();
  {
    absl::MutexLock lock(&mutex_);
    if (stamp_ == *stamp) return false;
  }
  if (absl::Status s = Read(); !s.ok()) return s;
  return true;
}

absl::StatusOr<std::shared_ptr<ApiKeys::Use>> ApiKeys::Admit(absl::string_view token, Scope scope,
                                                             absl::string_view what) {
  const std::string digest = DigestOf(token);
  std::optional<Entry> found;
  {
    absl::MutexLock lock(&mutex_);
    // All of them, whichever it is.
    for (const Entry& entry : entries_) {
      const bool same = CRYPTO_memcmp(entry.key.digest.data(), digest.data(), digest.size()) == 0;
      if (same) found = entry;
    }
  }
  if (!found.has_value()) {
    return absl::UnauthenticatedError(
        token.empty() ? "an API key is wanted: send it as \"authorization: Bearer KEY\""
                      : "this API key is not known");
  }
  const ApiKey& key = found->key;
  const absl::Time now = clock_();
  {
    absl::MutexLock lock(&found->account->mutex);
    Account& account = *found->account;
    if (key.max_concurrent > 0 && account.concurrent >= key.max_concurrent) {
      return WithRetryDelay(
          absl::ResourceExhaustedError(absl::StrCat("API key ", key.name, ": ", account.concurrent,
                                                    " calls run, at most ", key.max_concurrent,
                                                    " may (max_concurrent)")),
          kRetryDelay);
    }
    const absl::Duration wait = std::max(account.requests.Wait(key.requests_per_minute, now),
                                         account.tokens.Wait(key.tokens_per_minute, now));
    if (wait > absl::ZeroDuration()) {
      return WithRetryDelay(
          absl::ResourceExhaustedError(absl::StrCat(
              "API key ", key.name, ": over its rate (requests_per_minute ",
              key.requests_per_minute, ", tokens_per_minute ", key.tokens_per_minute, ")")),
          wait);
    }
    account.requests.Take(key.requests_per_minute, 1.0, now);
    ++account.concurrent;
  }
  auto use = std::make_shared<Use>(std::move(found->key), std::move(found->account), clock_);
  if (absl::Status s = use->Check(scope, what); !s.ok()) return s;
  return use;
}

size_t ApiKeys::size() const {
  absl::MutexLock lock(&mutex_);
  return entries_.size();
}

absl::StatusOr<NewApiKey> MakeApiKey() {
  unsigned char bytes[32];
  if (RAND_bytes(bytes, sizeof(bytes)) != 1) {
    return absl::InternalError("the system gives no random numbers");
  }
  std::string text;
  absl::WebSafeBase64Escape(absl::string_view(reinterpret_cast<const char*>(bytes), sizeof(bytes)),
                            &text);
  NewApiKey made;
  made.key = absl::StrCat("osdn-", text);
  made.sha256 = absl::BytesToHexString(DigestOf(made.key));
  return made;
}

absl::string_view BearerToken(absl::string_view authorization) {
  constexpr absl::string_view kScheme = "bearer ";
  if (!absl::StartsWithIgnoreCase(authorization, kScheme)) return {};
  return absl::StripAsciiWhitespace(authorization.substr(kScheme.size()));
}

}  // namespace osdn
