#include "engine/snapshot.h"

#include <openssl/crypto.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "engine/row_math.h"
#include "engine/sha256.h"
#include "engine/state.h"
#include "nlohmann/json.hpp"

namespace osdn {
namespace {

using nlohmann::json;

constexpr absl::string_view kMagic = "OSDNSTAT";
constexpr size_t kHeaderBytes = 64;
constexpr size_t kDigestBytes = 32;
constexpr size_t kTrailerBytes = 2 * kDigestBytes;  // signature, checksum
constexpr size_t kMaxDescriptionBytes = size_t{1} << 20;
constexpr uint32_t kSignedFlag = 1;

// Sizes as the header tells them, already checked against the blob.
struct Parts {
  uint32_t version = 0;
  uint32_t flags = 0;
  absl::string_view description;
  absl::string_view state;
  absl::string_view logits;
  absl::string_view signature;
  absl::string_view checksum;
};

absl::Span<const std::byte> AsBytes(absl::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

// Little-endian, whatever the machine is.
uint64_t LoadInteger(absl::string_view blob, size_t at, size_t bytes) {
  uint64_t value = 0;
  for (size_t i = bytes; i-- > 0;) {
    value = (value << 8) | static_cast<unsigned char>(blob[at + i]);
  }
  return value;
}

void AppendInteger(uint64_t value, size_t bytes, std::string* out) {
  for (size_t i = 0; i < bytes; ++i) out->push_back(static_cast<char>(value >> (8 * i)));
}

bool SameDigest(absl::string_view a, absl::string_view b) {
  return a.size() == b.size() && CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

absl::Status Damaged(absl::string_view how) {
  return absl::DataLossError(absl::StrCat("state blob: ", how, ": it is truncated or altered"));
}

absl::StatusOr<Parts> Split(absl::string_view blob) {
  if (blob.substr(0, kMagic.size()) != kMagic) {
    return absl::InvalidArgumentError(
        absl::StrCat("state blob: ", blob.size(), " bytes that do not begin with ", kMagic));
  }
  if (blob.size() < kHeaderBytes + kTrailerBytes) {
    return Damaged(absl::StrCat("only ", blob.size(), " bytes"));
  }
  Parts parts;
  parts.checksum = blob.substr(blob.size() - kDigestBytes);
  // First, and at the same place in every version: what is damaged is never misread as another
  // version or model.
  const absl::string_view summed = blob.substr(0, blob.size() - kDigestBytes);
  if (!SameDigest(Sha256Digest(AsBytes(summed)), parts.checksum)) {
    return Damaged("its checksum does not match");
  }
  parts.version = static_cast<uint32_t>(LoadInteger(blob, 8, 4));
  parts.flags = static_cast<uint32_t>(LoadInteger(blob, 12, 4));
  if (parts.version != kSnapshotVersion) {
    return absl::FailedPreconditionError(absl::StrCat("state blob: format version ", parts.version,
                                                      ", this build reads ", kSnapshotVersion));
  }
  const uint64_t total = LoadInteger(blob, 16, 8);
  const uint64_t description = LoadInteger(blob, 24, 8);
  const uint64_t state = LoadInteger(blob, 32, 8);
  const uint64_t logits = LoadInteger(blob, 40, 8);
  const uint64_t content = blob.size() - kHeaderBytes - kTrailerBytes;
  if (total != blob.size() || description > std::min<uint64_t>(content, kMaxDescriptionBytes) ||
      state > content - description || logits != content - description - state) {
    return absl::InvalidArgumentError(
        absl::StrCat("state blob: parts of ", description, ", ", state, " and ", logits,
                     " bytes and a whole of ", total, " do not fit its ", blob.size(), " bytes"));
  }
  parts.description = blob.substr(kHeaderBytes, description);
  parts.state = blob.substr(kHeaderBytes + description, state);
  parts.logits = blob.substr(kHeaderBytes + description + state, logits);
  parts.signature = blob.substr(blob.size() - kTrailerBytes, kDigestBytes);
  return parts;
}

// Reads members of the description; the first that is missing or of another type is the error.
class Description {
 public:
  explicit Description(absl::string_view text)
      : json_(json::parse(text, nullptr, /*allow_exceptions=*/false)) {
    if (!json_.is_object()) Fail("it is not a JSON object");
  }

  std::string Text(const char* key) {
    const json* value = Find(key);
    if (value == nullptr || !value->is_string()) return Fail(key), std::string();
    return value->get<std::string>();
  }
  bool Has(const char* key) const { return Find(key) != nullptr; }
  // A string of bytes, spelt in hex.
  std::string Bytes(const char* key) { return absl::HexStringToBytes(Hex(key)); }
  uint64_t Unsigned(const char* key) {
    const json* value = Find(key);
    if (value == nullptr || !value->is_number_unsigned()) return Fail(key), 0;
    return value->get<uint64_t>();
  }
  // -1 or a token of the vocabulary.
  int32_t Token(const char* key, int64_t vocab) {
    const json* value = Find(key);
    if (value == nullptr || !IsToken(*value, vocab)) return Fail(key), -1;
    return value->get<int32_t>();
  }
  bool Bool(const char* key) {
    const json* value = Find(key);
    if (value == nullptr || !value->is_boolean()) return Fail(key), false;
    return value->get<bool>();
  }
  std::vector<int32_t> Tokens(const char* key, int64_t vocab, size_t max) {
    std::vector<int32_t> tokens;
    const json* value = Find(key);
    if (value == nullptr || !value->is_array() || value->size() > max) return Fail(key), tokens;
    for (const json& token : *value) {
      if (!IsToken(token, vocab) || token.get<int64_t>() < 0) return Fail(key), tokens;
      tokens.push_back(token.get<int32_t>());
    }
    return tokens;
  }

  absl::Status status() const {
    if (error_.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("state blob: description: ", error_));
  }

 private:
  static bool IsToken(const json& value, int64_t vocab) {
    return value.is_number_integer() && value.get<int64_t>() >= -1 && value.get<int64_t>() < vocab;
  }
  std::string Hex(const char* key) {
    std::string hex = Text(key);
    const bool valid = hex.size() % 2 == 0 && hex.find_first_not_of("0123456789abcdef") == hex.npos;
    if (!valid) Fail(key);
    return valid ? hex : std::string();
  }
  const json* Find(const char* key) const {
    if (!json_.is_object()) return nullptr;
    const auto it = json_.find(key);
    return it == json_.end() ? nullptr : &*it;
  }
  void Fail(const char* what) {
    if (error_.empty()) error_ = absl::StrCat(what, " is missing or out of range");
  }

  const json json_;
  std::string error_;
};

std::string Describe(const SequenceSnapshot& snapshot, const StateIdentity& identity) {
  const json description = {
      {"model_id", identity.model_id},
      {"dtype", identity.dtype},
      {"layout", identity.layout},
      {"vocab_size", static_cast<uint64_t>(identity.vocab_size)},
      {"position", static_cast<uint64_t>(snapshot.image->position)},
      {"pending_token", snapshot.pending_token},
      {"seed", snapshot.seed},
      {"random_index", snapshot.random_index},
      {"random_choice", snapshot.random_choice},
      {"history_hash", snapshot.history_hash},
      {"recent_tokens", snapshot.recent_tokens},
      {"recent_completion", snapshot.recent_completion},
      {"stop_tail", absl::BytesToHexString(snapshot.text.stop_held)},
      {"utf8_tail", absl::BytesToHexString(snapshot.text.utf8_held)},
      {"strip_leading_space", snapshot.text.strip_leading_space},
      {"constraint_state", absl::BytesToHexString(snapshot.constraint_state)},
      {"open_role", absl::BytesToHexString(snapshot.open_role)},
  };
  std::string text = description.dump();
  text.resize((text.size() + kHeaderBytes - 1) / kHeaderBytes * kHeaderBytes, ' ');
  return text;
}

absl::Status CheckIdentity(Description* description, const StateIdentity& want, size_t bytes) {
  const std::string model_id = description->Text("model_id");
  const std::string dtype = description->Text("dtype");
  const std::string layout = description->Text("layout");
  if (absl::Status s = description->status(); !s.ok()) return s;
  const auto differs = [](const char* what, const std::string& got, const std::string& wanted) {
    // What a blob says of itself may be anything.
    constexpr size_t kMost = 100;
    return absl::FailedPreconditionError(absl::StrCat("state blob: made under ", what, " ",
                                                      absl::CHexEscape(got.substr(0, kMost)),
                                                      ", this server has ", wanted));
  };
  if (model_id != want.model_id) return differs("model id", model_id, want.model_id);
  if (dtype != want.dtype) return differs("state dtype", dtype, want.dtype);
  if (layout != want.layout) return differs("state layout", layout, want.layout);
  if (bytes != want.state_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("state blob: ", bytes, " bytes of state, the layout has ", want.state_bytes));
  }
  return absl::OkStatus();
}

// The values, once the identity is known to be right.
absl::StatusOr<SequenceSnapshot> ReadSnapshot(const Parts& parts, const StateIdentity& identity,
                                              Description* description) {
  constexpr size_t kMaxTail = 4096;
  constexpr uint64_t kMaxRandomChoice = uint64_t{1} << 31;  // room for the next fork's choices
  SequenceSnapshot snapshot;
  snapshot.pending_token = description->Token("pending_token", identity.vocab_size);
  snapshot.seed = description->Unsigned("seed");
  snapshot.random_index = description->Unsigned("random_index");
  // States made before there were choices do not have it.
  const uint64_t random_choice =
      description->Has("random_choice") ? description->Unsigned("random_choice") : 0;
  snapshot.history_hash = description->Unsigned("history_hash");
  snapshot.recent_tokens =
      description->Tokens("recent_tokens", identity.vocab_size, kSnapshotRecentTokens);
  snapshot.recent_completion =
      std::min<uint64_t>(description->Unsigned("recent_completion"), snapshot.recent_tokens.size());
  snapshot.text.stop_held = description->Bytes("stop_tail");
  snapshot.text.utf8_held = description->Bytes("utf8_tail");
  snapshot.text.strip_leading_space = description->Bool("strip_leading_space");
  snapshot.constraint_state = description->Bytes("constraint_state");
  snapshot.open_role = description->Bytes("open_role");
  const uint64_t position = description->Unsigned("position");
  if (absl::Status s = description->status(); !s.ok()) return s;

  const size_t logits = parts.logits.size() / sizeof(float);
  const size_t vocab = static_cast<size_t>(identity.vocab_size);
  const bool right_logits = parts.logits.size() % sizeof(float) == 0 &&
                            (logits == vocab || (logits == 0 && snapshot.pending_token >= 0));
  snapshot.random_choice = static_cast<uint32_t>(random_choice);
  if (!right_logits || random_choice > kMaxRandomChoice || position > (uint64_t{1} << 62) ||
      snapshot.text.stop_held.size() > kMaxTail || snapshot.text.utf8_held.size() > 3) {
    return absl::InvalidArgumentError(
        absl::StrCat("state blob: position ", position, ", ", logits, " logits, pending token ",
                     snapshot.pending_token, ": no place to go on from"));
  }
  auto image = std::make_shared<StateImage>(parts.state.size());
  std::memcpy(image->mutable_state().data(), parts.state.data(), parts.state.size());
  image->position = static_cast<int64_t>(position);
  image->logits.resize(logits);
  std::memcpy(image->logits.data(), parts.logits.data(), parts.logits.size());
  if (!row_math::AllFinite(image->floats()) || !row_math::AllFinite(image->logits)) {
    return absl::InvalidArgumentError("state blob: holds values that are not finite");
  }
  snapshot.image = std::move(image);
  return snapshot;
}

}  // namespace

uint64_t ExtendHistory(uint64_t hash, int32_t token) {
  // splitmix64 of the two: good dispersion, no secret.
  uint64_t z = hash + 0x9e3779b97f4a7c15ULL * (static_cast<uint64_t>(token) + 1);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

StateIdentity IdentityOf(const ModelConfig& config) {
  const ArchitectureConfig& arch = config.arch;
  const StateLayout layout(arch);
  return {.model_id = config.model_id(),
          .dtype = "f32",
          .layout = absl::StrCat("s,d,conv_q,conv_k,conv_v;align=64;layers=", arch.num_layers,
                                 ";heads=", arch.num_heads, ";key=", arch.key_dim,
                                 ";value=", arch.value_dim,
                                 ";conv=", arch.use_short_conv ? arch.conv_size : 0),
          .state_bytes = layout.slot_bytes(),
          .vocab_size = arch.vocab_size};
}

std::string EncodeSnapshot(const SequenceSnapshot& snapshot, const StateIdentity& identity,
                           absl::string_view key) {
  const std::string description = Describe(snapshot, identity);
  const absl::Span<const std::byte> state = snapshot.image->state();
  const size_t logits_bytes = snapshot.image->logits.size() * sizeof(float);
  const size_t total =
      kHeaderBytes + description.size() + state.size() + logits_bytes + kTrailerBytes;
  std::string blob;
  blob.reserve(total);
  blob.append(kMagic.data(), kMagic.size());
  AppendInteger(kSnapshotVersion, 4, &blob);
  AppendInteger(key.empty() ? 0 : kSignedFlag, 4, &blob);
  for (const size_t size : {total, description.size(), state.size(), logits_bytes}) {
    AppendInteger(size, 8, &blob);
  }
  blob.resize(kHeaderBytes, '\0');
  blob.append(description);
  blob.append(reinterpret_cast<const char*>(state.data()), state.size());
  blob.append(reinterpret_cast<const char*>(snapshot.image->logits.data()), logits_bytes);
  blob.append(key.empty() ? std::string(kDigestBytes, '\0') : HmacSha256(key, AsBytes(blob)));
  blob.append(Sha256Digest(AsBytes(blob)));
  return blob;
}

absl::StatusOr<SequenceSnapshot> DecodeSnapshot(absl::string_view blob,
                                                const StateIdentity& identity,
                                                absl::string_view key) {
  const absl::StatusOr<Parts> parts = Split(blob);
  if (!parts.ok()) return parts.status();
  if (!key.empty()) {
    const std::string wanted =
        HmacSha256(key, AsBytes(blob.substr(0, blob.size() - kTrailerBytes)));
    if (!SameDigest(wanted, parts->signature)) {
      return absl::PermissionDeniedError(
          (parts->flags & kSignedFlag) != 0
              ? "state blob: its signature is not of this server's key"
              : "state blob: it is not signed, and this server takes only what it signed");
    }
  }
  Description description(parts->description);
  if (absl::Status s = CheckIdentity(&description, identity, parts->state.size()); !s.ok()) {
    return s;
  }
  return ReadSnapshot(*parts, identity, &description);
}

absl::StatusOr<SnapshotInfo> InspectSnapshot(absl::string_view blob) {
  const absl::StatusOr<Parts> parts = Split(blob);
  if (!parts.ok()) return parts.status();
  Description description(parts->description);
  SnapshotInfo info;
  info.version = parts->version;
  info.is_signed = (parts->flags & kSignedFlag) != 0;
  info.identity.model_id = description.Text("model_id");
  info.identity.dtype = description.Text("dtype");
  info.identity.layout = description.Text("layout");
  info.identity.state_bytes = parts->state.size();
  info.identity.vocab_size = static_cast<int64_t>(
      std::min<uint64_t>(description.Unsigned("vocab_size"), std::numeric_limits<int32_t>::max()));
  info.position = static_cast<int64_t>(description.Unsigned("position"));
  info.logits_bytes = parts->logits.size();
  info.blob_bytes = blob.size();
  info.pending_token = description.Token("pending_token", info.identity.vocab_size);
  info.seed = description.Unsigned("seed");
  info.random_index = description.Unsigned("random_index");
  info.history_hash = description.Unsigned("history_hash");
  info.recent_tokens =
      description.Tokens("recent_tokens", info.identity.vocab_size, kSnapshotRecentTokens).size();
  info.open_role = description.Bytes("open_role");
  info.sha256 =
      absl::BytesToHexString(absl::string_view(parts->checksum.data(), parts->checksum.size()));
  if (absl::Status s = description.status(); !s.ok()) return s;
  return info;
}

}  // namespace osdn
