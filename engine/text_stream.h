// Token bytes in, text deltas out: never a split UTF-8 character, never a leaked piece of a stop
// string.
#ifndef OSDN_ENGINE_TEXT_STREAM_H_
#define OSDN_ENGINE_TEXT_STREAM_H_

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/stop_matcher.h"
#include "engine/utf8_decoder.h"

namespace osdn {

// What a stream holds back, so that another one can go on from there.
struct TextTail {
  std::string stop_held{};  // bytes that may be the beginning of a stop string
  std::string utf8_held{};  // of an unfinished character
  bool strip_leading_space = false;
};

// Holds back at most 3 bytes of an unfinished UTF-8 character and the longest live prefix of a stop
// string; both are released as soon as they cannot be needed, or by Flush. Stop strings are matched
// on bytes, before decoding; bytes that can never become a character leave as U+FFFD. Concatenated,
// the results are what decoding all bytes before the stop string at once gives. One per sequence,
// one thread.
class TextStream {
 public:
  // `strip_leading_space`: the text starts after a control token or at the very start, where
  // SentencePiece's dummy space is not text.
  TextStream(std::vector<std::string> stop_strings, bool strip_leading_space);

  // Text that may be shown now. `token_bytes` is Tokenizer::TokenBytes of the next token. After a
  // stop string matched, nothing more comes; the stop string and what follows it are cut. Stop
  // strings that end within `token_bytes` are passed over where `may_stop` is false.
  std::string Append(std::string_view token_bytes, bool may_stop = true);
  // What was held back: an unfinished stop prefix, an unfinished character (as U+FFFD).
  std::string Flush();
  std::optional<std::string> matched_stop() const;

  // Before Flush: what it would give out.
  TextTail tail() const;
  // Goes on where the stream that had this tail, and was then flushed, ended: what was flushed is
  // not given out again, but stop strings and characters that began in it are found. Before the
  // first Append.
  void Resume(const TextTail& tail);

 private:
  // Bytes that left the matcher, as text.
  std::string Decode(std::string_view bytes);

  StopMatcher stops_;
  Utf8Decoder decoder_;
  bool strip_leading_space_;
  size_t shown_ = 0;  // bytes to leave the matcher next that were given out before Resume
};

}  // namespace osdn

#endif  // OSDN_ENGINE_TEXT_STREAM_H_
