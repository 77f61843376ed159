#include "engine/text_stream.h"

#include <utility>

namespace osdn {

TextStream::TextStream(std::vector<std::string> stop_strings, bool strip_leading_space)
    : stops_(std::move(stop_strings)), strip_leading_space_(strip_leading_space) {}

std::string TextStream::Append(std::string_view token_bytes, bool may_stop) {
  if (strip_leading_space_ && !token_bytes.empty()) {
    if (token_bytes.front() == ' ') token_bytes.remove_prefix(1);
    strip_leading_space_ = false;
  }
  std::string text = decoder_.Append(stops_.Append(token_bytes, may_stop));
  // Nothing follows a stop string that could finish a character.
  if (stops_.matched()) text += decoder_.Flush();
  return text;
}

std::string TextStream::Flush() {
  std::string text = decoder_.Append(stops_.Flush());
  text += decoder_.Flush();
  return text;
}

std::optional<std::string> TextStream::matched_stop() const {
  if (!stops_.matched()) return std::nullopt;
  return stops_.matched_pattern();
}

}  // namespace osdn
