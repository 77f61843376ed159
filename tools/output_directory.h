// A directory that appears whole or not at all.
#ifndef OSDN_TOOLS_OUTPUT_DIRECTORY_H_
#define OSDN_TOOLS_OUTPUT_DIRECTORY_H_

#include <cstdint>
#include <filesystem>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace osdn::tools {

// Files are written into a hidden sibling directory, which Commit renames to the final name.
// Without Commit the sibling is removed again. Move-only.
class OutputDirectory {
 public:
  // ALREADY_EXISTS when `path` exists and is not an empty directory, unless `overwrite`; with it,
  // what is there must be a model directory (have a model.yaml), so that a slip cannot delete
  // anything else. INVALID_ARGUMENT or errno's status when it cannot be made.
  static absl::StatusOr<OutputDirectory> Create(const std::string& path, bool overwrite);

  ~OutputDirectory();
  OutputDirectory(OutputDirectory&& other) noexcept;
  OutputDirectory& operator=(OutputDirectory&& other) = delete;

  // Where to write a file of this name now.
  std::string StagingPath(const std::string& file_name) const;
  const std::filesystem::path& staging() const { return staging_; }

  // RESOURCE_EXHAUSTED, saying both numbers, when the file system has less than `bytes` free.
  absl::Status RequireSpace(int64_t bytes) const;

  absl::Status Commit();

 private:
  OutputDirectory(std::filesystem::path target, std::filesystem::path staging)
      : target_(std::move(target)), staging_(std::move(staging)) {}

  std::filesystem::path target_;
  std::filesystem::path staging_;  // empty after Commit or a move
};

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_OUTPUT_DIRECTORY_H_
