#include "engine/sha256.h"

#include <gtest/gtest.h>

#include <string>

#include "tests/unit/engine/test_support.h"

namespace osdn {
namespace {

absl::Span<const std::byte> Bytes(const std::string& text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

// FIPS 180-4 examples.
constexpr char kEmpty[] = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
constexpr char kAbc[] = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
constexpr char kMillionA[] = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0";

TEST(Sha256Test, KnownAnswers) {
  EXPECT_EQ(Sha256Hex({}), kEmpty);
  EXPECT_EQ(Sha256Hex(Bytes("abc")), kAbc);
}

TEST(Sha256Test, PiecesEqualTheWhole) {
  Sha256 hash;
  for (int i = 0; i < 1000; ++i) hash.Update(Bytes(std::string(1000, 'a')));
  EXPECT_EQ(hash.Finish(), kMillionA);
}

TEST(Sha256Test, HashesFilesLargerThanOnePiece) {
  const testing_support::TempDir dir;
  const std::string content(3'000'001, 'x');
  testing_support::WriteFile(dir.File("big"), content);
  const auto hash = HashFile(dir.File("big"));
  ASSERT_TRUE(hash.ok()) << hash.status();
  EXPECT_EQ(hash->bytes, 3'000'001);
  EXPECT_EQ(hash->sha256, Sha256Hex(Bytes(content)));
}

TEST(Sha256Test, MissingFileIsNotFound) {
  EXPECT_EQ(HashFile("/nonexistent").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace osdn
