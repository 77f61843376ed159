#include "engine/state_store.h"

#include <openssl/rand.h>

#include <algorithm>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace osdn {
namespace {

class MemoryStorage final : public StateStorage {
 public:
  absl::Status Write(const StateRecord& record, absl::string_view blob) override {
    std::lock_guard<std::mutex> lock(mutex_);
    blobs_[record.id] = std::string(blob);
    return absl::OkStatus();
  }
  absl::StatusOr<std::string> Read(const StateRecord& record) override {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto it = blobs_.find(record.id);
    if (it == blobs_.end()) return absl::NotFoundError(absl::StrCat("no state ", record.id));
    return it->second;
  }
  absl::Status Remove(const StateRecord& record) override {
    std::lock_guard<std::mutex> lock(mutex_);
    blobs_.erase(record.id);
    return absl::OkStatus();
  }
  absl::StatusOr<std::vector<StateRecord>> Load(std::vector<std::string>*) override {
    return std::vector<StateRecord>();
  }

 private:
  std::mutex mutex_;
  std::map<std::string, std::string> blobs_;
};

// 128 random bits: not to be guessed, never met twice.
absl::StatusOr<std::string> MakeId() {
  unsigned char random[16];
  if (RAND_bytes(random, sizeof random) != 1) {
    return absl::InternalError("the system gives no random numbers for a state id");
  }
  return absl::StrCat("st-", absl::BytesToHexString(absl::string_view(
                                 reinterpret_cast<const char*>(random), sizeof random)));
}

absl::Status NotFound(absl::string_view id) {
  // The id may be anything a client sent: it is told in part only.
  return absl::NotFoundError(absl::StrCat("no state \"", absl::CHexEscape(id.substr(0, 64)),
                                          "\": it never was, has expired or was deleted"));
}

}  // namespace

std::unique_ptr<StateStorage> MakeMemoryStorage() { return std::make_unique<MemoryStorage>(); }

StateStore::StateStore(const Options& options, std::unique_ptr<StateStorage> storage, Clock clock)
    : options_(options), storage_(std::move(storage)), clock_(clock) {}

absl::StatusOr<std::unique_ptr<StateStore>> StateStore::Create(
    const Options& options, std::unique_ptr<StateStorage> storage, Clock clock,
    std::vector<std::string>* problems) {
  std::unique_ptr<StateStore> store(new StateStore(options, std::move(storage), clock));
  absl::StatusOr<std::vector<StateRecord>> records = store->storage_->Load(problems);
  if (!records.ok()) return records.status();
  for (StateRecord& record : *records) {
    store->usage_.bytes += record.bytes;
    ++store->usage_.states;
    std::string id = record.id;
    store->records_.emplace(std::move(id), std::move(record));
  }
  store->Sweep();
  return store;
}

absl::Status StateStore::Reserve(int64_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (usage_.states >= options_.max_states) {
    return absl::ResourceExhaustedError(
        absl::StrCat("state quota: ", usage_.states, " states are kept, at most ",
                     options_.max_states, " may be; delete some or wait until they expire"));
  }
  if (bytes > options_.max_bytes - usage_.bytes) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "state quota: ", usage_.bytes, " bytes are kept and this state has ", bytes, ", at most ",
        options_.max_bytes, " may be; delete some or wait until they expire"));
  }
  usage_.bytes += bytes;
  ++usage_.states;
  return absl::OkStatus();
}

void StateStore::Release(int64_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  usage_.bytes -= bytes;
  --usage_.states;
}

absl::StatusOr<StateRecord> StateStore::Put(StateRecord record, absl::Duration ttl,
                                            absl::string_view blob) {
  Sweep();
  absl::StatusOr<std::string> id = MakeId();
  if (!id.ok()) return id.status();
  record.id = *std::move(id);
  record.bytes = static_cast<int64_t>(blob.size());
  record.created = clock_();
  record.expires =
      record.created + (ttl <= absl::ZeroDuration() ? options_.ttl : std::min(ttl, options_.ttl));
  if (absl::Status s = Reserve(record.bytes); !s.ok()) return s;
  // Not under the lock: others read and write meanwhile.
  if (absl::Status s = storage_->Write(record, blob); !s.ok()) {
    Release(record.bytes);
    return s;
  }
  std::lock_guard<std::mutex> lock(mutex_);
  records_.emplace(record.id, record);
  return record;
}

absl::StatusOr<StateRecord> StateStore::Find(absl::string_view owner, absl::string_view id) {
  const absl::Time now = clock_();
  std::lock_guard<std::mutex> lock(mutex_);
  const auto it = records_.find(id);
  if (it == records_.end() || it->second.owner != owner || it->second.expires <= now) {
    return NotFound(id);
  }
  return it->second;
}

absl::StatusOr<std::string> StateStore::Read(absl::string_view owner, absl::string_view id) {
  const absl::StatusOr<StateRecord> record = Find(owner, id);
  if (!record.ok()) return record.status();
  absl::StatusOr<std::string> blob = storage_->Read(*record);
  // Deleted or swept while it was being read.
  if (!blob.ok() && !Find(owner, id).ok()) return NotFound(id);
  return blob;
}

absl::Status StateStore::Delete(absl::string_view owner, absl::string_view id) {
  StateRecord record;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto it = records_.find(id);
    if (it == records_.end() || it->second.owner != owner) return NotFound(id);
    record = std::move(it->second);
    records_.erase(it);
    usage_.bytes -= record.bytes;
    --usage_.states;
  }
  return storage_->Remove(record);
}

std::vector<StateRecord> StateStore::List(absl::string_view owner, absl::string_view after,
                                          size_t limit) {
  const absl::Time now = clock_();
  std::vector<StateRecord> found;
  std::lock_guard<std::mutex> lock(mutex_);
  for (auto it = records_.upper_bound(after); it != records_.end() && found.size() < limit; ++it) {
    if (it->second.owner == owner && it->second.expires > now) found.push_back(it->second);
  }
  return found;
}

void StateStore::Sweep() {
  const absl::Time now = clock_();
  std::vector<StateRecord> expired;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto it = records_.begin(); it != records_.end();) {
      if (it->second.expires > now) {
        ++it;
        continue;
      }
      usage_.bytes -= it->second.bytes;
      --usage_.states;
      expired.push_back(std::move(it->second));
      it = records_.erase(it);
    }
  }
  // A file that cannot be removed now is swept again after the next start.
  for (const StateRecord& record : expired) storage_->Remove(record).IgnoreError();
}

StateStore::Usage StateStore::usage() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return usage_;
}

}  // namespace osdn
