#include "engine/snapshot.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "engine/sha256.h"

namespace osdn {
namespace {

using ::testing::HasSubstr;

constexpr size_t kStateBytes = 320;
constexpr int64_t kVocab = 50;
const std::string kKey(32, 'k');

StateIdentity Identity() {
  return {.model_id = "abc",
          .dtype = "f32",
          .layout = "s,d",
          .state_bytes = kStateBytes,
          .vocab_size = kVocab};
}

SequenceSnapshot Snapshot(bool pending, const std::function<void(StateImage*)>& change = nullptr) {
  std::mt19937 random(std::random_device{}());
  auto image = std::make_shared<StateImage>(kStateBytes);
  const absl::Span<std::byte> state = image->mutable_state();
  for (size_t i = 0; i < state.size(); i += sizeof(float)) {
    const float value = static_cast<float>(random()) / 1e9F - 2.0F;
    std::memcpy(state.data() + i, &value, sizeof(value));
  }
  image->position = 1234;
  if (!pending) {
    image->logits.resize(kVocab);
    for (float& logit : image->logits) logit = static_cast<float>(random()) / 1e9F;
  }
  if (change) change(image.get());
  return {.image = image,
          .pending_token = pending ? 7 : -1,
          .seed = (uint64_t{1} << 63) + random(),
          .random_index = 99,
          .random_choice = 15,
          .history_hash = ~uint64_t{0} - random(),
          .recent_tokens = {1, 2, 49},
          .recent_completion = 2,
          .text = {.stop_held = std::string("ab\0\xE2", 4),
                   .utf8_held = "\xE2\x82",
                   .strip_leading_space = true},
          .constraint_state = std::string("\x00\xFF", 2),
          .open_role = "assistant"};
}

// The checksum made right again after the bytes were changed on purpose.
std::string Resummed(std::string blob) {
  blob.resize(blob.size() - 32);
  return blob + Sha256Digest({reinterpret_cast<const std::byte*>(blob.data()), blob.size()});
}

absl::StatusCode Code(const std::string& blob, const StateIdentity& identity = Identity(),
                      const std::string& key = "") {
  return DecodeSnapshot(blob, identity, key).status().code();
}

TEST(SnapshotTest, ComesBackWhole) {
  for (const bool pending : {false, true}) {
    const SequenceSnapshot snapshot = Snapshot(pending);
    const std::string blob = EncodeSnapshot(snapshot, Identity(), "");
    const absl::StatusOr<SequenceSnapshot> back = DecodeSnapshot(blob, Identity(), "");
    ASSERT_TRUE(back.ok()) << back.status();
    EXPECT_EQ(back->image->state(), snapshot.image->state());
    EXPECT_EQ(back->image->logits, snapshot.image->logits);
    EXPECT_EQ(back->image->position, 1234);
    EXPECT_EQ(back->pending_token, snapshot.pending_token);
    EXPECT_EQ(back->seed, snapshot.seed);
    EXPECT_EQ(back->random_index, 99U);
    EXPECT_EQ(back->random_choice, 15U);
    EXPECT_EQ(back->history_hash, snapshot.history_hash);
    EXPECT_EQ(back->recent_tokens, snapshot.recent_tokens);
    EXPECT_EQ(back->recent_completion, 2U);
    EXPECT_EQ(back->text.stop_held, snapshot.text.stop_held);
    EXPECT_EQ(back->text.utf8_held, snapshot.text.utf8_held);
    EXPECT_TRUE(back->text.strip_leading_space);
    EXPECT_EQ(back->constraint_state, snapshot.constraint_state);
    EXPECT_EQ(back->open_role, "assistant");
    EXPECT_EQ(EncodeSnapshot(*back, Identity(), ""), blob);

    const absl::StatusOr<SnapshotInfo> info = InspectSnapshot(blob);
    ASSERT_TRUE(info.ok()) << info.status();
    EXPECT_EQ(info->position, 1234);
    EXPECT_EQ(info->identity.model_id, "abc");
    EXPECT_FALSE(info->is_signed);
    EXPECT_EQ(info->blob_bytes, blob.size());
  }
}

TEST(SnapshotTest, EveryBitFlipIsNoticed) {
  const std::string blob = EncodeSnapshot(Snapshot(false), Identity(), kKey);
  for (size_t i = 0; i < blob.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string bad = blob;
      bad[i] = static_cast<char>(bad[i] ^ (1 << bit));
      ASSERT_EQ(Code(bad), i < 8 ? absl::StatusCode::kInvalidArgument : absl::StatusCode::kDataLoss)
          << "byte " << i;
    }
  }
}

TEST(SnapshotTest, EveryTruncationIsNoticed) {
  const std::string blob = EncodeSnapshot(Snapshot(true), Identity(), "");
  for (size_t size = 0; size < blob.size(); ++size) {
    ASSERT_EQ(Code(blob.substr(0, size)),
              size < 8 ? absl::StatusCode::kInvalidArgument : absl::StatusCode::kDataLoss)
        << size;
  }
  EXPECT_EQ(Code(blob + "x"), absl::StatusCode::kDataLoss);
  EXPECT_EQ(Code(std::string(1000, 'x')), absl::StatusCode::kInvalidArgument);
}

TEST(SnapshotTest, OtherModelsDtypesAndLayoutsAreRefusedByName) {
  const std::string blob = EncodeSnapshot(Snapshot(true), Identity(), "");
  const auto refused = [&blob](const StateIdentity& identity, const char* what) {
    const absl::Status status = DecodeSnapshot(blob, identity, "").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(status.message()), HasSubstr(what));
  };
  StateIdentity other = Identity();
  other.model_id = "other";
  refused(other, "model id");
  other = Identity();
  other.dtype = "bf16";
  refused(other, "dtype");
  other = Identity();
  other.layout = "d,s";
  refused(other, "layout");
}

TEST(SnapshotTest, ALaterVersionIsRefused) {
  std::string blob = EncodeSnapshot(Snapshot(true), Identity(), "");
  blob[8] = 2;
  EXPECT_EQ(Code(Resummed(blob)), absl::StatusCode::kFailedPrecondition);
}

// Whoever can compute a checksum can also lie in the sizes.
TEST(SnapshotTest, LyingSizesAreRefusedBeforeAnythingIsAllocated) {
  const std::string blob = EncodeSnapshot(Snapshot(false), Identity(), "");
  for (const size_t field : {16, 24, 32, 40}) {
    for (const uint64_t value : {uint64_t{0}, uint64_t{1} << 20, ~uint64_t{0}, uint64_t{1} << 63}) {
      std::string bad = blob;
      for (size_t i = 0; i < 8; ++i) bad[field + i] = static_cast<char>(value >> (8 * i));
      EXPECT_EQ(Code(Resummed(bad)), absl::StatusCode::kInvalidArgument) << field << " " << value;
    }
  }
  StateIdentity larger = Identity();
  larger.state_bytes += 64;
  EXPECT_EQ(Code(blob, larger), absl::StatusCode::kInvalidArgument);
}

TEST(SnapshotTest, RandomDescriptionsNeverCrash) {
  std::mt19937 random(std::random_device{}());
  const std::string blob = EncodeSnapshot(Snapshot(true), Identity(), "");
  for (int i = 0; i < 3000; ++i) {
    std::string bad = blob;
    for (int edits = 0; edits < 3; ++edits) {
      bad[64 + random() % 256] = static_cast<char>("{}[]\",:-0123456789aezE "[random() % 23]);
    }
    DecodeSnapshot(Resummed(bad), Identity(), "").IgnoreError();
  }
  std::string nested = blob;
  std::fill(nested.begin() + 64, nested.begin() + 320, '[');
  EXPECT_EQ(Code(Resummed(nested)), absl::StatusCode::kInvalidArgument);
}

TEST(SnapshotTest, ValuesThatAreNotFiniteAreRefused) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    const auto bad_logit = [bad](StateImage* image) { image->logits.back() = bad; };
    const auto bad_state = [bad](StateImage* image) {
      std::memcpy(image->mutable_state().data() + kStateBytes - sizeof(bad), &bad, sizeof(bad));
    };
    for (const SequenceSnapshot& snapshot :
         {Snapshot(/*pending=*/false, bad_logit), Snapshot(/*pending=*/true, bad_state)}) {
      EXPECT_EQ(Code(EncodeSnapshot(snapshot, Identity(), "")), absl::StatusCode::kInvalidArgument);
    }
  }
}

TEST(SnapshotTest, AStateWithNothingToGoOnFromIsRefused) {
  SequenceSnapshot snapshot = Snapshot(true);
  snapshot.pending_token = -1;
  EXPECT_EQ(Code(EncodeSnapshot(snapshot, Identity(), "")), absl::StatusCode::kInvalidArgument);
  snapshot.pending_token = kVocab;
  EXPECT_EQ(Code(EncodeSnapshot(snapshot, Identity(), "")), absl::StatusCode::kInvalidArgument);
}

TEST(SnapshotTest, SignaturesAreWantedExactlyWhereThereIsAKey) {
  const std::string plain = EncodeSnapshot(Snapshot(true), Identity(), "");
  const std::string mine = EncodeSnapshot(Snapshot(true), Identity(), kKey);
  const auto denied = absl::StatusCode::kPermissionDenied;
  EXPECT_EQ(Code(mine, Identity(), kKey), absl::StatusCode::kOk);
  EXPECT_EQ(Code(mine, Identity(), std::string(32, 'x')), denied);
  EXPECT_EQ(Code(plain, Identity(), kKey), denied);
  EXPECT_EQ(Code(mine, Identity(), ""), absl::StatusCode::kOk);
  // A forger can fix the checksum, but not the signature.
  std::string forged = mine;
  forged[forged.size() - 100] ^= 1;
  EXPECT_EQ(Code(Resummed(forged), Identity(), kKey), denied);
}

TEST(SnapshotTest, HistoryHashesDependOnEveryTokenAndItsPlace) {
  const auto hash = [](const std::vector<int32_t>& tokens) {
    uint64_t value = 0;
    for (const int32_t token : tokens) value = ExtendHistory(value, token);
    return value;
  };
  EXPECT_NE(hash({1, 2}), hash({2, 1}));
  EXPECT_NE(hash({0}), hash({0, 0}));
  EXPECT_NE(hash({0}), 0U);
  EXPECT_EQ(hash({5, 6}), ExtendHistory(ExtendHistory(0, 5), 6));
}

}  // namespace
}  // namespace osdn
