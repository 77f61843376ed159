// What is known of a saved state without reading it, and how stores write it down.
#ifndef OSDN_ENGINE_STATE_RECORD_H_
#define OSDN_ENGINE_STATE_RECORD_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace osdn {

struct StateRecord {
  std::string id{};      // made by the store
  std::string owner{};   // who may see it
  std::string label{};   // the client's, for its own use
  std::string parent{};  // id of the state it was made from; may be gone; or empty
  std::string model_id{};
  int64_t position = 0;  // tokens in the state
  int64_t bytes = 0;     // of the blob
  absl::Time created = absl::UnixEpoch();
  absl::Time expires = absl::InfiniteFuture();
};

// JSON without line breaks; times in whole milliseconds.
std::string EncodeRecord(const StateRecord& record);
// DATA_LOSS for what EncodeRecord does not write.
absl::StatusOr<StateRecord> ParseRecord(absl::string_view json);

// A new state's id: 128 random bits, not to be guessed, never met twice. INTERNAL when the system
// has no random numbers.
absl::StatusOr<std::string> MakeStateId();
// What a client is told of an id that is not there, or not its own.
absl::Status StateNotFound(absl::string_view id);
// What it is told when a quota is full.
absl::Status StateQuotaError(int64_t states, int64_t max_states);
absl::Status StateBytesError(int64_t held, int64_t bytes, int64_t max_bytes);

}  // namespace osdn

#endif  // OSDN_ENGINE_STATE_RECORD_H_
