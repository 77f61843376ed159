#include "engine/state_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/unit/engine/test_support.h"

namespace osdn {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using testing_support::TempDir;

// The tests' clock: a function pointer has no other place for it.
absl::Time now = absl::FromUnixSeconds(1'000'000);
absl::Time Now() { return now; }

StateRecord Record(const std::string& label, const std::string& owner = "") {
  StateRecord record;
  record.owner = owner;
  record.label = label;
  record.parent = "st-parent";
  record.model_id = "model";
  record.position = 42;
  return record;
}

class StateStoreTest : public ::testing::TestWithParam<bool> {
 protected:
  std::unique_ptr<StateStore> Open(StateStore::Options options = {}) {
    std::unique_ptr<StateStorage> storage = MakeMemoryStorage();
    if (GetParam()) {
      auto disk = MakeDiskStorage(dir_.File("states"));
      EXPECT_TRUE(disk.ok()) << disk.status();
      storage = *std::move(disk);
    }
    problems_.clear();
    auto store = StateStore::Create(options, std::move(storage), Now, &problems_);
    EXPECT_TRUE(store.ok()) << store.status();
    return *std::move(store);
  }
  std::string Put(StateStore* store, const std::string& blob, const std::string& owner = "",
                  absl::Duration ttl = absl::ZeroDuration()) {
    auto record = store->Put(Record("label", owner), ttl, blob);
    EXPECT_TRUE(record.ok()) << record.status();
    return record.ok() ? record->id : "";
  }

  TempDir dir_;
  std::vector<std::string> problems_;
};

INSTANTIATE_TEST_SUITE_P(Storages, StateStoreTest, ::testing::Bool(), [](const auto& param_info) {
  return param_info.param ? "disk" : "memory";
});

TEST_P(StateStoreTest, WhatIsPutComesBack) {
  auto store = Open();
  const std::string blob("some\0bytes", 10);
  const std::string id = Put(store.get(), blob);
  const auto record = store->Find("", id);
  ASSERT_TRUE(record.ok()) << record.status();
  EXPECT_EQ(record->label, "label");
  EXPECT_EQ(record->parent, "st-parent");
  EXPECT_EQ(record->position, 42);
  EXPECT_EQ(record->bytes, 10);
  EXPECT_EQ(record->created, now);
  EXPECT_EQ(record->expires, now + absl::Hours(24));
  EXPECT_EQ(*store->Read("", id), blob);
  EXPECT_EQ(store->usage().states, 1);
  EXPECT_EQ(store->usage().bytes, 10);
  EXPECT_TRUE(store->Delete("", id).ok());
  EXPECT_EQ(store->Read("", id).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(store->Delete("", id).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(store->usage().bytes, 0);
}

TEST_P(StateStoreTest, NoTextOfAClientIsAPath) {
  auto store = Open();
  for (const std::string id : {"", "../../etc/passwd", "st-", "/etc/passwd", "a\0b", "%2e%2e"}) {
    EXPECT_EQ(store->Read("", id).status().code(), absl::StatusCode::kNotFound) << id;
    EXPECT_EQ(store->Delete("", id).code(), absl::StatusCode::kNotFound) << id;
  }
  const auto record = store->Put(Record("../../label\n\xFF"), absl::ZeroDuration(), "x");
  ASSERT_TRUE(record.ok()) << record.status();
  EXPECT_TRUE(store->Read("", record->id).ok());
}

TEST_P(StateStoreTest, OwnersSeeTheirOwnOnly) {
  auto store = Open();
  const std::string id = Put(store.get(), "secret", "alice");
  EXPECT_EQ(store->Read("bob", id).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(store->Find("", id).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(store->Delete("bob", id).code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(store->List("bob", "", 10), IsEmpty());
  EXPECT_THAT(store->List("alice", "", 10), SizeIs(1));
  EXPECT_TRUE(store->Read("alice", id).ok());
}

TEST_P(StateStoreTest, QuotasRefuseAndEvictNothing) {
  auto store = Open({.max_bytes = 100, .max_states = 3});
  const std::string first = Put(store.get(), std::string(60, 'x'));
  const auto too_large = store->Put(Record(""), absl::ZeroDuration(), std::string(41, 'y'));
  EXPECT_EQ(too_large.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(too_large.status().message()), HasSubstr("100"));
  Put(store.get(), "a");
  Put(store.get(), "b");
  EXPECT_EQ(store->Put(Record(""), absl::ZeroDuration(), "c").status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(store->Read("", first).ok());
  EXPECT_TRUE(store->Delete("", first).ok());
  Put(store.get(), std::string(90, 'z'));
}

TEST_P(StateStoreTest, StatesExpire) {
  auto store = Open({.max_states = 2, .ttl = absl::Hours(1)});
  const std::string brief = Put(store.get(), "x", "", absl::Minutes(1));
  const std::string normal = Put(store.get(), "y", "", absl::Hours(100));  // at most the store's
  now += absl::Minutes(2);
  EXPECT_EQ(store->Read("", brief).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(store->List("", "", 10), SizeIs(1));
  Put(store.get(), "z");  // takes the place of the expired one
  now += absl::Hours(1);
  EXPECT_EQ(store->Find("", normal).status().code(), absl::StatusCode::kNotFound);
  store->Sweep();
  EXPECT_EQ(store->usage().states, 0);
  EXPECT_EQ(store->usage().bytes, 0);
}

TEST_P(StateStoreTest, PagesCoverEverythingOnce) {
  auto store = Open();
  std::set<std::string> ids;
  for (int i = 0; i < 25; ++i) ids.insert(Put(store.get(), "x"));
  std::set<std::string> listed;
  std::string after;
  while (true) {
    const std::vector<StateRecord> page = store->List("", after, 10);
    if (page.empty()) break;
    for (const StateRecord& record : page) EXPECT_TRUE(listed.insert(record.id).second);
    after = page.back().id;
  }
  EXPECT_EQ(listed, ids);
}

TEST_P(StateStoreTest, ManyThreads) {
  auto store = Open();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&store, t] {
      for (int i = 0; i < 20; ++i) {
        const std::string blob = absl::StrCat(t, "/", i);
        const auto record = store->Put(Record(""), absl::ZeroDuration(), blob);
        ASSERT_TRUE(record.ok());
        EXPECT_EQ(*store->Read("", record->id), blob);
        if (i % 2 == 0) {
          EXPECT_TRUE(store->Delete("", record->id).ok());
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(store->usage().states, 40);
}

class DiskStoreTest : public StateStoreTest {};
INSTANTIATE_TEST_SUITE_P(Disk, DiskStoreTest, ::testing::Values(true));

TEST_P(DiskStoreTest, OutlivesTheProcess) {
  const std::string id = Put(Open().get(), "bytes");
  auto store = Open();
  EXPECT_THAT(problems_, IsEmpty());
  EXPECT_EQ(*store->Read("", id), "bytes");
  EXPECT_EQ(store->Find("", id)->label, "label");
  EXPECT_EQ(store->usage().bytes, 5);
}

TEST_P(DiskStoreTest, LeftoversOfAKilledWriteAreRemovedAndDamageIsTold) {
  const std::string kept = Put(Open().get(), "kept");
  const std::string cut = Put(Open().get(), "cut short");
  const std::string states = dir_.File("states");
  const std::string cut_path = absl::StrCat(states, "/", cut, ".state");
  std::filesystem::resize_file(cut_path, std::filesystem::file_size(cut_path) - 1);
  testing_support::WriteFile(absl::StrCat(states, "/st-half.state.tmp"), "OSDN");
  testing_support::WriteFile(absl::StrCat(states, "/st-junk.state"), "junk");
  auto store = Open();
  EXPECT_THAT(problems_, SizeIs(2));
  EXPECT_EQ(store->usage().states, 1);
  EXPECT_TRUE(store->Read("", kept).ok());
  EXPECT_FALSE(std::filesystem::exists(absl::StrCat(states, "/st-half.state.tmp")));
  EXPECT_TRUE(std::filesystem::exists(cut_path));
}

TEST_P(DiskStoreTest, AFileDamagedLaterIsDataLoss) {
  auto store = Open();
  const std::string id = Put(store.get(), "bytes");
  testing_support::WriteFile(absl::StrCat(dir_.File("states"), "/", id, ".state"), "junk");
  EXPECT_EQ(store->Read("", id).status().code(), absl::StatusCode::kDataLoss);
}

TEST_P(DiskStoreTest, ADirectoryThatCannotBeIsAnError) {
  testing_support::WriteFile(dir_.File("file"), "x");
  const auto storage = MakeDiskStorage(dir_.File("file"));
  EXPECT_THAT(std::string(storage.status().message()), HasSubstr(dir_.File("file")));
}

}  // namespace
}  // namespace osdn
