// What the engine remembers of prompts it has read: states by token prefix.
//
// A radix tree over token ids with a state image at some of its nodes. Which positions get an image
// is the caller's business (engine/prefix_reuse.h); this is the container, its budget and its
// choice of victims. Used by the engine's loop thread only.
#ifndef OSDN_ENGINE_PREFIX_CACHE_H_
#define OSDN_ENGINE_PREFIX_CACHE_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "engine/state_image.h"

namespace osdn {

// Bits. An image is given out only where reading the whole prompt would have come to the very same
// bits: at a multiple of kernels::kChunk (prompts are always cut there), or at the exact end of the
// same prompt, with its logits.
//
// Budget. Images, tokens and nodes count. Over it, the image of the least worth goes first
// (GreedyDual): worth is the clock at its last use plus the tokens that would have to be read again
// from the nearest image above it; the clock follows the worth of what is evicted, so that what is
// not used ages.
class PrefixCache {
 public:
  // 0 bytes: off, nothing is kept.
  explicit PrefixCache(size_t max_bytes);
  ~PrefixCache();

  PrefixCache(const PrefixCache&) = delete;
  PrefixCache& operator=(const PrefixCache&) = delete;

  struct Match {
    std::shared_ptr<const StateImage> image;  // the deepest that may be used, or null
    int64_t common = 0;                       // tokens the tree shares with the prompt
  };
  // Prompts under different salts never meet.
  Match Find(const std::string& salt, absl::Span<const int32_t> prompt) const;
  // Whether an image that serves `prefix` as well as one with (or without) logits is there.
  bool Has(const std::string& salt, absl::Span<const int32_t> prefix, bool with_logits) const;
  // Marks the image at exactly `prefix`, if any, as used now.
  void Touch(const std::string& salt, absl::Span<const int32_t> prefix);
  // `image->position` is prefix.size(), which is not 0. An image with logits replaces one without.
  void Insert(const std::string& salt, absl::Span<const int32_t> prefix,
              std::shared_ptr<const StateImage> image);

  // Changes whenever Find could answer differently.
  uint64_t version() const { return version_; }
  size_t max_bytes() const { return max_bytes_; }
  size_t bytes() const { return bytes_; }
  int64_t images() const { return static_cast<int64_t>(by_worth_.size()); }
  int64_t evictions() const { return evictions_; }

 private:
  struct Node;
  using Worth = std::pair<double, uint64_t>;  // the number makes it unique: older first

  const Node* Root(const std::string& salt) const;
  // The node that ends exactly after `prefix`, or null.
  Node* FindNode(const std::string& salt, absl::Span<const int32_t> prefix) const;
  Node* MakeNode(const std::string& salt, absl::Span<const int32_t> prefix);
  // Cuts `node`'s edge after `tokens`; the new upper part is returned.
  Node* Split(Node* node, size_t tokens);
  void SetImage(Node* node, std::shared_ptr<const StateImage> image);
  void DropImage(Node* node);
  void Use(Node* node);
  void Prune(Node* node);
  void EvictToBudget();

  const size_t max_bytes_;
  std::map<std::string, std::unique_ptr<Node>> roots_;  // by salt
  std::map<Worth, Node*> by_worth_;                     // every node with an image
  double clock_ = 0;
  uint64_t uses_ = 0;
  uint64_t version_ = 0;
  size_t bytes_ = 0;
  int64_t evictions_ = 0;
};

}  // namespace osdn

#endif  // OSDN_ENGINE_PREFIX_CACHE_H_
