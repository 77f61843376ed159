// Bytes in, whole UTF-8 characters out.
#ifndef OSDN_ENGINE_UTF8_DECODER_H_
#define OSDN_ENGINE_UTF8_DECODER_H_

#include <cstddef>
#include <string>
#include <string_view>

namespace osdn {

// Incremental decoder. However the bytes are cut, the concatenated results are what Python's
// bytes.decode('utf-8', errors='replace') gives for all of them: each maximal part of an ill-formed
// sequence becomes one U+FFFD. Holds at most the 3 bytes of an unfinished character. One thread.
class Utf8Decoder {
 public:
  // Whole characters that are certain now.
  std::string Append(std::string_view bytes);
  // The unfinished character, if any, as U+FFFD.
  std::string Flush();
  size_t held_bytes() const { return held_.size(); }
  std::string_view held() const { return held_; }

 private:
  std::string held_;  // a proper prefix of a well-formed character
};

}  // namespace osdn

#endif  // OSDN_ENGINE_UTF8_DECODER_H_
