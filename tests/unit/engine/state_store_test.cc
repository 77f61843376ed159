#include "engine/state_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/unit/engine/test_support.h"

namespace osdn {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
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
    return Open(options, std::move(storage));
  }
  std::unique_ptr<StateStore> Open(StateStore::Options options,
                                   std::unique_ptr<StateStorage> storage) {
    auto store = LocalStateStore::Create(
        options, std::move(storage), Now,
        [this](const std::string& problem) { problems_.push_back(problem); });
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
  EXPECT_THAT(*store->List("bob", "", 10), IsEmpty());
  EXPECT_THAT(*store->List("alice", "", 10), SizeIs(1));
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
  EXPECT_THAT(*store->List("", "", 10), SizeIs(1));
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
    const std::vector<StateRecord> page = *store->List("", after, 10);
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
  const std::string kept = Put(Open().get(), "kept");  // each store ends before the next begins
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

TEST_P(DiskStoreTest, ASecondServerIsToldWhoHasTheDirectory) {
  const std::string states = dir_.File("states");
  auto first = MakeDiskStorage(states);
  ASSERT_TRUE(first.ok()) << first.status();
  const absl::Status second = MakeDiskStorage(states).status();
  EXPECT_EQ(second.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(second.message()), HasSubstr(states));
  EXPECT_THAT(std::string(second.message()), HasSubstr(absl::StrCat("process ", getpid())));
  first->reset();
  EXPECT_TRUE(MakeDiskStorage(states).ok()) << "the lock ends with its holder";
}

TEST_P(DiskStoreTest, WhatTheFileSystemSaysIsForTheLogOnly) {
  auto store = Open();
  const std::string id = Put(store.get(), "bytes");
  const std::string path = absl::StrCat(dir_.File("states"), "/", id, ".state");
  std::filesystem::remove(path);
  std::filesystem::create_directory(path);  // cannot be read as a file, unlinked or replaced
  const absl::Status read = store->Read("", id).status();
  EXPECT_EQ(read.code(), absl::StatusCode::kInternal);
  const absl::Status deleted = store->Delete("", id);
  EXPECT_EQ(deleted.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(problems_, SizeIs(2));
  for (const absl::Status& status : {read, deleted}) {
    EXPECT_THAT(std::string(status.message()), Not(HasSubstr(dir_.path())));
  }
  for (const std::string& problem : problems_) EXPECT_THAT(problem, HasSubstr(path));

  // What could not be deleted is not forgotten, and expiry tries again until it can be.
  EXPECT_TRUE(store->Find("", id).ok());
  EXPECT_EQ(store->usage().states, 1);
  now += absl::Hours(25);
  problems_.clear();
  store->Sweep();
  EXPECT_THAT(problems_, SizeIs(1));
  EXPECT_EQ(store->usage().states, 1) << "it still takes its place";
  store->Sweep();
  EXPECT_THAT(problems_, SizeIs(1)) << "not again at once";
  std::filesystem::remove(path);
  now += absl::Minutes(2);
  store->Sweep();
  EXPECT_EQ(store->usage().states, 0);
  EXPECT_EQ(store->usage().bytes, 0);
}

TEST_P(DiskStoreTest, AFileThatSomebodyElseRemovedIsNotFoundAndForgotten) {
  auto store = Open();
  const std::string id = Put(store.get(), "bytes");
  std::filesystem::remove(absl::StrCat(dir_.File("states"), "/", id, ".state"));
  EXPECT_EQ(store->Read("", id).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(store->usage().states, 0);
  EXPECT_EQ(store->usage().bytes, 0);
}

// A disk that is full, or that fails.
class FailingStorage final : public StateStorage {
 public:
  bool durable() const override { return true; }
  explicit FailingStorage(absl::Status status) : status_(std::move(status)) {}
  absl::Status Write(const StateRecord&, absl::string_view) override { return status_; }
  absl::StatusOr<std::string> Read(const StateRecord&) override { return status_; }
  absl::Status Remove(const StateRecord&) override { return status_; }
  absl::StatusOr<std::vector<StateRecord>> Load(std::vector<std::string>*) override {
    return std::vector<StateRecord>();
  }

 private:
  const absl::Status status_;
};

TEST_P(DiskStoreTest, AFullDiskIsTheServersAndTheQuotaIsGivenBack) {
  for (const auto& [error, code] :
       {std::pair{ENOSPC, absl::StatusCode::kResourceExhausted},
        std::pair{EIO, absl::StatusCode::kInternal}, std::pair{EACCES, absl::StatusCode::kInternal},
        std::pair{ENOENT, absl::StatusCode::kInternal}}) {
    auto store = Open({}, std::make_unique<FailingStorage>(
                              absl::ErrnoToStatus(error, "cannot write /srv/secret/st-1.state")));
    const absl::Status refused = store->Put(Record(""), absl::ZeroDuration(), "blob").status();
    EXPECT_EQ(refused.code(), code) << refused;
    EXPECT_THAT(std::string(refused.message()), Not(HasSubstr("/srv")));
    EXPECT_EQ(store->usage().states, 0);
    EXPECT_EQ(store->usage().bytes, 0);
  }
  EXPECT_THAT(problems_, SizeIs(4));
}

}  // namespace
}  // namespace osdn
