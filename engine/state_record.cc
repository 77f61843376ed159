#include "engine/state_record.h"

#include <openssl/rand.h>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace osdn {
namespace {

using nlohmann::json;

}  // namespace

std::string EncodeRecord(const StateRecord& record) {
  const json description = {{"id", record.id},
                            {"owner", record.owner},
                            {"label", record.label},
                            {"parent", record.parent},
                            {"model_id", record.model_id},
                            {"position", record.position},
                            {"bytes", record.bytes},
                            {"created", absl::ToUnixMillis(record.created)},
                            {"expires", absl::ToUnixMillis(record.expires)}};
  // Labels are whatever a client sent: ill-formed UTF-8 becomes U+FFFD.
  return description.dump(-1, ' ', false, json::error_handler_t::replace);
}

absl::StatusOr<StateRecord> ParseRecord(absl::string_view text) {
  const json head = json::parse(text, nullptr, /*allow_exceptions=*/false);
  const auto read_text = [&head](const char* key, std::string* out) {
    const auto it = head.find(key);
    if (it == head.end() || !it->is_string()) return false;
    *out = it->get<std::string>();
    return true;
  };
  const auto read_number = [&head](const char* key, int64_t* out) {
    const auto it = head.find(key);
    if (it == head.end() || !it->is_number_integer()) return false;
    *out = it->get<int64_t>();
    return true;
  };
  StateRecord record;
  int64_t created = 0;
  int64_t expires = 0;
  const bool whole =
      head.is_object() && read_text("id", &record.id) && read_text("owner", &record.owner) &&
      read_text("label", &record.label) && read_text("parent", &record.parent) &&
      read_text("model_id", &record.model_id) && read_number("position", &record.position) &&
      read_number("bytes", &record.bytes) && read_number("created", &created) &&
      read_number("expires", &expires) && record.bytes >= 0;
  if (!whole) return absl::DataLossError("the record of a state is damaged");
  record.created = absl::FromUnixMillis(created);
  record.expires = absl::FromUnixMillis(expires);
  return record;
}

absl::StatusOr<std::string> MakeStateId() {
  unsigned char random[16];
  if (RAND_bytes(random, sizeof random) != 1) {
    return absl::InternalError("the system gives no random numbers for a state id");
  }
  return absl::StrCat("st-", absl::BytesToHexString(absl::string_view(
                                 reinterpret_cast<const char*>(random), sizeof random)));
}

absl::Status StateNotFound(absl::string_view id) {
  // The id may be anything a client sent: it is told in part only.
  return absl::NotFoundError(absl::StrCat("no state \"", absl::CHexEscape(id.substr(0, 64)),
                                          "\": it never was, has expired or was deleted"));
}

absl::Status StateQuotaError(int64_t states, int64_t max_states) {
  return absl::ResourceExhaustedError(
      absl::StrCat("state quota: ", states, " states are kept, at most ", max_states,
                   " may be; delete some or wait until they expire"));
}

absl::Status StateBytesError(int64_t held, int64_t bytes, int64_t max_bytes) {
  return absl::ResourceExhaustedError(
      absl::StrCat("state quota: ", held, " bytes are kept and this state has ", bytes,
                   ", at most ", max_bytes, " may be; delete some or wait until they expire"));
}

}  // namespace osdn
