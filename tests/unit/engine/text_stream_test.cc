#include "engine/text_stream.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "absl/strings/str_cat.h"

namespace osdn {
namespace {

constexpr char kReplacement[] = "\xEF\xBF\xBD";

std::string Text(std::initializer_list<std::string_view> parts) {
  std::string text;
  for (std::string_view part : parts) text += part == "?" ? kReplacement : part;
  return text;
}

std::string DecodeAll(std::string_view bytes) {
  Utf8Decoder decoder;
  std::string text = decoder.Append(bytes);
  text += decoder.Flush();
  return text;
}

// Every right-hand side is what CPython 3.11 gives for bytes.decode('utf-8', errors='replace'); "?"
// stands for U+FFFD.
TEST(Utf8DecoderTest, ReplacesAsPythonDoes) {
  const std::pair<std::string_view, std::string> cases[] = {
      {"plain", "plain"},
      {"\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80", "\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80"},
      {"\x80", Text({"?"})},
      {"a\xBF\xBF"
       "b",
       Text({"a", "?", "?", "b"})},
      {"\xC0\xAF", Text({"?", "?"})},
      {"\xC1\x81", Text({"?", "?"})},
      {"\xE0\x80\x80", Text({"?", "?", "?"})},
      {"\xE0\x9F\xBF", Text({"?", "?", "?"})},
      {"\xED\xA0\x80", Text({"?", "?", "?"})},
      {"\xED\x9F\xBF", "\xED\x9F\xBF"},
      {"\xF0\x80\x80\x80", Text({"?", "?", "?", "?"})},
      {"\xF4\x8F\xBF\xBF", "\xF4\x8F\xBF\xBF"},
      {"\xF4\x90\x80\x80", Text({"?", "?", "?", "?"})},
      {"\xF5\x80", Text({"?", "?"})},
      {"\xFE\xFF", Text({"?", "?"})},
      {"\xF0\x9F\x98"
       "a",
       Text({"?", "a"})},
      {"\xF0\x9F\xF0\x9F\x98\x80", Text({"?", "\xF0\x9F\x98\x80"})},
      {"\xE2\x82\xE2\x82\xAC", Text({"?", "\xE2\x82\xAC"})},
      {"\xE2\x82", Text({"?"})},
      {"\xF0\x9F\x98", Text({"?"})},
      {"\xC3", Text({"?"})},
  };
  for (const auto& [bytes, text] : cases) {
    SCOPED_TRACE(testing::PrintToString(bytes));
    EXPECT_EQ(DecodeAll(bytes), text);
  }
  EXPECT_EQ(DecodeAll(std::string_view("a\0b", 3)), std::string("a\0b", 3));
}

TEST(Utf8DecoderTest, HoldsAtMostThreeBytesAndNoLongerThanNeeded) {
  Utf8Decoder decoder;
  EXPECT_EQ(decoder.Append("a\xF0"), "a");
  EXPECT_EQ(decoder.Append("\x9F"), "");
  EXPECT_EQ(decoder.Append("\x98"), "");
  EXPECT_EQ(decoder.held_bytes(), 3U);
  EXPECT_EQ(decoder.Append("\x80"), "\xF0\x9F\x98\x80");
  EXPECT_EQ(decoder.Append("\xE2\x82"), "");
  EXPECT_EQ(decoder.Append("\xFF"), Text({"?", "?"}));  // decided by the byte that breaks it
  EXPECT_EQ(decoder.held_bytes(), 0U);
}

std::string Feed(TextStream* stream, std::initializer_list<std::string_view> tokens) {
  std::string text;
  for (std::string_view token : tokens) text += stream->Append(token);
  return text;
}

TEST(TextStreamTest, FindsOverlappingStop) {
  TextStream stream({"aab"}, false);
  EXPECT_EQ(Feed(&stream, {"a", "a"}), "");
  EXPECT_EQ(stream.Append("a"), "a");  // "aa" stays live
  EXPECT_EQ(stream.Append("b"), "");
  EXPECT_EQ(stream.matched_stop(), "aab");
  EXPECT_EQ(stream.Append("more"), "");
  EXPECT_EQ(stream.Flush(), "");
}

TEST(TextStreamTest, ReleasesAsSoonAsAPrefixDies) {
  TextStream stream({"END OF TEXT"}, false);
  EXPECT_EQ(stream.Append("the EN"), "the ");
  EXPECT_EQ(stream.Append("D OF"), "");
  EXPECT_EQ(stream.Append(" TIME"), "END OF TIM");  // a new "E" is live
  EXPECT_EQ(stream.Flush(), "E");
  EXPECT_FALSE(stream.matched_stop().has_value());
}

TEST(TextStreamTest, MatchThatEndsFirstWinsThenTheLongest) {
  TextStream first({"abcdef", "cd"}, false);
  EXPECT_EQ(first.Append("xabcdef"), "xab");
  EXPECT_EQ(first.matched_stop(), "cd");

  TextStream longest({"b", "ab", "aab"}, false);
  EXPECT_EQ(longest.Append("xxab"), "xx");
  EXPECT_EQ(longest.matched_stop(), "ab");

  TextStream order({"aab", "b", "ab"}, false);
  EXPECT_EQ(order.Append("xaab"), "x");
  EXPECT_EQ(order.matched_stop(), "aab");
}

TEST(TextStreamTest, StopAcrossTokensAndInsideOne) {
  TextStream stream({"\n\nUser:"}, false);
  EXPECT_EQ(Feed(&stream, {"Hi", ".\n", "\nUs", "er", ": what"}), "Hi.");
  EXPECT_EQ(stream.matched_stop(), "\n\nUser:");
}

TEST(TextStreamTest, StopIsMatchedOnBytes) {
  // The stop ends an unfinished character: what is before it is final.
  TextStream broken({"b"}, false);
  EXPECT_EQ(broken.Append("a\xF0\x9F"), "a");
  EXPECT_EQ(broken.Append("b"), kReplacement);
  EXPECT_EQ(broken.matched_stop(), "b");
  // A stop character split into byte tokens.
  TextStream split({"\xE2\x82\xAC"}, false);
  EXPECT_EQ(Feed(&split, {"1", "\xE2", "\x82", "\xAC", "2"}), "1");
  EXPECT_EQ(split.matched_stop(), "\xE2\x82\xAC");
  // A character that shares its first bytes with the stop.
  TextStream shared({"\xE2\x82\xAC"}, false);
  EXPECT_EQ(Feed(&shared, {"\xE2", "\x82", "\xAD"}), "\xE2\x82\xAD");
  // A stop string of bytes that are no text.
  TextStream bytes({std::string("\xFF\xFE")}, false);
  EXPECT_EQ(Feed(&bytes, {"x\xFF", "\xFE"}), "x");
  EXPECT_EQ(bytes.matched_stop(), "\xFF\xFE");
}

TEST(TextStreamTest, FlushGivesWhatIsHeld) {
  TextStream stream({"stop!"}, false);
  EXPECT_EQ(stream.Append("\xE2\x82"), "");
  EXPECT_EQ(stream.Append("sto"), "");
  EXPECT_EQ(stream.Flush(), absl::StrCat(kReplacement, "sto"));
  EXPECT_EQ(stream.Flush(), "");
}

TEST(TextStreamTest, StripsOneLeadingSpaceOnce) {
  TextStream stream({}, true);
  EXPECT_EQ(Feed(&stream, {"", "  two", " three"}), " two three");
  TextStream none({}, true);
  EXPECT_EQ(Feed(&none, {"word", " next"}), "word next");
  TextStream kept({}, false);
  EXPECT_EQ(Feed(&kept, {" word"}), " word");
}

TEST(TextStreamTest, StripComesBeforeStopMatching) {
  TextStream stream({" a"}, true);
  EXPECT_EQ(Feed(&stream, {" a", " a"}), "a");
  EXPECT_EQ(stream.matched_stop(), " a");
}

TEST(TextStreamTest, PassesOverMatchesThatMayNotStopYet) {
  TextStream stream({"ab"}, false);
  EXPECT_EQ(stream.Append("xab", false), "xab");
  EXPECT_FALSE(stream.matched_stop().has_value());
  EXPECT_EQ(stream.Append("a", false), "");
  // Began before, ends now: counts.
  EXPECT_EQ(stream.Append("b", true), "");
  EXPECT_EQ(stream.matched_stop(), "ab");
  // A passed-over match may still be the start of a longer one.
  TextStream overlap({"aa"}, false);
  EXPECT_EQ(overlap.Append("aa", false), "a");
  EXPECT_EQ(overlap.Append("a", true), "");
  EXPECT_EQ(overlap.matched_stop(), "aa");
}

// What the stream must give: the obvious search over all bytes at once.
struct Expected {
  std::string text;
  std::optional<std::string> stop;
};

Expected SearchAll(const std::string& bytes, const std::vector<std::string>& stops) {
  size_t best_end = std::string::npos;
  std::optional<std::string> best;
  for (const std::string& stop : stops) {
    const size_t at = bytes.find(stop);
    if (at == std::string::npos) continue;
    const size_t end = at + stop.size();
    if (end < best_end || (end == best_end && stop.size() > best->size())) {
      best_end = end;
      best = stop;
    }
  }
  if (!best.has_value()) return {DecodeAll(bytes), std::nullopt};
  return {DecodeAll(bytes.substr(0, best_end - best->size())), best};
}

class RandomText {
 public:
  explicit RandomText(uint32_t seed) : random_(seed) {}

  int Pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }

  // Few letters, so that stops and their prefixes abound; whole, cut and broken characters.
  std::string Piece() {
    static const std::string kParts[] = {
        "a",    "b",        "aab",  "\xC3\xA9",         "\xE2\x82\xAC", "\xE2\x82",
        "\x82", "\xF0\x9F", "\xFF", "\xF0\x9F\x98\x80", "\xC3",         "ab"};
    return kParts[static_cast<size_t>(Pick(0, 11))];
  }

  std::string Pieces(int low, int high) {
    std::string text;
    for (int n = Pick(low, high); n > 0; --n) text += Piece();
    return text;
  }

 private:
  std::mt19937 random_;
};

TEST(TextStreamTest, AnyCutGivesTheOneShotResult) {
  int stopped = 0;
  for (uint32_t seed = 1; seed <= 20000; ++seed) {
    SCOPED_TRACE(seed);
    RandomText random(seed);
    std::vector<std::string> stops;
    for (int n = random.Pick(0, 4); n > 0; --n) stops.push_back(random.Pieces(1, 4));
    const std::string bytes = random.Pieces(0, 20);
    const Expected expected = SearchAll(bytes, stops);

    TextStream stream(stops, false);
    std::string shown;
    for (size_t at = 0; at < bytes.size();) {
      const size_t length = static_cast<size_t>(random.Pick(0, 6));
      shown += stream.Append(std::string_view(bytes).substr(at, length));
      at += length;
      // Never a byte of a stop string: what is out is final.
      ASSERT_EQ(shown, expected.text.substr(0, shown.size()));
    }
    shown += stream.Flush();
    ASSERT_EQ(shown, expected.text);
    ASSERT_EQ(stream.matched_stop(), expected.stop);
    stopped += expected.stop.has_value() ? 1 : 0;
  }
  EXPECT_GT(stopped, 4000);
  EXPECT_LT(stopped, 16000);
}

TEST(StopMatcherTest, HoldsTheLongestLivePrefixOnly) {
  RandomText random(7);
  for (int round = 0; round < 3000; ++round) {
    const std::vector<std::string> stops = {random.Pieces(1, 5), random.Pieces(1, 5)};
    StopMatcher matcher(stops);
    std::string seen;
    for (int i = 0; i < 30 && !matcher.matched(); ++i) {
      const std::string piece = random.Piece();
      seen += piece;
      matcher.Append(piece, true);
      if (matcher.matched()) break;
      size_t live = 0;
      for (const std::string& stop : stops) {
        for (size_t n = 1; n < stop.size() && n <= seen.size(); ++n) {
          if (seen.compare(seen.size() - n, n, stop, 0, n) == 0) live = std::max(live, n);
        }
      }
      ASSERT_EQ(matcher.held_bytes(), live) << testing::PrintToString(seen);
    }
  }
}

TEST(StopMatcherTest, LongPeriodicPatternsStayLinear) {
  // 16 patterns of 256 bytes that never match, over 1 MB: quadratic work would take minutes.
  std::vector<std::string> stops;
  for (int i = 0; i < 16; ++i) stops.push_back(std::string(255, 'a') + static_cast<char>('b' + i));
  StopMatcher matcher(stops);
  const std::string text(1 << 20, 'a');
  EXPECT_EQ(matcher.Append(text, true).size(), text.size() - 255);
  EXPECT_EQ(matcher.Flush().size(), 255U);
}

}  // namespace
}  // namespace osdn
