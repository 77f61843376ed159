#include "engine/utf8_decoder.h"

#include <cstdint>

namespace osdn {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

// Length of the character that `lead` starts, 0 if it starts none.
size_t CharacterLength(uint8_t lead) {
  if (lead < 0x80) return 1;
  if (lead < 0xC2) return 0;  // continuation bytes and overlong two-byte forms
  if (lead < 0xE0) return 2;
  if (lead < 0xF0) return 3;
  if (lead < 0xF5) return 4;
  return 0;
}

// Whether `byte` may follow as second byte: excludes overlong forms, surrogates and code points
// above U+10FFFF (Unicode, table 3-7).
bool IsSecondByte(uint8_t lead, uint8_t byte) {
  switch (lead) {
    case 0xE0:
      return byte >= 0xA0 && byte <= 0xBF;
    case 0xED:
      return byte >= 0x80 && byte <= 0x9F;
    case 0xF0:
      return byte >= 0x90 && byte <= 0xBF;
    case 0xF4:
      return byte >= 0x80 && byte <= 0x8F;
    default:
      return byte >= 0x80 && byte <= 0xBF;
  }
}

bool Continues(std::string_view held, uint8_t byte) {
  return held.size() == 1 ? IsSecondByte(static_cast<uint8_t>(held[0]), byte)
                          : byte >= 0x80 && byte <= 0xBF;
}

}  // namespace

std::string Utf8Decoder::Append(std::string_view bytes) {
  std::string out;
  out.reserve(held_.size() + bytes.size());
  for (const char c : bytes) {
    const auto byte = static_cast<uint8_t>(c);
    if (!held_.empty()) {
      if (Continues(held_, byte)) {
        held_.push_back(c);
        if (held_.size() == CharacterLength(static_cast<uint8_t>(held_[0]))) {
          out += held_;
          held_.clear();
        }
        continue;
      }
      out += kReplacement;
      held_.clear();
    }
    const size_t length = CharacterLength(byte);
    if (length == 1) {
      out.push_back(c);
    } else if (length == 0) {
      out += kReplacement;
    } else {
      held_.push_back(c);
    }
  }
  return out;
}

std::string Utf8Decoder::Flush() {
  std::string out(held_.empty() ? std::string_view() : kReplacement);
  held_.clear();
  return out;
}

}  // namespace osdn
