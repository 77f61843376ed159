#include "server/state_access.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/options.h"
#include "server/status.h"

namespace osdn {
v1::StateInfo ToStateInfo(const StateRecord& record) {
  v1::StateInfo info;
  info.set_state_id(record.id);
  info.set_label(record.label);
  info.set_parent_id(record.parent);
  info.set_model_id(record.model_id);
  info.set_position(static_cast<uint64_t>(record.position));
  info.set_bytes(static_cast<uint64_t>(record.bytes));
  info.set_created_unix_ms(absl::ToUnixMillis(record.created));
  info.set_expires_unix_ms(absl::ToUnixMillis(record.expires));
  return info;
}

absl::Duration ToTtl(uint64_t seconds) {
  constexpr uint64_t kLongest = uint64_t{1} << 40;  // the store's own limit is far below
  return absl::Seconds(static_cast<int64_t>(std::min(seconds, kLongest)));
}

absl::Status CheckLabel(const std::string& field, const std::string& label) {
  if (label.size() <= kMaxStateLabelBytes) return absl::OkStatus();
  const FieldViolation violation{
      field, absl::StrCat(label.size(), " bytes: at most ", kMaxStateLabelBytes)};
  return InvalidRequestError({violation});
}

absl::StatusOr<std::string> ReadStateKey(const std::string& path) {
  constexpr size_t kLeast = 32;
  constexpr size_t kMost = 4096;
  std::ifstream file(path, std::ios::binary);
  std::string key{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (file.bad() || key.size() < kLeast || key.size() > kMost) {
    return absl::FailedPreconditionError(
        absl::StrCat("state.key_file: ", path, " has ", key.size(), " readable bytes, want ",
                     kLeast, " to ", kMost, " (for instance: openssl rand -out FILE 32)"));
  }
  return key;
}

StateAccess::StateAccess(StateIdentity identity, std::string key, std::unique_ptr<StateStore> store,
                         int64_t max_transit_bytes)
    : identity_(std::move(identity)),
      key_(std::move(key)),
      store_(std::move(store)),
      transit_(max_transit_bytes, "states in transit", "state.max_transit_bytes") {}

std::unique_ptr<StateAccess> StateAccess::InMemory(StateIdentity identity) {
  // Memory has nothing to load and so nothing to fail at.
  absl::StatusOr<std::unique_ptr<StateStore>> store =
      LocalStateStore::Create({}, MakeMemoryStorage(), absl::Now, [](const std::string&) {});
  return std::make_unique<StateAccess>(std::move(identity), "", *std::move(store),
                                       ServerOptions().state_max_transit_bytes);
}

int64_t StateAccess::image_bytes() const {
  return static_cast<int64_t>(identity_.state_bytes) +
         identity_.vocab_size * int64_t{sizeof(float)};
}

size_t StateAccess::max_blob_bytes() const {
  constexpr size_t kDescription = size_t{2} << 20;
  return static_cast<size_t>(image_bytes()) + kDescription;
}

absl::StatusOr<std::shared_ptr<const SequenceSnapshot>> StateAccess::Load(
    const std::string& owner, const v1::StateOptions& options) {
  std::string stored;
  absl::string_view blob;
  // Before the state is read or copied: the blob is little more than what it will be.
  ByteBudget::Hold hold;
  // What the store has was checked, or made, by this server; a signature proves more only where
  // somebody else may write to the store's directory, and then it is there.
  switch (options.from_case()) {
    case v1::StateOptions::kStateId: {
      const absl::StatusOr<StateRecord> record = store_->Find(owner, options.state_id());
      if (!record.ok()) return record.status();
      if (absl::Status s = transit_.Add(record->bytes, &hold); !s.ok()) return s;
      absl::StatusOr<std::string> read = store_->Read(owner, options.state_id());
      if (!read.ok()) return read.status();
      stored = *std::move(read);
      blob = stored;
      break;
    }
    case v1::StateOptions::kStateBlob:
      blob = options.state_blob();
      if (absl::Status s = transit_.Add(static_cast<int64_t>(blob.size()), &hold); !s.ok())
        return s;
      break;
    case v1::StateOptions::FROM_NOT_SET:
      return nullptr;
  }
  absl::StatusOr<SequenceSnapshot> snapshot = DecodeSnapshot(blob, identity_, key_);
  if (!snapshot.ok()) return snapshot.status();
  struct Held {
    SequenceSnapshot snapshot;
    ByteBudget::Hold hold;
  };
  auto held = std::make_shared<Held>(Held{*std::move(snapshot), std::move(hold)});
  return std::shared_ptr<const SequenceSnapshot>(held, &held->snapshot);
}

absl::StatusOr<v1::StateInfo> StateAccess::Keep(absl::string_view blob, StateRecord record,
                                                absl::Duration ttl) {
  record.model_id = identity_.model_id;
  absl::StatusOr<StateRecord> kept = store_->Put(std::move(record), ttl, blob);
  if (!kept.ok()) return kept.status();
  return ToStateInfo(*kept);
}

absl::StatusOr<StateAccess::Left> StateAccess::Leave(const std::string& owner,
                                                     const SequenceSnapshot& snapshot,
                                                     const v1::StateOptions& options) {
  Left left;
  std::string blob = EncodeSnapshot(snapshot, identity_, key_);
  if (options.has_save_state_as()) {
    absl::StatusOr<v1::StateInfo> info = Keep(blob,
                                              {.owner = owner,
                                               .label = options.save_state_as(),
                                               .parent = options.state_id(),
                                               .position = snapshot.image->position},
                                              ToTtl(options.ttl_seconds()));
    if (!info.ok()) return info.status();
    left.info = *std::move(info);
    if (options.replace() && options.has_state_id()) {
      // It may be gone already: what was asked for holds either way.
      store_->Delete(owner, options.state_id()).IgnoreError();
    }
  }
  if (options.return_state()) left.blob = std::move(blob);
  return left;
}

void StateAccess::Forget(const std::string& owner, const std::string& id) {
  store_->Delete(owner, id).IgnoreError();
}

absl::StatusOr<v1::StateInfo> StateAccess::Import(const std::string& owner, absl::string_view blob,
                                                  const std::string& label, absl::Duration ttl) {
  const absl::StatusOr<SequenceSnapshot> snapshot = DecodeSnapshot(blob, identity_, key_);
  if (!snapshot.ok()) return snapshot.status();
  return Keep(blob, {.owner = owner, .label = label, .position = snapshot->image->position}, ttl);
}

absl::StatusOr<v1::StateInfo> StateAccess::Fork(const std::string& owner, const std::string& id,
                                                const std::string& label, absl::Duration ttl) {
  const absl::StatusOr<StateRecord> record = store_->Find(owner, id);
  if (!record.ok()) return record.status();
  const absl::StatusOr<std::string> blob = store_->Read(owner, id);
  if (!blob.ok()) return blob.status();
  // Another model's, kept before this one was served, is refused here as it is in Generate.
  if (auto snapshot = DecodeSnapshot(*blob, identity_, key_); !snapshot.ok()) {
    return snapshot.status();
  }
  return Keep(*blob, {.owner = owner, .label = label, .parent = id, .position = record->position},
              ttl);
}

}  // namespace osdn
