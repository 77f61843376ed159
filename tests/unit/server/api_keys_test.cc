#include "server/api_keys.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/sha256.h"

namespace osdn {
namespace {

using testing::HasSubstr;

absl::Time now = absl::FromUnixSeconds(1'000'000);

std::string Hash(const std::string& key) {
  return Sha256Hex(absl::MakeSpan(reinterpret_cast<const std::byte*>(key.data()), key.size()));
}

std::string Entry(const std::string& name, const std::string& key, const std::string& rest) {
  return absl::StrCat("  - {name: ", name, ", sha256: ", Hash(key), ", ", rest, "}\n");
}

class ApiKeysTest : public testing::Test {
 protected:
  ApiKeysTest() {
    path_ = std::filesystem::path(testing::TempDir()) /
            absl::StrCat("keys-", ::testing::UnitTest::GetInstance()->current_test_info()->name());
  }
  ~ApiKeysTest() override { std::filesystem::remove(path_); }

  void Write(const std::string& entries) {
    std::ofstream(path_, std::ios::trunc) << "keys:\n" << entries;
  }
  std::unique_ptr<ApiKeys> Open(const std::string& entries) {
    Write(entries);
    auto keys = ApiKeys::Open(path_, [] { return now; });
    EXPECT_TRUE(keys.ok()) << keys.status();
    return *std::move(keys);
  }

  std::filesystem::path path_;
};

TEST_F(ApiKeysTest, KnowsKeysByTheirHashAndScopes) {
  const auto keys = Open(Entry("ann", "key of ann", "scopes: [generate]") +
                         Entry("bob", "key of bob", "scopes: [generate, state, admin]"));
  const auto ann = keys->Admit("key of ann", Scope::kGenerate, "Generate");
  ASSERT_TRUE(ann.ok()) << ann.status();
  EXPECT_EQ((*ann)->name(), "ann");
  const absl::Status denied = keys->Admit("key of ann", Scope::kState, "ListStates").status();
  EXPECT_EQ(denied.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(std::string(denied.message()), HasSubstr("ann"));
  EXPECT_THAT(std::string(denied.message()), HasSubstr("state"));
  EXPECT_TRUE(keys->Admit("key of bob", Scope::kAdmin, "LoadModel").ok());
  for (const char* token : {"", "key of", "key of annn", "Key of ann"}) {
    const absl::Status status = keys->Admit(token, Scope::kGenerate, "Generate").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnauthenticated) << token;
    EXPECT_FALSE(absl::StrContains(status.message(), "ann"));
  }
}

TEST_F(ApiKeysTest, CountsWhatRunsAsLongAsItRuns) {
  const auto keys = Open(Entry("ann", "a", "scopes: [generate], max_concurrent: 2"));
  auto one = keys->Admit("a", Scope::kGenerate, "Generate");
  auto two = keys->Admit("a", Scope::kGenerate, "Generate");
  ASSERT_TRUE(one.ok() && two.ok());
  const absl::Status third = keys->Admit("a", Scope::kGenerate, "Generate").status();
  EXPECT_EQ(third.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(third.message()), HasSubstr("max_concurrent"));
  // What is refused for its scope does not count.
  EXPECT_FALSE(keys->Admit("a", Scope::kState, "ListStates").ok());
  *one = nullptr;
  EXPECT_TRUE(keys->Admit("a", Scope::kGenerate, "Generate").ok());
}

TEST_F(ApiKeysTest, LimitsRatesOfRequestsAndTokens) {
  const auto keys = Open(Entry("ann", "a", "scopes: [generate], requests_per_minute: 3") +
                         Entry("bob", "b", "scopes: [generate], tokens_per_minute: 100"));
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(keys->Admit("a", Scope::kGenerate, "x").ok());
  EXPECT_EQ(keys->Admit("a", Scope::kGenerate, "x").status().code(),
            absl::StatusCode::kResourceExhausted);
  now += absl::Seconds(21);  // one comes back every 20 seconds
  EXPECT_TRUE(keys->Admit("a", Scope::kGenerate, "x").ok());
  EXPECT_FALSE(keys->Admit("a", Scope::kGenerate, "x").ok());

  // More than a minute's worth at once has to be waited for.
  (*keys->Admit("b", Scope::kGenerate, "x"))->ChargeTokens(250);
  now += absl::Seconds(60);
  EXPECT_FALSE(keys->Admit("b", Scope::kGenerate, "x").ok());
  now += absl::Seconds(40);
  EXPECT_TRUE(keys->Admit("b", Scope::kGenerate, "x").ok());
}

TEST_F(ApiKeysTest, ReadsTheFileAgainAndKeepsItsKeysWhenItIsWrong) {
  const auto keys = Open(Entry("ann", "a", "scopes: [generate], requests_per_minute: 1"));
  EXPECT_TRUE(keys->Admit("a", Scope::kGenerate, "x").ok());
  EXPECT_FALSE(*keys->ReloadIfChanged());
  Write(Entry("ann", "new key", "scopes: [generate], requests_per_minute: 1") +
        Entry("bob", "b", "scopes: [state]"));
  EXPECT_TRUE(*keys->ReloadIfChanged());
  EXPECT_EQ(keys->size(), 2);
  EXPECT_EQ(keys->Admit("a", Scope::kGenerate, "x").status().code(),
            absl::StatusCode::kUnauthenticated);
  // A new key does not bring a new allowance.
  EXPECT_EQ(keys->Admit("new key", Scope::kGenerate, "x").status().code(),
            absl::StatusCode::kResourceExhausted);
  Write("  - {name: nobody}\n");
  EXPECT_FALSE(keys->ReloadIfChanged().ok());
  EXPECT_FALSE(*keys->ReloadIfChanged()) << "told of once";
  EXPECT_TRUE(keys->Admit("b", Scope::kState, "x").ok());
  std::filesystem::remove(path_);
  EXPECT_FALSE(keys->ReloadIfChanged().ok());
  EXPECT_TRUE(keys->Admit("b", Scope::kState, "x").ok());
}

TEST_F(ApiKeysTest, TellsEveryProblemOfAFile) {
  const absl::Status status =
      ParseApiKeys("keys:\n" + Entry("ann", "a", "scopes: [generate, fly]") +
                       Entry("ann", "a", "scopes: [], max_concurrent: -1") +
                       "  - {name: 'bad name', sha256: abc, scopes: [state], colour: red}\n",
                   "keys.yaml")
          .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  for (const char* text : {"keys.yaml", "fly", "twice", "another key", "max_concurrent", "name",
                           "64 hex digits", "colour"}) {
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
  }
}

TEST(MakeApiKeyTest, IsLongRandomAndMatchesItsHash) {
  const auto one = MakeApiKey();
  const auto two = MakeApiKey();
  ASSERT_TRUE(one.ok() && two.ok());
  EXPECT_NE(one->key, two->key);
  EXPECT_GE(one->key.size(), 43U);
  EXPECT_EQ(one->sha256, Hash(one->key));
}

TEST(BearerTokenTest, TakesTheTokenOnly) {
  EXPECT_EQ(BearerToken("Bearer abc"), "abc");
  EXPECT_EQ(BearerToken("bearer  abc "), "abc");
  EXPECT_EQ(BearerToken("Basic abc"), "");
  EXPECT_EQ(BearerToken("abc"), "");
  EXPECT_EQ(BearerToken(""), "");
}

}  // namespace
}  // namespace osdn
