#include "engine/token_trie.h"

#include <algorithm>
#include <utility>

namespace osdn {

TokenTrie::TokenTrie(std::vector<std::string> token_bytes) : token_bytes_(std::move(token_bytes)) {
  std::vector<int32_t> order;
  for (size_t id = 0; id < token_bytes_.size(); ++id) {
    // Longer ones than a depth can be told of do not exist in practice; they are never allowed.
    if (!token_bytes_[id].empty() && token_bytes_[id].size() <= UINT16_MAX) {
      order.push_back(static_cast<int32_t>(id));
    }
  }
  std::stable_sort(order.begin(), order.end(),
                   [this](int32_t a, int32_t b) { return bytes(a) < bytes(b); });
  std::vector<uint32_t> open;  // from the top down to the node of the last token
  absl::string_view last;
  const auto close = [&](size_t depth) {
    while (open.size() > depth) {
      nodes_[open.back()].end = static_cast<uint32_t>(nodes_.size());
      open.pop_back();
    }
  };
  for (const int32_t id : order) {
    const absl::string_view text = bytes(id);
    size_t common = 0;
    while (common < std::min(last.size(), text.size()) && last[common] == text[common]) ++common;
    close(common);
    for (size_t i = common; i < text.size(); ++i) {
      open.push_back(static_cast<uint32_t>(nodes_.size()));
      nodes_.push_back({.token = static_cast<uint32_t>(tokens_.size()),
                        .depth = static_cast<uint16_t>(i + 1),
                        .byte = static_cast<uint8_t>(text[i])});
    }
    tokens_.push_back(id);
    max_depth_ = std::max(max_depth_, text.size());
    last = text;
  }
  close(0);
}

absl::string_view TokenTrie::bytes(int32_t token) const {
  if (token < 0 || static_cast<size_t>(token) >= token_bytes_.size()) return {};
  return token_bytes_[static_cast<size_t>(token)];
}

}  // namespace osdn
