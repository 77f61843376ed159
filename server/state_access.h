// Saved states as the services see them: ids and blobs in, snapshots out, and back.
#ifndef OSDN_SERVER_STATE_ACCESS_H_
#define OSDN_SERVER_STATE_ACCESS_H_

#include <cstddef>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "engine/snapshot.h"
#include "engine/state_store.h"
#include "osdn/v1/inference.pb.h"
#include "server/byte_budget.h"

namespace osdn {

inline constexpr size_t kMaxStateLabelBytes = 256;

// One model's states. Thread-safe; may wait for the disk, so not for gRPC's own threads.
class StateAccess {
 public:
  // `key` signs what leaves and is wanted on what comes; empty: no signatures. `max_transit_bytes`
  // bounds transit().
  StateAccess(StateIdentity identity, std::string key, std::unique_ptr<StateStore> store,
              int64_t max_transit_bytes);

  // Unsigned and gone with the process.
  static std::unique_ptr<StateAccess> InMemory(StateIdentity identity);

  // `owner` is whose states are meant: the caller's, as CallEnvironment has it.

  // What `options.from` names or carries; null when it does neither. Holds its bytes of transit()
  // as long as it lives. NOT_FOUND, RESOURCE_EXHAUSTED, and DecodeSnapshot's errors.
  absl::StatusOr<std::shared_ptr<const SequenceSnapshot>> Load(const std::string& owner,
                                                               const v1::StateOptions& options);

  struct Left {
    v1::StateInfo info;  // with save_state_as
    std::string blob;    // with return_state
  };
  // Keeps and returns `snapshot` as `options` ask.
  absl::StatusOr<Left> Leave(const std::string& owner, const SequenceSnapshot& snapshot,
                             const v1::StateOptions& options);

  // Takes back what Leave kept.
  void Forget(const std::string& owner, const std::string& id);

  // Checks a blob that came from outside and keeps it.
  absl::StatusOr<v1::StateInfo> Import(const std::string& owner, absl::string_view blob,
                                       const std::string& label, absl::Duration ttl);
  absl::StatusOr<v1::StateInfo> Fork(const std::string& owner, const std::string& id,
                                     const std::string& label, absl::Duration ttl);
  // Of a state in memory, its logits with it.
  int64_t image_bytes() const;
  // The longest blob that can be one of this model's.
  size_t max_blob_bytes() const;
  StateStore& store() { return *store_; }
  // States that calls hold in memory: those that requests start from until they have their slots,
  // those that requests will leave, imports and exports. Each counts once.
  ByteBudget& transit() { return transit_; }

 private:
  // `record` has owner, label, parent and position.
  absl::StatusOr<v1::StateInfo> Keep(absl::string_view blob, StateRecord record,
                                     absl::Duration ttl);

  const StateIdentity identity_;
  const std::string key_;
  const std::unique_ptr<StateStore> store_;
  ByteBudget transit_;
};

v1::StateInfo ToStateInfo(const StateRecord& record);
absl::Duration ToTtl(uint64_t seconds);
// OK, or INVALID_ARGUMENT naming `field`.
absl::Status CheckLabel(const std::string& field, const std::string& label);

// The key in a file: 32 to 4096 bytes, as they are. FAILED_PRECONDITION naming the file.
absl::StatusOr<std::string> ReadStateKey(const std::string& path);

}  // namespace osdn

#endif  // OSDN_SERVER_STATE_ACCESS_H_
