// Everything a sequence's past is, as one value and as one blob of bytes.
//
// A blob is untrusted input: every size is checked against what is there before anything is
// allocated, and nothing of it is used before its checksum is right.
#ifndef OSDN_ENGINE_SNAPSHOT_H_
#define OSDN_ENGINE_SNAPSHOT_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/model_config.h"
#include "engine/sampling_params.h"
#include "engine/state_image.h"
#include "engine/text_stream.h"

namespace osdn {

inline constexpr uint32_t kSnapshotVersion = 1;
// Tokens kept for penalties over recent text: as many as any window has.
inline constexpr size_t kSnapshotRecentTokens = kMaxPenaltyWindow;

// Where a sequence stands. To go on, `pending_token` is fed if there is one; else the next token is
// sampled from the image's logits.
struct SequenceSnapshot {
  std::shared_ptr<const StateImage> image;  // of position tokens; logits where nothing is pending
  int32_t pending_token = -1;  // the newest token: told to the client, not yet in the state; or -1
  uint64_t seed = 0;
  uint64_t random_index = 0;   // of the next token to sample: the random numbers' counter,
  uint32_t random_choice = 0;  // and the choice that is part of it
  uint64_t history_hash = 0;   // of the tokens in the state (ExtendHistory)
  std::vector<int32_t> recent_tokens{};  // the last ones, oldest first, the pending one included
  uint64_t recent_completion = 0;        // of them, so many last ones are the completion's own
  TextTail text{};
  std::string constraint_state{};  // of a constrained generation; opaque here
  std::string open_role{};  // of a chat: the role whose message is not closed yet; empty: no chat
};

// Hash of a token history that is continued by `token`. That of no tokens is 0.
uint64_t ExtendHistory(uint64_t hash, int32_t token);

// What a state must agree with to be used.
struct StateIdentity {
  std::string model_id;
  std::string dtype;   // of the state
  std::string layout;  // parts, order and sizes of a slot
  size_t state_bytes = 0;
  int64_t vocab_size = 0;
};
StateIdentity IdentityOf(const ModelConfig& config);

// Blob: 64 bytes header (magic "OSDNSTAT", u32 version, u32 flags, u64 sizes of the whole, of the
// description, of state and logits; little-endian), description as JSON padded with spaces to 64
// bytes, state, logits (float32), HMAC-SHA256 of all before (zeros when unsigned), SHA-256 of all
// before. `key` signs; empty: unsigned.
std::string EncodeSnapshot(const SequenceSnapshot& snapshot, const StateIdentity& identity,
                           absl::string_view key);

// INVALID_ARGUMENT: not a state blob, or values that make no sense. DATA_LOSS: truncated or
// altered. FAILED_PRECONDITION: of another version, model, dtype or layout. PERMISSION_DENIED:
// `key` is not empty and the blob is not signed with it.
absl::StatusOr<SequenceSnapshot> DecodeSnapshot(absl::string_view blob,
                                                const StateIdentity& identity,
                                                absl::string_view key);

// What a blob says about itself, with its checksum verified; for any model.
struct SnapshotInfo {
  uint32_t version = 0;
  bool is_signed = false;
  StateIdentity identity;
  int64_t position = 0;
  size_t logits_bytes = 0;
  size_t blob_bytes = 0;
  int32_t pending_token = -1;
  uint64_t seed = 0;
  uint64_t random_index = 0;
  uint64_t history_hash = 0;
  size_t recent_tokens = 0;
  std::string open_role;
  std::string sha256;  // hex
};
// Errors as DecodeSnapshot's.
absl::StatusOr<SnapshotInfo> InspectSnapshot(absl::string_view blob);

}  // namespace osdn

#endif  // OSDN_ENGINE_SNAPSHOT_H_
