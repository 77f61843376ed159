#include "engine/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <random>

#include "absl/strings/str_cat.h"
#include "tests/unit/engine/test_support.h"

namespace osdn {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing_support::ReadFile;
using testing_support::TempDir;
using testing_support::TestData;
using testing_support::WriteFile;

std::string Container(const std::string& header, const std::string& data) {
  std::string text(sizeof(uint64_t), '\0');
  const uint64_t size = header.size();
  std::memcpy(text.data(), &size, sizeof(size));
  return text + header + data;
}

absl::StatusOr<SafetensorsFile> OpenBytes(const TempDir& dir, const std::string& bytes) {
  WriteFile(dir.File("x.safetensors"), bytes);
  return SafetensorsFile::Open(dir.File("x.safetensors"));
}

absl::Span<const std::byte> Bytes(const std::string& text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

TEST(SafetensorsReadTest, ReadsWhatThePythonLibraryWrote) {
  const auto file = SafetensorsFile::Open(TestData("golden/mixer_small.safetensors"));
  ASSERT_TRUE(file.ok()) << file.status();
  const SafetensorsEntry* q = file->Find("q");
  ASSERT_NE(q, nullptr);
  EXPECT_EQ(q->dtype, "F32");
  ASSERT_EQ(q->shape.size(), 2U);
  EXPECT_EQ(q->data.size(), static_cast<size_t>(q->shape[0] * q->shape[1]) * sizeof(float));
  EXPECT_TRUE(file->metadata().contains("eta"));
  EXPECT_EQ(file->Find("absent"), nullptr);
}

TEST(SafetensorsReadTest, TakesScalarsEmptyTensorsAndMetadata) {
  const TempDir dir;
  const auto file = OpenBytes(
      dir,
      Container(R"({"__metadata__":{"k":"v"},"s":{"dtype":"F32","shape":[],"data_offsets":[0,4]},)"
                R"("e":{"dtype":"F32","shape":[0,5],"data_offsets":[4,4]}}  )",
                "abcd"));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->Find("s")->data.size(), 4U);
  EXPECT_THAT(file->Find("e")->shape, ElementsAre(0, 5));
  EXPECT_EQ(file->metadata().at("k"), "v");
}

struct HostileCase {
  std::string name;
  std::string bytes;
  std::string message;
};

std::string OneTensor(const std::string& fields, const std::string& data) {
  return Container(absl::StrCat("{\"a\":{", fields, "}}"), data);
}

std::vector<HostileCase> HostileCases() {
  const std::string ok = R"("dtype":"U8","shape":[4],"data_offsets":[0,4])";
  const std::string huge_prefix(8, '\xFF');
  return {
      {"Empty", "", "0 bytes"},
      {"ShortPrefix", "abc", "3 bytes"},
      {"HugeHeaderSize", huge_prefix + "{}", "header of 18446744073709551615 bytes"},
      {"HeaderBeyondFile", Container("{}", "").substr(0, 9), "truncated"},
      {"NotJson", Container("hello", ""), "not valid JSON"},
      {"Array", Container("[]", ""), "an array where none belongs"},
      {"Number", Container("7", ""), "a number where none belongs"},
      {"TrailingText", Container("{} x", ""), "not valid JSON"},
      {"DeepArrays", Container(R"({"a":{"shape":)" + std::string(100000, '['), ""),
       "an array where"},
      {"DeepObjects", Container(R"({"a":{"b":{"c":{}}}})", ""), "unknown key \"b\""},
      {"EntryIsNumber", Container(R"({"a":1})", ""), "a number where"},
      {"NoDtype", OneTensor(R"("shape":[4],"data_offsets":[0,4])", "abcd"), "no dtype"},
      {"NoShape", OneTensor(R"("dtype":"U8","data_offsets":[0,4])", "abcd"), "no shape"},
      {"NoOffsets", OneTensor(R"("dtype":"U8","shape":[4])", "abcd"), "no data_offsets"},
      {"ThreeOffsets", OneTensor(R"("dtype":"U8","shape":[4],"data_offsets":[0,4,5])", "abcd"),
       "two numbers"},
      {"ShapeIsText", OneTensor(R"("dtype":"U8","shape":"4","data_offsets":[0,4])", "abcd"),
       "a string where"},
      {"NegativeDim", OneTensor(R"("dtype":"U8","shape":[-4],"data_offsets":[0,4])", "abcd"),
       "negative number -4"},
      {"FractionDim", OneTensor(R"("dtype":"U8","shape":[4.5],"data_offsets":[0,4])", "abcd"),
       "4.5"},
      {"HugeDim",
       OneTensor(R"("dtype":"U8","shape":[99999999999999999999],"data_offsets":[0,4])", "abcd"),
       "not a whole number of 64 bits"},
      {"UnknownDtype", OneTensor(R"("dtype":"F7","shape":[4],"data_offsets":[0,4])", "abcd"),
       "unknown dtype \"F7\""},
      {"Overflow",
       OneTensor(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0])", ""),
       "overflows"},
      {"OverflowWithZero",
       OneTensor(
           R"("dtype":"F32","shape":[4294967296,4294967296,4294967296,0],"data_offsets":[0,0])",
           ""),
       "overflows"},
      {"TooManyDims",
       OneTensor(R"("dtype":"U8","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1],"data_offsets":[0,1])",
                 "a"),
       "dimensions"},
      {"SizeMismatch", OneTensor(R"("dtype":"F32","shape":[4],"data_offsets":[0,4])", "abcd"),
       "needs 16 bytes, data_offsets hold 4"},
      {"BeyondFile", OneTensor(R"("dtype":"U8","shape":[8],"data_offsets":[0,8])", "abcd"),
       "data section of 4 bytes"},
      {"Backwards", OneTensor(R"("dtype":"U8","shape":[0],"data_offsets":[4,0])", "abcd"), "[4,0]"},
      {"LeftOver", OneTensor(ok, "abcdefgh"), "tensors cover 4 bytes"},
      {"DuplicateField", OneTensor(ok + R"(,"dtype":"I8")", "abcd"), "key \"dtype\" twice"},
      {"DuplicateTensor", Container("{\"a\":{" + ok + "},\"a\":{" + ok + "}}", "abcd"), "twice"},
      {"Overlap",
       Container("{\"a\":{" + ok + R"(},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})",
                 "abcdef"),
       "inside the tensor before it"},
      {"Hole",
       Container("{\"a\":{" + ok + R"(},"b":{"dtype":"U8","shape":[1],"data_offsets":[5,6]}})",
                 "abcdef"),
       "after a hole"},
      {"MetadataNumber", Container(R"({"__metadata__":{"a":1}})", ""), "a number where"},
      {"MetadataTwice", Container(R"({"__metadata__":{},"__metadata__":{}})", ""), "twice"},
  };
}

class SafetensorsHostileTest : public testing::TestWithParam<HostileCase> {};

TEST_P(SafetensorsHostileTest, IsRefusedWithItsReason) {
  const TempDir dir;
  const auto file = OpenBytes(dir, GetParam().bytes);
  ASSERT_EQ(file.status().code(), absl::StatusCode::kDataLoss) << file.status();
  EXPECT_THAT(std::string(file.status().message()), HasSubstr(GetParam().message));
  EXPECT_THAT(std::string(file.status().message()), HasSubstr("x.safetensors"));
}

INSTANTIATE_TEST_SUITE_P(All, SafetensorsHostileTest, testing::ValuesIn(HostileCases()),
                         [](const auto& param_info) { return param_info.param.name; });

// Flips, inserts, deletes and truncates a valid file. Whatever opens must be readable to the last
// byte.
TEST(SafetensorsFuzzTest, MutationsNeverCrash) {
  constexpr uint64_t kSeed = 20260102;
  constexpr int kRounds = 4000;
  SCOPED_TRACE(absl::StrCat("seed ", kSeed));
  const TempDir dir;
  const std::string valid = ReadFile(TestData("golden/mixer_small.safetensors"));
  uint64_t header_size = 0;
  std::memcpy(&header_size, valid.data(), sizeof(header_size));
  const size_t head = header_size + sizeof(header_size);
  std::mt19937_64 random(kSeed);
  int accepted = 0;
  int refused = 0;
  for (int round = 0; round < kRounds; ++round) {
    std::string bytes = valid;
    const size_t changes = 1 + random() % 3;
    for (size_t i = 0; i < changes; ++i) {
      const size_t at = random() % std::min(head, bytes.size());
      switch (random() % 5) {
        case 0:
          bytes[at] = static_cast<char>(random());
          break;
        case 1:
          bytes[at] = "0123456789[]{}\",:-eE"[random() % 20];
          break;
        case 2:
          bytes.erase(at, 1 + random() % 8);
          break;
        case 3:
          bytes.insert(at, 1 + random() % 8, static_cast<char>(random()));
          break;
        default:
          bytes.resize(1 + random() % bytes.size());
          break;
      }
    }
    const auto file = OpenBytes(dir, bytes);
    if (!file.ok()) {
      ++refused;
      continue;
    }
    ++accepted;
    unsigned sum = 0;
    for (const auto& [name, entry] : file->tensors()) {
      for (const std::byte b : entry.data) sum += std::to_integer<unsigned>(b);
    }
    EXPECT_GT(sum, 0U);
  }
  EXPECT_GT(refused, kRounds / 2);
  EXPECT_GT(accepted, 0) << "the mutations never left a valid file: the test sees one path only";
}

TEST(SafetensorsWriteTest, RoundTripsWithAlignment) {
  const TempDir dir;
  const std::string path = dir.File("out.safetensors");
  // Sizes: 3 (tail), 64, 6 (tail, wider elements), 128, 0.
  const std::vector<SafetensorsWriter::Declaration> declared = {{"odd", "U8", {3}},
                                                                {"line", "F32", {4, 4}},
                                                                {"half", "BF16", {3}},
                                                                {"two", "F32", {32}},
                                                                {"none", "F32", {0}}};
  const std::vector<std::string> data = {"abc", std::string(64, 'l'), "hhhhhh",
                                         std::string(128, 't'), ""};
  auto writer = SafetensorsWriter::Create(path, declared, {{"made by", "test \"quoted\""}});
  ASSERT_TRUE(writer.ok()) << writer.status();
  for (const std::string& bytes : data) ASSERT_TRUE(writer->Write(Bytes(bytes)).ok());
  EXPECT_FALSE(std::filesystem::exists(path)) << "the final name appears before Finish";
  ASSERT_TRUE(writer->Finish().ok());
  EXPECT_FALSE(std::filesystem::exists(path + ".tmp"));

  const auto file = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->metadata().at("made by"), "test \"quoted\"");
  ASSERT_EQ(file->tensors().size(), declared.size());
  for (size_t i = 0; i < declared.size(); ++i) {
    const SafetensorsEntry* entry = file->Find(declared[i].name);
    ASSERT_NE(entry, nullptr);
    EXPECT_EQ(entry->dtype, declared[i].dtype);
    EXPECT_EQ(entry->shape, declared[i].shape);
    EXPECT_EQ(std::string(reinterpret_cast<const char*>(entry->data.data()), entry->data.size()),
              data[i]);
  }
  // The mapping starts at a page, so addresses show alignment in the file.
  for (const char* name : {"line", "two"}) {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(file->Find(name)->data.data()) % 64, 0U) << name;
  }
  EXPECT_EQ(reinterpret_cast<uintptr_t>(file->Find("half")->data.data()) % 2, 0U);
}

TEST(SafetensorsWriteTest, RefusesBadDeclarations) {
  const TempDir dir;
  const auto create = [&](const std::vector<SafetensorsWriter::Declaration>& declared) {
    return SafetensorsWriter::Create(dir.File("out"), declared, {}).status();
  };
  EXPECT_THAT(std::string(create({{"a", "F32", {1}}, {"a", "F32", {1}}}).message()),
              HasSubstr("declared twice"));
  EXPECT_THAT(std::string(create({{"a", "F33", {1}}}).message()), HasSubstr("unknown dtype"));
  EXPECT_THAT(std::string(create({{"a", "F32", {-1}}}).message()), HasSubstr("does not fit"));
  EXPECT_THAT(std::string(create({{"a", "F32", {1LL << 40, 1LL << 40}}}).message()),
              HasSubstr("does not fit"));
  EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
}

TEST(SafetensorsWriteTest, RefusesWrongSizesAndLeavesNothingBehind) {
  const TempDir dir;
  {
    auto writer = SafetensorsWriter::Create(dir.File("out"), {{"a", "U8", {4}}}, {});
    ASSERT_TRUE(writer.ok()) << writer.status();
    EXPECT_THAT(std::string(writer->Write(Bytes("abc")).message()), HasSubstr("got 3 bytes"));
    EXPECT_EQ(writer->Finish().code(), absl::StatusCode::kFailedPrecondition);
    ASSERT_TRUE(writer->Write(Bytes("abcd")).ok());
    EXPECT_EQ(writer->Write(Bytes("abcd")).code(), absl::StatusCode::kFailedPrecondition);
  }
  EXPECT_TRUE(std::filesystem::is_empty(dir.path())) << "an unfinished file was left";
}

TEST(SafetensorsWriteTest, UnwritableFolderIsNamed) {
  const auto writer = SafetensorsWriter::Create("/nonexistent/out", {{"a", "U8", {1}}}, {});
  EXPECT_EQ(writer.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(writer.status().message()), HasSubstr("/nonexistent/out.tmp"));
}

}  // namespace
}  // namespace osdn
