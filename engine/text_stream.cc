#include "engine/text_stream.h"

#include <algorithm>
#include <utility>

namespace osdn {

TextStream::TextStream(std::vector<std::string> stop_strings, bool strip_leading_space)
    : stops_(std::move(stop_strings)), strip_leading_space_(strip_leading_space) {}

std::string TextStream::Append(std::string_view token_bytes, bool may_stop) {
  if (strip_leading_space_ && !token_bytes.empty()) {
    if (token_bytes.front() == ' ') token_bytes.remove_prefix(1);
    strip_leading_space_ = false;
  }
  std::string text = Decode(stops_.Append(token_bytes, may_stop));
  // Nothing follows a stop string that could finish a character.
  if (stops_.matched()) text += decoder_.Flush();
  return text;
}

std::string TextStream::Flush() {
  std::string text = Decode(stops_.Flush());
  text += decoder_.Flush();
  return text;
}

std::string TextStream::Decode(std::string_view bytes) {
  const size_t known = std::min(shown_, bytes.size());
  shown_ -= known;
  decoder_.Append(bytes.substr(0, known));
  return decoder_.Append(bytes.substr(known));
}

TextTail TextStream::tail() const {
  return {.stop_held = std::string(stops_.held()),
          .utf8_held = std::string(decoder_.held()),
          .strip_leading_space = strip_leading_space_};
}

void TextStream::Resume(const TextTail& tail) {
  strip_leading_space_ = tail.strip_leading_space;
  decoder_.Append(tail.utf8_held);
  decoder_.Append(stops_.Append(tail.stop_held, /*may_match=*/false));
  shown_ = stops_.held_bytes();
}

std::optional<std::string> TextStream::matched_stop() const {
  if (!stops_.matched()) return std::nullopt;
  return stops_.matched_pattern();
}

}  // namespace osdn
