// States as files: ID.state is one line of JSON (the record), its SHA-256, and the blob.
#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "engine/sha256.h"
#include "engine/state_store.h"

namespace osdn {
namespace {

constexpr absl::string_view kSuffix = ".state";
constexpr absl::string_view kTemporarySuffix = ".tmp";
constexpr absl::string_view kMagicLine = "OSDN state file 1\n";
constexpr size_t kMaxRecordBytes = 64 << 10;
constexpr size_t kDigestLine = 65;  // hex and a newline

absl::Span<const std::byte> AsBytes(absl::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

absl::Status Failed(const char* what, const std::string& path) {
  return absl::ErrnoToStatus(errno, absl::StrCat("cannot ", what, " ", path));
}

absl::Status WriteAll(int fd, absl::string_view data, const std::string& path) {
  while (!data.empty()) {
    const ssize_t wrote = ::write(fd, data.data(), data.size());
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) return Failed("write", path);
    data.remove_prefix(static_cast<size_t>(wrote));
  }
  return absl::OkStatus();
}

// Up to `max` bytes of the file.
absl::StatusOr<std::string> ReadFile(const std::string& path, size_t max) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return Failed("open", path);
  const absl::Cleanup close_fd = [fd] { ::close(fd); };
  struct stat info = {};
  if (::fstat(fd, &info) != 0) return Failed("stat", path);
  std::string data(std::min(static_cast<size_t>(info.st_size), max), '\0');
  size_t have = 0;
  while (have < data.size()) {
    const ssize_t got = ::read(fd, data.data() + have, data.size() - have);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return Failed("read", path);
    if (got == 0) break;
    have += static_cast<size_t>(got);
  }
  data.resize(have);
  return data;
}

std::string Head(const StateRecord& record) {
  const std::string line = EncodeRecord(record) + "\n";
  return absl::StrCat(kMagicLine, line, Sha256Hex(AsBytes(line)), "\n");
}

struct ParsedHead {
  StateRecord record;
  size_t bytes = 0;  // where the blob begins
};

absl::StatusOr<ParsedHead> ParseHead(absl::string_view data) {
  const absl::Status damaged = absl::DataLossError("its head is damaged");
  absl::string_view rest = data;
  if (!absl::ConsumePrefix(&rest, kMagicLine)) return damaged;
  const size_t newline = rest.find('\n');
  if (newline == rest.npos || rest.size() < newline + 1 + kDigestLine) return damaged;
  const absl::string_view line = rest.substr(0, newline + 1);
  if (rest.substr(newline + 1, kDigestLine) != Sha256Hex(AsBytes(line)) + "\n") return damaged;
  absl::StatusOr<StateRecord> record = ParseRecord(line);
  if (!record.ok()) return damaged;
  return ParsedHead{*std::move(record), kMagicLine.size() + line.size() + kDigestLine};
}

// The directory's lock, held while it lives. The file stays: removing it would let two processes
// hold locks on two files of one name.
class DirectoryLock {
 public:
  DirectoryLock(const DirectoryLock&) = delete;
  DirectoryLock& operator=(const DirectoryLock&) = delete;
  static absl::StatusOr<DirectoryLock> Acquire(const std::string& dir) {
    const std::string path = absl::StrCat(dir, "/.lock");
    const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) return Failed("open", path);
    DirectoryLock lock(fd);
    if (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK) return Failed("lock", path);
      return absl::FailedPreconditionError(
          absl::StrCat("the state directory ", dir, " is in use by ", Holder(path),
                       ": give every server a state.dir of its own"));
    }
    // Who has it, for the message above; the lock itself does not need it.
    const std::string pid = absl::StrCat(::getpid(), "\n");
    if (::ftruncate(fd, 0) != 0) return Failed("write", path);
    if (absl::Status s = WriteAll(fd, pid, path); !s.ok()) return s;
    return lock;
  }

  DirectoryLock(DirectoryLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  DirectoryLock& operator=(DirectoryLock&&) = delete;
  ~DirectoryLock() {
    if (fd_ >= 0) ::close(fd_);
  }

 private:
  explicit DirectoryLock(int fd) : fd_(fd) {}

  static std::string Holder(const std::string& path) {
    constexpr size_t kMaxPidBytes = 32;
    const absl::StatusOr<std::string> text = ReadFile(path, kMaxPidBytes);
    int64_t pid = 0;
    const bool known = text.ok() && absl::SimpleAtoi(*text, &pid);
    return known ? absl::StrCat("process ", pid) : "another process";
  }

  int fd_;
};

class DiskStorage final : public StateStorage {
 public:
  DiskStorage(std::string dir, DirectoryLock lock) : dir_(std::move(dir)), lock_(std::move(lock)) {}

  bool durable() const override { return true; }

  absl::Status Write(const StateRecord& record, absl::string_view blob) override {
    const std::string path = Path(record.id);
    const std::string temporary = absl::StrCat(path, kTemporarySuffix);
    absl::Status status = WriteSynced(temporary, Head(record), blob);
    if (status.ok() && ::rename(temporary.c_str(), path.c_str()) != 0) {
      status = Failed("rename to", path);
    }
    if (!status.ok()) {
      ::unlink(temporary.c_str());
      return status;
    }
    // What is not told as kept must not come back after a restart.
    status = SyncDirectory();
    if (!status.ok()) ::unlink(path.c_str());
    return status;
  }

  absl::StatusOr<std::string> Read(const StateRecord& record) override {
    absl::StatusOr<std::string> data = ReadFile(Path(record.id), std::string::npos);
    if (!data.ok()) return data.status();
    const absl::StatusOr<ParsedHead> head = ParseHead(*data);
    if (!head.ok() || head->record.id != record.id ||
        data->size() - head->bytes != static_cast<size_t>(record.bytes)) {
      return absl::DataLossError(absl::StrCat("state ", record.id, ": its file is damaged"));
    }
    return data->substr(head->bytes);
  }

  absl::Status Remove(const StateRecord& record) override {
    const std::string path = Path(record.id);
    if (::unlink(path.c_str()) != 0 && errno != ENOENT) return Failed("remove", path);
    return SyncDirectory();
  }

  absl::StatusOr<std::vector<StateRecord>> Load(std::vector<std::string>* problems) override {
    std::vector<StateRecord> records;
    std::error_code error;
    std::filesystem::directory_iterator entry(dir_, error);
    for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
      const std::string path = entry->path().string();
      if (absl::EndsWith(path, absl::StrCat(kSuffix, kTemporarySuffix))) {
        ::unlink(path.c_str());  // a write that did not come to its end: it never was
      } else if (absl::EndsWith(path, kSuffix)) {
        LoadFile(path, entry->path().stem().string(), &records, problems);
      }
    }
    if (error) {
      return absl::Status(absl::ErrnoToStatusCode(error.value()),
                          absl::StrCat("cannot list ", dir_, ": ", error.message()));
    }
    return records;
  }

 private:
  // Ids come from the store: no text of a client gets here.
  std::string Path(const std::string& id) const { return absl::StrCat(dir_, "/", id, kSuffix); }

  static absl::Status WriteSynced(const std::string& path, absl::string_view head,
                                  absl::string_view blob) {
    const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) return Failed("create", path);
    absl::Cleanup close_fd = [fd] { ::close(fd); };
    if (absl::Status s = WriteAll(fd, head, path); !s.ok()) return s;
    if (absl::Status s = WriteAll(fd, blob, path); !s.ok()) return s;
    if (::fsync(fd) != 0) return Failed("sync", path);
    std::move(close_fd).Cancel();
    return ::close(fd) == 0 ? absl::OkStatus() : Failed("close", path);
  }

  absl::Status SyncDirectory() const {
    const int fd = ::open(dir_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return Failed("open", dir_);
    const absl::Cleanup close_fd = [fd] { ::close(fd); };
    return ::fsync(fd) == 0 ? absl::OkStatus() : Failed("sync", dir_);
  }

  static void LoadFile(const std::string& path, const std::string& stem,
                       std::vector<StateRecord>* records, std::vector<std::string>* problems) {
    const absl::StatusOr<std::string> start = ReadFile(path, kMaxRecordBytes);
    absl::StatusOr<ParsedHead> head =
        start.ok() ? ParseHead(*start) : absl::StatusOr<ParsedHead>(start.status());
    std::error_code error;
    const uintmax_t size = std::filesystem::file_size(path, error);
    if (head.ok() && !error && head->record.id == stem &&
        size == head->bytes + static_cast<uintmax_t>(head->record.bytes)) {
      records->push_back(std::move(head->record));
      return;
    }
    // Left where it is: a person may want to look at it.
    problems->push_back(absl::StrCat(path, ": not a whole state file, passed over"));
  }

  const std::string dir_;
  const DirectoryLock lock_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<StateStorage>> MakeDiskStorage(const std::string& dir) {
  std::error_code error;
  std::filesystem::create_directories(dir, error);
  if (error) {
    return absl::Status(
        absl::ErrnoToStatusCode(error.value()),
        absl::StrCat("cannot make the state directory ", dir, ": ", error.message()));
  }
  if (::access(dir.c_str(), R_OK | W_OK | X_OK) != 0) {
    return Failed("read and write the state directory", dir);
  }
  absl::StatusOr<DirectoryLock> lock = DirectoryLock::Acquire(dir);
  if (!lock.ok()) return lock.status();
  return std::make_unique<DiskStorage>(dir, *std::move(lock));
}

}  // namespace osdn
