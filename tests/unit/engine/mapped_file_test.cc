#include "engine/mapped_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <utility>

namespace osdn {
namespace {

using ::testing::HasSubstr;

std::string TempPath(const std::string& name) {
  return testing::TempDir() + "/mapped_file_" + name;
}

std::string WriteFile(const std::string& name, const std::string& content) {
  const std::string path = TempPath(name);
  std::ofstream(path, std::ios::binary) << content;
  return path;
}

std::string Text(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

TEST(MappedFileTest, ReadsBytes) {
  const auto file = MappedFile::Open(WriteFile("bytes", "hello"));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(Text(*file), "hello");
  EXPECT_THAT(file->path(), HasSubstr("mapped_file_bytes"));
}

TEST(MappedFileTest, EmptyFileIsEmpty) {
  const auto file = MappedFile::Open(WriteFile("empty", ""));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE(file->bytes().empty());
}

TEST(MappedFileTest, MissingFileIsNotFoundAndNamed) {
  const auto file = MappedFile::Open("/nonexistent/weights");
  EXPECT_EQ(file.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(file.status().message()), HasSubstr("/nonexistent/weights"));
}

TEST(MappedFileTest, DirectoryIsRefused) {
  const auto file = MappedFile::Open(testing::TempDir());
  EXPECT_EQ(file.status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(MappedFileTest, MovesKeepTheMapping) {
  auto file = MappedFile::Open(WriteFile("move", "moved"));
  ASSERT_TRUE(file.ok()) << file.status();
  MappedFile other = *std::move(file);
  MappedFile third;
  third = std::move(other);
  EXPECT_EQ(Text(third), "moved");
}

}  // namespace
}  // namespace osdn
