#include "tools/pickle.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <string_view>

namespace osdn::tools {
namespace {

using Kind = PickleValue::Kind;
using testing::HasSubstr;

// Text with the zeros that are in it.
template <size_t kSize>
std::string Bytes(const char (&text)[kSize]) {
  return std::string(text, kSize - 1);
}

absl::StatusOr<Pickle> Parse(const std::string& bytes) {
  const auto span =
      absl::MakeConstSpan(reinterpret_cast<const std::byte*>(bytes.data()), bytes.size());
  return Pickle::Parse(span, "file", [](std::string_view module, std::string_view name) {
    return module == "collections" || name == "fine";
  });
}

std::string Error(const std::string& bytes, absl::StatusCode code) {
  const absl::StatusOr<Pickle> pickle = Parse(bytes);
  EXPECT_EQ(pickle.status().code(), code) << pickle.status();
  return std::string(pickle.status().message());
}

TEST(PickleTest, Numbers) {
  // (None, True, False, -2, 200, 40000, -1 as long, 2^40, a huge long, 1.5)
  const std::string bytes = Bytes(
      "\x80\x02(N\x88\x89J\xFE\xFF\xFF\xFFK\xC8M\x40\x9C\x8A\x01\xFF"
      "\x8A\x06\x00\x00\x00\x00\x00\x01\x8A\x09\x00\x00\x00\x00\x00\x00\x00\x00\x01"
      "G\x3F\xF8\x00\x00\x00\x00\x00\x00t.");
  const absl::StatusOr<Pickle> pickle = Parse(bytes);
  ASSERT_TRUE(pickle.ok()) << pickle.status();
  const PickleValue& root = pickle->root();
  ASSERT_TRUE(root.Is(Kind::kTuple));
  ASSERT_EQ(root.items.size(), 10U);
  EXPECT_TRUE(root.items[0]->Is(Kind::kNone));
  EXPECT_TRUE(root.items[1]->Is(Kind::kBool));
  EXPECT_EQ(root.items[1]->integer, 1);
  EXPECT_EQ(root.items[2]->integer, 0);
  EXPECT_EQ(root.items[3]->integer, -2);
  EXPECT_EQ(root.items[4]->integer, 200);
  EXPECT_EQ(root.items[5]->integer, 40000);
  EXPECT_EQ(root.items[6]->integer, -1);
  EXPECT_EQ(root.items[7]->integer, int64_t{1} << 40);
  EXPECT_TRUE(root.items[8]->Is(Kind::kHugeInt));
  EXPECT_EQ(root.items[9]->real, 1.5);
}

TEST(PickleTest, ContainersAndMemoOfProtocol4) {
  // {"a": [1, {2}], "b": same list}
  const std::string bytes = Bytes(
      "\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00}\x94(\x8C\x01"
      "a\x94]\x94(K\x01\x8F(K\x02\x90"
      "e\x8C\x01"
      "bh\x02u.");
  const absl::StatusOr<Pickle> pickle = Parse(bytes);
  ASSERT_TRUE(pickle.ok()) << pickle.status();
  const PickleValue* list = pickle->root().Get("a");
  ASSERT_NE(list, nullptr);
  EXPECT_EQ(list, pickle->root().Get("b"));
  EXPECT_EQ(pickle->root().Get("c"), nullptr);
  ASSERT_EQ(list->items.size(), 2U);
  EXPECT_TRUE(list->items[1]->Is(Kind::kSet));
}

TEST(PickleTest, CallsStayDescriptions) {
  // An OrderedDict with an attribute is a dict; m.fine(persistent 7) with a state is an object.
  const std::string bytes = Bytes(
      "\x80\x02(ccollections\nOrderedDict\n)RX\x01\x00\x00\x00kK\x05s}b"
      "cm\nfine\nK\x07Q\x85R}bt.");
  const absl::StatusOr<Pickle> pickle = Parse(bytes);
  ASSERT_TRUE(pickle.ok()) << pickle.status();
  const PickleValue& root = pickle->root();
  ASSERT_EQ(root.items.size(), 2U);
  ASSERT_NE(root.items[0]->Get("k"), nullptr);
  EXPECT_EQ(root.items[0]->Get("k")->integer, 5);
  const PickleValue& object = *root.items[1];
  ASSERT_TRUE(object.Is(Kind::kObject));
  EXPECT_TRUE(object.callable->IsGlobal("m", "fine"));
  ASSERT_EQ(object.items.size(), 1U);
  EXPECT_TRUE(object.items[0]->Is(Kind::kPersistent));
  EXPECT_EQ(object.items[0]->items[0]->integer, 7);
  ASSERT_NE(object.state, nullptr);
  EXPECT_TRUE(object.state->Is(Kind::kDict));
}

TEST(PickleTest, RefusesGlobalsByName) {
  // pickle.dumps of an object whose __reduce__ returns (os.system, ("id",)), protocols 2 and 4.
  EXPECT_THAT(Error(Bytes("\x80\x02"
                          "cposix\nsystem\nX\x02\x00\x00\x00id\x85R."),
                    absl::StatusCode::kInvalidArgument),
              AllOf(HasSubstr("global posix.system at byte 2"), HasSubstr("nothing is executed")));
  EXPECT_THAT(Error(Bytes("\x80\x04\x8C\x05posix\x8C\x06system\x93\x8C\x02id\x85R."),
                    absl::StatusCode::kInvalidArgument),
              HasSubstr("global posix.system"));
}

TEST(PickleTest, RefusesOpcodesByName) {
  EXPECT_THAT(Error(Bytes("\x80\x02(imodule\nname\n."), absl::StatusCode::kInvalidArgument),
              HasSubstr("opcode INST"));
  EXPECT_THAT(Error(Bytes("\x80\x02\x82\x01."), absl::StatusCode::kInvalidArgument),
              HasSubstr("opcode EXT1"));
  EXPECT_THAT(Error("I5\n.", absl::StatusCode::kInvalidArgument), HasSubstr("opcode INT"));
  EXPECT_THAT(Error(Bytes("\x80\x06N."), absl::StatusCode::kInvalidArgument),
              HasSubstr("protocol 6"));
  EXPECT_THAT(Error(Bytes("\x80\x02\xFF."), absl::StatusCode::kDataLoss),
              HasSubstr("no opcode 0xFF exists"));
}

TEST(PickleTest, DamageIsFound) {
  for (const std::string& bytes : {
           Bytes(""),
           Bytes("\x80"),
           Bytes("\x80\x02"),
           Bytes("\x80\x02N"),  // cut off
           Bytes("\x80\x02."),
           Bytes("\x80\x02NN."),
           Bytes("\x80\x02(N."),  // bad ends
           Bytes("\x80\x02X\xFF\xFF\xFF\xFFid."),
           Bytes("\x80\x02h\x05."),  // reach too far
           Bytes("\x80\x02t."),
           Bytes("\x80\x02\x87."),
           Bytes("\x80\x02R."),
           Bytes("\x80\x02u."),
           Bytes("\x80\x02NNR."),
           Bytes("\x80\x02N}b."),
           Bytes("\x80\x02NNa."),
           Bytes("\x80\x02}(Nu."),
           Bytes("\x80\x02(0."),
           Bytes("\x80\x02\x93."),
           Bytes("\x80\x02NN\x93."),
           Bytes("\x80\x02"
                 "cno newline"),
           Bytes("\x80\x04\x8D\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFFx."),
       }) {
    EXPECT_THAT(Error(bytes, absl::StatusCode::kDataLoss), HasSubstr("file: not a sound pickle"))
        << testing::PrintToString(bytes);
  }
}

// A tuple that is made into ever more objects would take the square of the pickle's size.
TEST(PickleTest, SharedPartsDoNotMultiply) {
  std::string bytes = Bytes("\x80\x02(");
  bytes.append(1 << 15, 'N');
  bytes += Bytes("tq\x01(");
  for (int i = 0; i < 1 << 12; ++i) bytes += Bytes("cm\nfine\nh\x01R");
  bytes += "t.";
  EXPECT_THAT(Error(bytes, absl::StatusCode::kDataLoss), HasSubstr("too many values"));
}

}  // namespace
}  // namespace osdn::tools
