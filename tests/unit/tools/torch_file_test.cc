#include "tools/torch_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <minizip/zip.h>

#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/unit/tools/checkpoint_fixture.h"

namespace osdn::tools {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::SizeIs;

// --- Pickles as torch.save writes them ---

std::string Little(uint64_t value, size_t bytes) {
  std::string text;
  for (size_t i = 0; i < bytes; ++i) text.push_back(static_cast<char>(value >> (8 * i) & 0xFF));
  return text;
}

std::string Text(const std::string& text) { return "X" + Little(text.size(), 4) + text; }
std::string Int(int64_t value) { return "\x8A\x08" + Little(static_cast<uint64_t>(value), 8); }
std::string Ints(const std::vector<int64_t>& values) {
  std::string text = "(";
  for (const int64_t value : values) text += Int(value);
  return text + "t";
}

struct View {
  std::string type = "FloatStorage";
  std::string key = "0";
  int64_t offset = 0;
  std::vector<int64_t> shape = {2};
  std::vector<int64_t> strides = {1};
};

std::string Storage(const View& view, const std::string& module = "torch") {
  return "(" + Text("storage") + "c" + module + "\n" + view.type + "\n" + Text(view.key) +
         Text("cpu") + Int(4) + "tQ";
}

std::string ViewArguments(const View& view, const std::string& module = "torch") {
  return Storage(view, module) + Int(view.offset) + Ints(view.shape) + Ints(view.strides) +
         "\x89"
         "ccollections\nOrderedDict\n)R";
}

std::string Tensor(const View& view) {
  return "ctorch._utils\n_rebuild_tensor_v2\n(" + ViewArguments(view) + "tR";
}

std::string Root(const std::string& value) { return "\x80\x02" + value + "."; }
std::string Dict(const std::string& key, const std::string& value) {
  return "}" + Text(key) + value + "s";
}

// --- Archives ---

struct Entry {
  std::string path;
  std::string bytes;
  int level = 0;           // of compression
  uint32_t unix_mode = 0;  // 0120777: a link
};

class TorchFileTest : public testing::Test {
 protected:
  void Write(const std::vector<Entry>& entries) {
    const std::string path = dir_ / "file.zip";
    zipFile zip = zipOpen64(path.c_str(), APPEND_STATUS_CREATE);
    ASSERT_NE(zip, nullptr);
    for (const Entry& entry : entries) {
      zip_fileinfo info = {};
      info.external_fa = static_cast<uLong>(entry.unix_mode) << 16;
      ASSERT_EQ(zipOpenNewFileInZip64(zip, entry.path.c_str(), &info, nullptr, 0, nullptr, 0,
                                      nullptr, entry.level > 0 ? 8 : 0, entry.level, 0),
                ZIP_OK);
      ASSERT_EQ(
          zipWriteInFileInZip(zip, entry.bytes.data(), static_cast<unsigned>(entry.bytes.size())),
          ZIP_OK);
      ASSERT_EQ(zipCloseFileInZip(zip), ZIP_OK);
    }
    ASSERT_EQ(zipClose(zip, nullptr), ZIP_OK);
    bytes_ = ReadText(path);
  }

  // An archive with this root value and storage 0: the floats 1, 2, 3, 4.
  void WriteRoot(const std::string& value) {
    const float floats[] = {1, 2, 3, 4};
    std::string storage(sizeof(floats), '\0');
    std::memcpy(storage.data(), floats, sizeof(floats));
    Write({{"archive/data.pkl", Root(value)},
           {"archive/data/0", storage},
           {"archive/version", "3\n"}});
  }

  absl::StatusOr<TorchArchive> Read() const {
    return ReadTorchArchive({reinterpret_cast<const std::byte*>(bytes_.data()), bytes_.size()},
                            "x.pt");
  }

  std::string Error(absl::StatusCode code = absl::StatusCode::kInvalidArgument) const {
    const absl::Status status = Read().status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("x.pt: "));
    return std::string(status.message());
  }

  TemporaryDirectory dir_;
  std::string bytes_;
};

TEST_F(TorchFileTest, NestedTensorsAndSharedStorages) {
  WriteRoot("}(" + Text("epoch") + Int(3) + Text("model") + Dict("w", Tensor({})) + Text("list") +
            "]" + Tensor({.offset = 2}) + "a" + "u");
  const absl::StatusOr<TorchArchive> archive = Read();
  ASSERT_TRUE(archive.ok()) << archive.status();
  ASSERT_THAT(archive->tensors, SizeIs(2));
  EXPECT_THAT(FloatsOf(archive->tensors.at("model.w")), ElementsAre(1, 2));
  EXPECT_THAT(FloatsOf(archive->tensors.at("list.0")), ElementsAre(3, 4));
  ASSERT_THAT(archive->storages, SizeIs(1));
  EXPECT_TRUE(ChecksumMatches(archive->storages[0]));
}

TEST_F(TorchFileTest, ParametersAttributesAndUntypedStorages) {
  const std::string v3 = "ctorch._utils\n_rebuild_tensor_v3\n(" +
                         ViewArguments({.type = "UntypedStorage", .offset = 1}, "torch.storage") +
                         "ctorch\nfloat32\ntR";
  const std::string parameter = "ctorch._utils\n_rebuild_parameter\n(" + Tensor({.offset = 2}) +
                                "\x88"
                                "ccollections\nOrderedDict\n)RtR";
  const std::string typed =
      "ctorch._tensor\n_rebuild_from_type_v2\n("
      "ctorch._utils\n_rebuild_tensor_v2\nctorch.nn.parameter\nParameter\n(" +
      ViewArguments({.shape = {1}}) + "t}tR";
  WriteRoot("}(" + Text("v3") + v3 + Text("parameter") + parameter + Text("typed") + typed + "u");
  const absl::StatusOr<TorchArchive> archive = Read();
  ASSERT_TRUE(archive.ok()) << archive.status();
  EXPECT_THAT(FloatsOf(archive->tensors.at("v3")), ElementsAre(2, 3));
  EXPECT_THAT(FloatsOf(archive->tensors.at("parameter")), ElementsAre(3, 4));
  EXPECT_THAT(FloatsOf(archive->tensors.at("typed")), ElementsAre(1));
}

TEST_F(TorchFileTest, TensorsThatCannotBeAreNamed) {
  const std::vector<std::pair<View, const char*>> views = {
      {{.offset = 3}, "beyond the storage of 4 elements"},
      {{.shape = {3}, .strides = {2}}, "beyond the storage"},
      {{.strides = {1, 1}}, "make no tensor"},
      {{.key = "7"}, "its storage data/7 is missing"},
      {{.key = "../version"}, "is missing"},
      {{.type = "ComplexFloatStorage"}, "type ComplexFloatStorage cannot be read"},
      {{.shape = std::vector<int64_t>(17, 1), .strides = std::vector<int64_t>(17, 1)},
       "not up to 16 integers"},
  };
  for (const auto& [view, problem] : views) {
    WriteRoot(Dict("layer.w", Tensor(view)));
    EXPECT_THAT(Error(), AllOf(HasSubstr("tensor layer.w: "), HasSubstr(problem)));
  }
  WriteRoot(Dict("w", "ctorch._utils\n_rebuild_tensor_v2\n)R"));
  EXPECT_THAT(Error(), HasSubstr("arguments that _rebuild_tensor_v2 does not take"));
  WriteRoot(Dict("w", "ctorch\nQInt8Storage\n"));
  EXPECT_THAT(Error(), HasSubstr("global torch.QInt8Storage"));
}

TEST_F(TorchFileTest, OtherFormatsAreRefusedWithARemedy) {
  bytes_ = std::string("\x80\x02\x8A\x0A\x6C\xFC\x9C\x46\xF9\x20\x6A\xA8\x50\x19.", 15);
  EXPECT_THAT(Error(), HasSubstr("before PyTorch 1.6"));
  bytes_ = "something else";
  EXPECT_THAT(Error(absl::StatusCode::kDataLoss), HasSubstr("not a file of torch.save"));
  Write({{"archive/data.pkl", Root("}")}, {"archive/byteorder", "big"}});
  EXPECT_THAT(Error(), HasSubstr("byte order \"big\""));
  Write({{"archive/data.pkl", Root("}")}, {"archive/constants.pkl", ""}});
  EXPECT_THAT(Error(), HasSubstr("TorchScript"));
  Write({{"hello.txt", "x"}});
  EXPECT_THAT(Error(), HasSubstr("without data.pkl"));
}

TEST_F(TorchFileTest, HostileArchives) {
  const Entry good{"archive/data.pkl", Root("}")};
  Write({good, {"archive/data/0", std::string(1000, 'x'), 9}});
  EXPECT_THAT(Error(), HasSubstr("archive/data/0 is refused: it is compressed"));
  Write({good, {"archive/link", "/etc/passwd", 0, 0120777}});
  EXPECT_THAT(Error(), HasSubstr("archive/link is refused: it is a link"));
  for (const char* path : {"../data/0", "/etc/passwd", "a/../../b", "a\\b"}) {
    Write({good, {path, "x"}});
    EXPECT_THAT(Error(), HasSubstr("could lead out of the archive")) << path;
  }
  Write({good, {"archive/a", "x"}, {"archive/a", "y"}});
  EXPECT_THAT(Error(absl::StatusCode::kDataLoss), HasSubstr("archive/a twice"));

  // The directory's second entry points to the bytes of the first.
  Write({{"archive/a", "1234"}, {"archive/b", "5678"}, good});
  const size_t directory = bytes_.find("PK\x01\x02");
  const size_t second = bytes_.find("PK\x01\x02", directory + 1);
  constexpr size_t kOffsetField = 42;
  bytes_.replace(second + kOffsetField, 4, bytes_.substr(directory + kOffsetField, 4));
  EXPECT_THAT(Error(absl::StatusCode::kDataLoss),
              testing::AnyOf(HasSubstr("over each other"), HasSubstr("does not lie in it")));
}

TEST_F(TorchFileTest, DamageIsFound) {
  WriteRoot(Dict("w", Tensor({})));
  const std::string good = bytes_;
  for (size_t size = 4; size < good.size(); size += 7) {
    bytes_ = good.substr(0, size);
    EXPECT_EQ(Read().status().code(), absl::StatusCode::kDataLoss) << size;
  }
  bytes_ = good;
  bytes_[bytes_.find("FloatStorage")] = 'f';
  EXPECT_THAT(Error(absl::StatusCode::kDataLoss), HasSubstr("data.pkl does not match"));
  bytes_ = good;
  const float one = 1;
  char pattern[sizeof(one)];
  std::memcpy(pattern, &one, sizeof(one));
  bytes_[bytes_.find(std::string(pattern, sizeof(pattern)))] = 'x';
  const absl::StatusOr<TorchArchive> archive = Read();
  ASSERT_TRUE(archive.ok()) << archive.status();
  EXPECT_FALSE(ChecksumMatches(archive->storages.at(0)));
}

// Containers in themselves, and shared ones that would be walked 2^40 times.
TEST_F(TorchFileTest, WalksEnd) {
  WriteRoot(
      "]q\x01h\x01"
      "a");
  EXPECT_THAT(Error(absl::StatusCode::kResourceExhausted), HasSubstr("deep"));
  std::string bomb = "]";
  for (int i = 0; i < 30; ++i) {
    const std::string index(1, static_cast<char>(i + 1));
    bomb += "q" + index + "]h" + index + "ah" + index + "a";
  }
  // The list is the last; the ones inside stay on the stack, so a tuple holds them all.
  WriteRoot("(" + bomb + "t");
  EXPECT_THAT(Error(absl::StatusCode::kResourceExhausted), HasSubstr("values"));
}

}  // namespace
}  // namespace osdn::tools
