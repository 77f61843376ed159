// Tokens in, text deltas out: never a split UTF-8 character, never a leaked piece of a stop string.
#ifndef OSDN_ENGINE_TEXT_STREAM_H_
#define OSDN_ENGINE_TEXT_STREAM_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace osdn {

class Tokenizer;

// Holds back at most 3 bytes of an unfinished UTF-8 character and the longest live prefix of a stop
// string; both are released as soon as they cannot be needed, or by Flush. Invalid bytes that can never
// become a character leave as U+FFFD. One per sequence, one thread.
class TextStream {
 public:
  // `strip_leading_space`: the text starts after a control token or at the very start, where
  // SentencePiece's dummy space is not text.
  TextStream(const Tokenizer* tokenizer, std::vector<std::string> stop_strings,
             bool strip_leading_space);

  // Text that may be shown now. After a stop string matched, nothing more comes and matched_stop()
  // names it; the stop string and what follows it are cut.
  std::string Append(int32_t token);
  // What was held back (an unfinished stop prefix, an unfinished character as U+FFFD).
  std::string Flush();
  const std::optional<std::string>& matched_stop() const { return matched_stop_; }

 private:
  std::string TakeValidUtf8();
  std::string Emit(std::string text);

  const Tokenizer* tokenizer_;
  std::vector<std::string> stop_strings_;
  bool strip_leading_space_;
  std::string utf8_tail_;   // bytes not yet known to be whole characters
  std::string stop_tail_;   // text that may be the start of a stop string
  std::optional<std::string> matched_stop_;
};

}  // namespace osdn

#endif  // OSDN_ENGINE_TEXT_STREAM_H_
