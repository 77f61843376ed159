#include "engine/stop_matcher.h"

#include <algorithm>
#include <utility>

namespace osdn {
namespace {

std::vector<uint32_t> Borders(std::string_view text) {
  std::vector<uint32_t> border(text.size() + 1, 0);
  uint32_t length = 0;
  for (size_t i = 1; i < text.size(); ++i) {
    while (length > 0 && text[i] != text[length]) length = border[length];
    if (text[i] == text[length]) ++length;
    border[i + 1] = length;
  }
  return border;
}

}  // namespace

StopMatcher::StopMatcher(std::vector<std::string> patterns) {
  patterns_.reserve(patterns.size());
  for (std::string& text : patterns) {
    std::vector<uint32_t> border = Borders(text);
    patterns_.push_back({std::move(text), std::move(border)});
  }
}

void StopMatcher::Step(Pattern* pattern, char byte) {
  while (pattern->length > 0 && pattern->text[pattern->length] != byte) {
    pattern->length = pattern->border[pattern->length];
  }
  if (pattern->text[pattern->length] == byte) ++pattern->length;
}

std::string StopMatcher::Append(std::string_view bytes, bool may_match) {
  std::string out;
  if (matched()) return out;
  if (patterns_.empty()) return std::string(bytes);
  for (const char byte : bytes) {
    held_.push_back(byte);
    size_t live = 0;
    for (size_t i = 0; i < patterns_.size(); ++i) {
      Pattern& pattern = patterns_[i];
      Step(&pattern, byte);
      if (pattern.length == pattern.text.size()) {
        if (may_match && (!matched() || pattern.text.size() > matched_pattern().size())) {
          matched_ = static_cast<ptrdiff_t>(i);
        }
        pattern.length = pattern.border[pattern.length];
      }
      live = std::max<size_t>(live, pattern.length);
    }
    const size_t kept = matched() ? matched_pattern().size() : live;
    out.append(held_, 0, held_.size() - kept);
    held_.erase(0, held_.size() - kept);
    if (matched()) {
      held_.clear();
      break;
    }
  }
  return out;
}

std::string StopMatcher::Flush() { return std::exchange(held_, std::string()); }

}  // namespace osdn
