// Saved states: named by ids that the store makes, owned, bounded in bytes and number, and gone
// when their time is up. Where the bytes lie is a StateStorage's business.
#ifndef OSDN_ENGINE_STATE_STORE_H_
#define OSDN_ENGINE_STATE_STORE_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "engine/state_record.h"

namespace osdn {

// Where blobs lie. Thread-safe. Names are ids of the store, never text of a client. Errors may name
// paths: they are for the log.
class StateStorage {
 public:
  virtual ~StateStorage() = default;
  // What is in it is still there for the next process, or for others.
  virtual bool durable() const = 0;
  // All or nothing, even if the process dies meanwhile.
  virtual absl::Status Write(const StateRecord& record, absl::string_view blob) = 0;
  // NOT_FOUND when it is not there, DATA_LOSS when it is damaged.
  virtual absl::StatusOr<std::string> Read(const StateRecord& record) = 0;
  // OK too when it is not there any more.
  virtual absl::Status Remove(const StateRecord& record) = 0;
  // What an earlier process left; `problems` gets a line for each thing that is no state.
  virtual absl::StatusOr<std::vector<StateRecord>> Load(std::vector<std::string>* problems) = 0;
};

// Keeps them as long as the process lives.
std::unique_ptr<StateStorage> MakeMemoryStorage();
// A file each in `dir`, which is made if it is missing: written beside its place, synced, renamed,
// and the directory synced. The directory is this storage's alone as long as it lives, by a lock on
// its file .lock that ends with the process: FAILED_PRECONDITION naming directory and process where
// another has it. Else the errors of the file system, naming the path.
absl::StatusOr<std::unique_ptr<StateStorage>> MakeDiskStorage(const std::string& dir);

// Thread-safe; may wait for where the states are. Errors are for clients: what is behind them goes
// to the log.
class StateStore {
 public:
  struct Options {
    int64_t max_bytes = int64_t{1} << 30;
    int64_t max_states = 10'000;
    absl::Duration ttl = absl::Hours(24);  // of states that ask for none, and the longest
  };
  struct Usage {
    int64_t bytes = 0;
    int64_t states = 0;
    int64_t expired = 0;  // states that were removed because their time was up, so far
  };
  using Clock = absl::Time (*)();
  // Gets a line for the log: storage that failed, files of the directory that are no states. Called
  // by any thread.
  using Report = std::function<void(const std::string& problem)>;

  virtual ~StateStore() = default;

  // Keeps `blob` under a new id; id, bytes and created of `record` are set here, and expires to
  // `ttl` (zero: the store's) from now. RESOURCE_EXHAUSTED over a quota (nothing else is evicted
  // for it) or when there is no room, INTERNAL when the storage fails, UNAVAILABLE when it cannot
  // be reached; so all others.
  virtual absl::StatusOr<StateRecord> Put(StateRecord record, absl::Duration ttl,
                                          absl::string_view blob) = 0;

  // NOT_FOUND for what is not there, has expired or is another owner's. What could not be deleted
  // is still there.
  virtual absl::StatusOr<StateRecord> Find(absl::string_view owner, absl::string_view id) = 0;
  virtual absl::StatusOr<std::string> Read(absl::string_view owner, absl::string_view id) = 0;
  virtual absl::Status Delete(absl::string_view owner, absl::string_view id) = 0;

  // The owner's states with ids after `after`, in order of id, at most `limit`.
  virtual absl::StatusOr<std::vector<StateRecord>> List(absl::string_view owner,
                                                        absl::string_view after, size_t limit) = 0;

  // Removes what has expired. Somebody should call this now and then; it costs next to nothing when
  // there is nothing to do.
  virtual void Sweep() = 0;
  // Waits for nothing.
  virtual Usage usage() const = 0;
  // What is in it is still there for the next process, or for others.
  virtual bool durable() const = 0;
};

// This process's own, in one StateStorage.
class LocalStateStore final : public StateStore {
 public:
  // Takes over what `storage` has; StateStorage::Load's errors.
  static absl::StatusOr<std::unique_ptr<StateStore>> Create(const Options& options,
                                                            std::unique_ptr<StateStorage> storage,
                                                            Clock clock, Report report);

  absl::StatusOr<StateRecord> Put(StateRecord record, absl::Duration ttl,
                                  absl::string_view blob) override;
  absl::StatusOr<StateRecord> Find(absl::string_view owner, absl::string_view id) override;
  absl::StatusOr<std::string> Read(absl::string_view owner, absl::string_view id) override;
  absl::Status Delete(absl::string_view owner, absl::string_view id) override;
  absl::StatusOr<std::vector<StateRecord>> List(absl::string_view owner, absl::string_view after,
                                                size_t limit) override;
  // What cannot be removed counts on, and is tried again by a call that comes a minute later or
  // more. Put sweeps too.
  void Sweep() override;
  Usage usage() const override;
  bool durable() const override { return storage_->durable(); }

 private:
  LocalStateStore(const Options& options, std::unique_ptr<StateStorage> storage, Clock clock,
                  Report report);
  // With mutex_ held.
  void Enter(StateRecord record);
  // Takes the record out of the books, if it is there still; whether it was.
  bool Forget(const std::string& id);
  // Logs what the storage said; what a client is told.
  absl::Status Told(absl::string_view what, const StateRecord& record, const absl::Status& status);
  absl::Status Reserve(int64_t bytes);
  void Release(int64_t bytes);

  const Options options_;
  const std::unique_ptr<StateStorage> storage_;
  const Clock clock_;
  const Report report_;
  mutable std::mutex mutex_;                                 // guards all below
  std::map<std::string, StateRecord, std::less<>> records_;  // by id
  std::set<std::pair<absl::Time, std::string>> expiry_;      // of each of them, with its id
  absl::Time next_sweep_ = absl::InfinitePast();
  Usage usage_;  // with what is being written
};

}  // namespace osdn

#endif  // OSDN_ENGINE_STATE_STORE_H_
