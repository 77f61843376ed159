// Finds stop strings in a stream of bytes and holds back only what may still become one.
#ifndef OSDN_ENGINE_STOP_MATCHER_H_
#define OSDN_ENGINE_STOP_MATCHER_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace osdn {

// One Knuth-Morris-Pratt automaton a pattern, stepped together: a byte costs O(patterns),
// amortised, and the tables are a few KiB where a full Aho-Corasick table would be megabytes a
// request. One thread.
class StopMatcher {
 public:
  // No pattern may be empty.
  explicit StopMatcher(std::vector<std::string> patterns);

  // Bytes that can be in no match any more, in order. Of several matches the one that ends first
  // wins, then the longest. After a match this returns what stood before it, and nothing ever
  // again. With `may_match` false, matches that end within `bytes` are passed over.
  std::string Append(std::string_view bytes, bool may_match);
  // What is held back: no match can come any more.
  std::string Flush();

  bool matched() const { return matched_ >= 0; }
  const std::string& matched_pattern() const {
    return patterns_[static_cast<size_t>(matched_)].text;
  }
  size_t held_bytes() const { return held_.size(); }
  std::string_view held() const { return held_; }

 private:
  struct Pattern {
    std::string text;
    std::vector<uint32_t> border;  // [n]: longest proper prefix of text[0, n) that is its suffix
    uint32_t length = 0;           // bytes of `text` that the stream ends with now
  };

  static void Step(Pattern* pattern, char byte);

  std::vector<Pattern> patterns_;
  std::string held_;  // the stream's last bytes, as long as the longest live prefix
  ptrdiff_t matched_ = -1;
};

}  // namespace osdn

#endif  // OSDN_ENGINE_STOP_MATCHER_H_
