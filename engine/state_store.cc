#include "engine/state_store.h"

#include <openssl/rand.h>

#include <algorithm>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace osdn {
namespace {

// Until what could not be removed is tried again.
constexpr absl::Duration kSweepAgain = absl::Minutes(1);

class MemoryStorage final : public StateStorage {
 public:
  bool durable() const override { return false; }
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

}  // namespace

std::unique_ptr<StateStorage> MakeMemoryStorage() { return std::make_unique<MemoryStorage>(); }

LocalStateStore::LocalStateStore(const Options& options, std::unique_ptr<StateStorage> storage,
                                 Clock clock, Report report)
    : options_(options), storage_(std::move(storage)), clock_(clock), report_(std::move(report)) {}

absl::StatusOr<std::unique_ptr<StateStore>> LocalStateStore::Create(
    const Options& options, std::unique_ptr<StateStorage> storage, Clock clock, Report report) {
  std::unique_ptr<LocalStateStore> store(
      new LocalStateStore(options, std::move(storage), clock, std::move(report)));
  std::vector<std::string> problems;
  absl::StatusOr<std::vector<StateRecord>> records = store->storage_->Load(&problems);
  if (!records.ok()) return records.status();
  for (const std::string& problem : problems) store->report_(problem);
  for (StateRecord& record : *records) {
    store->usage_.bytes += record.bytes;
    ++store->usage_.states;
    std::lock_guard<std::mutex> lock(store->mutex_);
    store->Enter(std::move(record));
  }
  store->Sweep();
  return std::unique_ptr<StateStore>(std::move(store));
}

void LocalStateStore::Enter(StateRecord record) {
  expiry_.emplace(record.expires, record.id);
  std::string id = record.id;
  records_.emplace(std::move(id), std::move(record));
}

bool LocalStateStore::Forget(const std::string& id) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto it = records_.find(id);
  if (it == records_.end()) return false;
  usage_.bytes -= it->second.bytes;
  --usage_.states;
  expiry_.erase({it->second.expires, id});
  records_.erase(it);
  return true;
}

absl::Status LocalStateStore::Told(absl::string_view what, const StateRecord& record,
                                   const absl::Status& status) {
  report_(absl::StrCat(record.id, " could not be ", what, ": ", status.message()));
  if (absl::IsDataLoss(status)) {
    return absl::DataLossError(absl::StrCat("state ", record.id, " is damaged on the server"));
  }
  // ENOSPC, EDQUOT and the like.
  if (absl::IsResourceExhausted(status)) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the state could not be ", what, ": the server has no room left for it"));
  }
  return absl::InternalError(
      absl::StrCat("the state could not be ", what, ": the server's log says why"));
}

absl::Status LocalStateStore::Reserve(int64_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (usage_.states >= options_.max_states) {
    return StateQuotaError(usage_.states, options_.max_states);
  }
  if (bytes > options_.max_bytes - usage_.bytes) {
    return StateBytesError(usage_.bytes, bytes, options_.max_bytes);
  }
  usage_.bytes += bytes;
  ++usage_.states;
  return absl::OkStatus();
}

void LocalStateStore::Release(int64_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  usage_.bytes -= bytes;
  --usage_.states;
}

absl::StatusOr<StateRecord> LocalStateStore::Put(StateRecord record, absl::Duration ttl,
                                                 absl::string_view blob) {
  Sweep();
  absl::StatusOr<std::string> id = MakeStateId();
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
    return Told("written", record, s);
  }
  std::lock_guard<std::mutex> lock(mutex_);
  Enter(record);
  return record;
}

absl::StatusOr<StateRecord> LocalStateStore::Find(absl::string_view owner, absl::string_view id) {
  const absl::Time now = clock_();
  std::lock_guard<std::mutex> lock(mutex_);
  const auto it = records_.find(id);
  if (it == records_.end() || it->second.owner != owner || it->second.expires <= now) {
    return StateNotFound(id);
  }
  return it->second;
}

absl::StatusOr<std::string> LocalStateStore::Read(absl::string_view owner, absl::string_view id) {
  const absl::StatusOr<StateRecord> record = Find(owner, id);
  if (!record.ok()) return record.status();
  absl::StatusOr<std::string> blob = storage_->Read(*record);
  if (blob.ok()) return blob;
  // Deleted or swept while it was being read.
  if (!Find(owner, id).ok()) return StateNotFound(id);
  const absl::Status told = Told("read", *record, blob.status());
  if (!absl::IsNotFound(blob.status())) return told;
  // Somebody else removed its file.
  Forget(record->id);
  return StateNotFound(id);
}

absl::Status LocalStateStore::Delete(absl::string_view owner, absl::string_view id) {
  StateRecord record;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto it = records_.find(id);
    if (it == records_.end() || it->second.owner != owner) return StateNotFound(id);
    record = it->second;
  }
  // First: what is still there must not be forgotten, or it would come back with the next start.
  if (absl::Status s = storage_->Remove(record); !s.ok()) return Told("deleted", record, s);
  return Forget(record.id) ? absl::OkStatus() : StateNotFound(id);
}

absl::StatusOr<std::vector<StateRecord>> LocalStateStore::List(absl::string_view owner,
                                                               absl::string_view after,
                                                               size_t limit) {
  const absl::Time now = clock_();
  std::vector<StateRecord> found;
  std::lock_guard<std::mutex> lock(mutex_);
  for (auto it = records_.upper_bound(after); it != records_.end() && found.size() < limit; ++it) {
    if (it->second.owner == owner && it->second.expires > now) found.push_back(it->second);
  }
  return found;
}

void LocalStateStore::Sweep() {
  const absl::Time now = clock_();
  std::vector<StateRecord> expired;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (now < next_sweep_) return;
    for (auto it = expiry_.begin(); it != expiry_.end() && it->first <= now; ++it) {
      expired.push_back(records_.at(it->second));
    }
  }
  size_t failed = 0;
  absl::Status error;
  for (const StateRecord& record : expired) {
    absl::Status removed = storage_->Remove(record);
    if (removed.ok()) {
      if (!Forget(record.id)) continue;
      std::lock_guard<std::mutex> lock(mutex_);
      ++usage_.expired;
    } else if (failed++ == 0) {
      error = std::move(removed);
    }
  }
  if (failed == 0) return;
  // One line, since there may be thousands.
  report_(absl::StrCat(failed, " expired states could not be removed: ", error.message()));
  std::lock_guard<std::mutex> lock(mutex_);
  next_sweep_ = now + kSweepAgain;
}

LocalStateStore::Usage LocalStateStore::usage() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return usage_;
}

}  // namespace osdn
