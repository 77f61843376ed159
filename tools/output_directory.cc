#include "tools/output_directory.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/model_config.h"

namespace osdn::tools {
namespace {

namespace fs = std::filesystem;

absl::Status FromError(const std::error_code& error, const std::string& what) {
  return absl::ErrnoToStatus(error.value(), what);
}

absl::Status CheckTarget(const fs::path& target, bool overwrite) {
  std::error_code error;
  const fs::file_status status = fs::symlink_status(target, error);
  if (!fs::exists(status)) return absl::OkStatus();
  if (fs::is_directory(status) && fs::is_empty(target, error)) return absl::OkStatus();
  if (!overwrite) {
    return absl::AlreadyExistsError(
        absl::StrCat(target.string(), ": already exists; give --overwrite to replace it"));
  }
  if (!fs::is_directory(status) || !fs::exists(target / kModelFileName, error)) {
    return absl::FailedPreconditionError(
        absl::StrCat(target.string(), ": is not a model directory (no ", kModelFileName,
                     "), so --overwrite does not replace it"));
  }
  return absl::OkStatus();
}

// A new empty directory beside `target`, on the same file system, so that it can be renamed.
absl::StatusOr<fs::path> MakeSibling(const fs::path& target) {
  const fs::path parent = target.parent_path();
  std::error_code error;
  fs::create_directories(parent, error);
  if (error) return FromError(error, absl::StrCat("cannot create ", parent.string()));
  std::string name = (parent / absl::StrCat(".", target.filename().string(), ".XXXXXX")).string();
  if (::mkdtemp(name.data()) == nullptr) {
    return absl::ErrnoToStatus(errno,
                               absl::StrCat("cannot create a directory in ", parent.string()));
  }
  return fs::path(name);
}

}  // namespace

absl::StatusOr<OutputDirectory> OutputDirectory::Create(const std::string& path, bool overwrite) {
  std::error_code error;
  fs::path target = fs::absolute(path, error).lexically_normal();
  if (!target.has_filename()) target = target.parent_path();  // "dir/"
  if (path.empty() || error || !target.has_filename()) {
    return absl::InvalidArgumentError(absl::StrCat("\"", path, "\" cannot be an output directory"));
  }
  if (absl::Status status = CheckTarget(target, overwrite); !status.ok()) return status;
  absl::StatusOr<fs::path> staging = MakeSibling(target);
  if (!staging.ok()) return staging.status();
  return OutputDirectory(std::move(target), *std::move(staging));
}

OutputDirectory::OutputDirectory(OutputDirectory&& other) noexcept
    : target_(std::move(other.target_)), staging_(std::exchange(other.staging_, fs::path())) {}

OutputDirectory::~OutputDirectory() {
  if (staging_.empty()) return;
  std::error_code ignored;
  fs::remove_all(staging_, ignored);
}

std::string OutputDirectory::StagingPath(const std::string& file_name) const {
  return (staging_ / file_name).string();
}

absl::Status OutputDirectory::RequireSpace(int64_t bytes) const {
  std::error_code error;
  const fs::space_info space = fs::space(staging_, error);
  // A file system that does not say is asked by writing.
  if (error || space.available >= static_cast<uintmax_t>(bytes)) return absl::OkStatus();
  constexpr int64_t kMega = 1'000'000;
  return absl::ResourceExhaustedError(absl::StrCat(target_.string(), ": needs ", bytes / kMega + 1,
                                                   " MB, its file system has ",
                                                   space.available / kMega, " MB free"));
}

absl::Status OutputDirectory::Commit() {
  std::error_code error;
  // mkdtemp makes it private; a model directory is as readable as any other file of its owner.
  const mode_t mask = ::umask(0);
  ::umask(mask);
  fs::permissions(staging_, static_cast<fs::perms>(0777 & ~mask), error);
  if (error) return FromError(error, absl::StrCat("cannot set the mode of ", staging_.string()));

  // rename(2) replaces an empty directory but not a full one: that one moves aside first, and comes
  // back if the second rename fails.
  absl::StatusOr<fs::path> aside = fs::path();
  const bool replace = fs::exists(target_, error) && !fs::is_empty(target_, error);
  if (replace) {
    aside = MakeSibling(target_);
    if (!aside.ok()) return aside.status();
    fs::rename(target_, *aside, error);
    if (error) {
      std::error_code ignored;
      fs::remove(*aside, ignored);
      return FromError(error, absl::StrCat("cannot move ", target_.string(), " aside"));
    }
  }
  fs::rename(staging_, target_, error);
  if (error) {
    std::error_code ignored;
    if (replace) fs::rename(*aside, target_, ignored);
    return FromError(error,
                     absl::StrCat("cannot rename ", staging_.string(), " to ", target_.string()));
  }
  staging_.clear();
  if (replace) fs::remove_all(*aside, error);
  return absl::OkStatus();
}

}  // namespace osdn::tools
