#include "engine/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "nlohmann/json.hpp"
#include "tests/unit/engine/test_support.h"

namespace osdn {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing_support::ReadFile;
using testing_support::TempDir;
using testing_support::TestData;
using testing_support::WriteFile;

class TokenizerTest : public testing::Test {
 protected:
  void SetUp() override {
    auto tokenizer = Tokenizer::Load(TestData("tokenizer/tiny.model"));
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
  }

  std::string Concatenate(const std::vector<int32_t>& ids) const {
    std::string text;
    for (const int32_t id : ids) text += tokenizer_->TokenBytes(id);
    return text;
  }

  std::unique_ptr<Tokenizer> tokenizer_;
};

// expected.tsv is what the Python package makes of the same model.
TEST_F(TokenizerTest, EqualsThePythonPackage) {
  std::ifstream lines(TestData("tokenizer/expected.tsv"));
  int checked = 0;
  for (std::string line; std::getline(lines, line); ++checked) {
    const std::vector<std::string> columns = absl::StrSplit(line, '\t');
    ASSERT_EQ(columns.size(), 3U) << line;
    const auto text = nlohmann::json::parse(columns[0]).get<std::string>();
    std::vector<int32_t> ids;
    for (const auto& id : absl::StrSplit(columns[1], ' ', absl::SkipEmpty())) {
      ids.push_back(std::stoi(std::string(id)));
    }
    EXPECT_EQ(tokenizer_->Encode(text), ids) << line;
    EXPECT_EQ(tokenizer_->Decode(ids), nlohmann::json::parse(columns[2]).get<std::string>())
        << line;
  }
  EXPECT_GE(checked, 10);
}

TEST_F(TokenizerTest, TokenBytesConcatenateToTheText) {
  EXPECT_TRUE(tokenizer_->adds_dummy_prefix());
  for (const std::string text : {"Hello world", "na\xC3\xAFve caf\xC3\xA9",
                                 "\xE6\x97\xA5\xE6\x9C\xAC \xF0\x9F\x98\x80", "a\nb\tc"}) {
    const std::vector<int32_t> ids = tokenizer_->Encode(text);
    EXPECT_EQ(Concatenate(ids), " " + text) << "the one dummy space, then the text";
    EXPECT_EQ(tokenizer_->Decode(ids), text);
  }
}

TEST_F(TokenizerTest, BytePiecesAreTheirByte) {
  for (int byte = 0; byte < 256; ++byte) {
    const auto id = tokenizer_->FindPiece(absl::StrFormat("<0x%02X>", byte));
    ASSERT_TRUE(id.has_value()) << byte;
    EXPECT_EQ(tokenizer_->TokenBytes(*id), std::string(1, static_cast<char>(byte)));
  }
}

TEST_F(TokenizerTest, ControlPiecesAreNeverMadeFromText) {
  for (const char* piece : {"<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"}) {
    const auto control = tokenizer_->FindPiece(piece);
    ASSERT_TRUE(control.has_value()) << piece;
    EXPECT_TRUE(tokenizer_->IsControl(*control));
    EXPECT_EQ(tokenizer_->TokenBytes(*control), "");
    EXPECT_EQ(tokenizer_->Decode({*control}), "");
    EXPECT_EQ(tokenizer_->Piece(*control), piece);
    for (const int32_t id : tokenizer_->Encode(absl::StrCat("a", piece, piece, " ", piece))) {
      EXPECT_FALSE(tokenizer_->IsControl(id)) << piece << " was forged from text";
    }
  }
  EXPECT_FALSE(tokenizer_->IsControl(tokenizer_->Encode("a").front()));
}

TEST_F(TokenizerTest, UnknownPiecesAndIdsOutside) {
  EXPECT_FALSE(tokenizer_->FindPiece("no such piece").has_value());
  EXPECT_EQ(tokenizer_->TokenBytes(0), tokenizer_->Decode({0})) << "the unknown sign";
  for (const int32_t id :
       {-1, static_cast<int32_t>(tokenizer_->vocab_size()), INT32_MAX, INT32_MIN}) {
    EXPECT_EQ(tokenizer_->TokenBytes(id), "");
    EXPECT_EQ(tokenizer_->Piece(id), "");
    EXPECT_FALSE(tokenizer_->IsControl(id));
    EXPECT_EQ(tokenizer_->Decode({id}), "");
  }
  EXPECT_EQ(tokenizer_->vocab_size(), 512);
}

TEST_F(TokenizerTest, AnyBytesEncode) {
  constexpr uint64_t kSeed = 5;
  std::mt19937_64 random(kSeed);
  for (int round = 0; round < 300; ++round) {
    std::string text(random() % 60, '\0');
    for (char& c : text) c = static_cast<char>(random());
    for (const int32_t id : tokenizer_->Encode(text)) {
      ASSERT_GE(id, 0) << "seed " << kSeed;
      ASSERT_LT(id, tokenizer_->vocab_size()) << "seed " << kSeed;
    }
  }
}

TEST_F(TokenizerTest, ConcurrentUse) {
  const std::vector<int32_t> want = tokenizer_->Encode("The state of one sequence");
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 0);
  for (int& count : wrong) {
    threads.emplace_back([this, &want, &count] {
      for (int i = 0; i < 200; ++i) {
        if (tokenizer_->Encode("The state of one sequence") != want) ++count;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(wrong, ElementsAre(0, 0, 0, 0));
}

TEST(TokenizerLoadTest, ErrorsNameTheFile) {
  EXPECT_EQ(Tokenizer::Load("/nonexistent/tokenizer.model").status().code(),
            absl::StatusCode::kNotFound);
  const TempDir dir;
  WriteFile(dir.File("text"), "this is not a model");
  WriteFile(dir.File("empty"), "");
  for (const char* name : {"text", "empty"}) {
    const auto tokenizer = Tokenizer::Load(dir.File(name));
    EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kDataLoss) << name;
    EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr(dir.File(name)));
  }
}

// Corrupt models are refused or work; they never crash.
TEST(TokenizerFuzzTest, MutationsNeverCrash) {
  constexpr uint64_t kSeed = 17;
  SCOPED_TRACE(absl::StrCat("seed ", kSeed));
  const TempDir dir;
  const std::string valid = ReadFile(TestData("tokenizer/tiny.model"));
  std::mt19937_64 random(kSeed);
  int refused = 0;
  for (int round = 0; round < 300; ++round) {
    std::string bytes = valid;
    for (int i = 0; i < 3; ++i) bytes[random() % bytes.size()] = static_cast<char>(random());
    if (random() % 4 == 0) bytes.resize(random() % bytes.size());
    WriteFile(dir.File("m"), bytes);
    const auto tokenizer = Tokenizer::Load(dir.File("m"));
    if (!tokenizer.ok()) {
      ++refused;
      continue;
    }
    for (const int32_t id : (*tokenizer)->Encode("some text \xF0\x9F\x98\x80")) {
      EXPECT_LT(id, (*tokenizer)->vocab_size());
    }
  }
  EXPECT_GT(refused, 0);
}

}  // namespace
}  // namespace osdn
