// A vocabulary as one tree over bytes, for questions to all tokens at once.
#ifndef OSDN_ENGINE_TOKEN_TRIE_H_
#define OSDN_ENGINE_TOKEN_TRIE_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace osdn {

// Immutable. Tokens that add no bytes to the text are not in the tree.
class TokenTrie {
 public:
  struct Node {
    uint32_t end = 0;    // the first node behind all that is below this one
    uint32_t token = 0;  // where the tokens that end here begin; they end where the next node's do
    uint16_t depth = 0;  // 1 at the top
    uint8_t byte = 0;
  };

  // `token_bytes[id]` is what a token adds to the text.
  explicit TokenTrie(std::vector<std::string> token_bytes);

  absl::Span<const Node> nodes() const { return nodes_; }  // parents before children
  absl::Span<const int32_t> tokens(size_t node) const {
    const size_t end = node + 1 < nodes_.size() ? nodes_[node + 1].token : tokens_.size();
    return absl::MakeConstSpan(tokens_).subspan(nodes_[node].token, end - nodes_[node].token);
  }
  size_t max_depth() const { return max_depth_; }
  size_t vocab_size() const { return token_bytes_.size(); }
  // Empty for ids outside the vocabulary.
  absl::string_view bytes(int32_t token) const;

 private:
  std::vector<std::string> token_bytes_;
  std::vector<Node> nodes_;
  std::vector<int32_t> tokens_;
  size_t max_depth_ = 0;
};

}  // namespace osdn

#endif  // OSDN_ENGINE_TOKEN_TRIE_H_
