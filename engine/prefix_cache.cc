#include "engine/prefix_cache.h"

#include <algorithm>

#include "kernels/include/tensor.h"

namespace osdn {

namespace {

// An entry of a map: links and colour of the tree's node, key and value, the allocator's own.
constexpr size_t kEntryBytes = 80;

}  // namespace

struct PrefixCache::Node {
  Node* parent = nullptr;                             // null: a root
  const std::string* salt = nullptr;                  // of a root: its key
  std::vector<int32_t> edge;                          // tokens from the parent's end to this node's
  int64_t end = 0;                                    // tokens from the root
  std::map<int32_t, std::unique_ptr<Node>> children;  // by the first token of their edge
  std::shared_ptr<const StateImage> image;
  Worth worth;  // key in by_worth_ while there is an image

  // With its place among the parent's children; edges are never reserved for more than they have.
  size_t own_bytes() const {
    return sizeof(Node) + kEntryBytes + edge.capacity() * sizeof(int32_t);
  }
};

namespace {

// With its place in the order of worth.
size_t ImageBytes(const StateImage& image) { return image.total_bytes() + kEntryBytes; }

size_t CommonPrefix(absl::Span<const int32_t> a, absl::Span<const int32_t> b) {
  const size_t length = std::min(a.size(), b.size());
  const auto ends = std::mismatch(a.begin(), a.begin() + static_cast<ptrdiff_t>(length), b.begin());
  return static_cast<size_t>(ends.first - a.begin());
}

}  // namespace

PrefixCache::PrefixCache(size_t max_bytes) : max_bytes_(max_bytes) {}

// Not by recursion: a path has a node for every image of a prompt that may be very long.
PrefixCache::~PrefixCache() {
  std::vector<std::unique_ptr<Node>> doomed;
  for (auto& [salt, root] : roots_) doomed.push_back(std::move(root));
  while (!doomed.empty()) {
    const std::unique_ptr<Node> node = std::move(doomed.back());
    doomed.pop_back();
    for (auto& [token, child] : node->children) doomed.push_back(std::move(child));
  }
}

const PrefixCache::Node* PrefixCache::Root(const std::string& salt) const {
  const auto it = roots_.find(salt);
  return it == roots_.end() ? nullptr : it->second.get();
}

PrefixCache::Match PrefixCache::Find(const std::string& salt,
                                     absl::Span<const int32_t> prompt) const {
  Match match;
  const auto size = static_cast<int64_t>(prompt.size());
  for (const Node* node = Root(salt); node != nullptr;) {
    const bool at_end = node->end == size;
    if (node->image != nullptr &&
        (at_end ? !node->image->logits.empty() : node->end % kernels::kChunk == 0)) {
      match.image = node->image;
    }
    if (at_end) break;
    const auto rest = prompt.subspan(static_cast<size_t>(node->end));
    const auto child = node->children.find(rest.front());
    if (child == node->children.end()) break;
    const size_t common = CommonPrefix(child->second->edge, rest);
    match.common += static_cast<int64_t>(common);
    node = common == child->second->edge.size() ? child->second.get() : nullptr;
  }
  return match;
}

PrefixCache::Node* PrefixCache::FindNode(const std::string& salt,
                                         absl::Span<const int32_t> prefix) const {
  const auto root = roots_.find(salt);
  if (root == roots_.end()) return nullptr;
  Node* node = root->second.get();
  while (node->end < static_cast<int64_t>(prefix.size())) {
    const auto rest = prefix.subspan(static_cast<size_t>(node->end));
    const auto child = node->children.find(rest.front());
    if (child == node->children.end()) return nullptr;
    const std::vector<int32_t>& edge = child->second->edge;
    if (CommonPrefix(edge, rest) != edge.size()) return nullptr;
    node = child->second.get();
  }
  return node;
}

bool PrefixCache::Has(const std::string& salt, absl::Span<const int32_t> prefix,
                      bool with_logits) const {
  const Node* node = FindNode(salt, prefix);
  return node != nullptr && node->image != nullptr &&
         (!with_logits || !node->image->logits.empty());
}

void PrefixCache::Touch(const std::string& salt, absl::Span<const int32_t> prefix) {
  Node* node = FindNode(salt, prefix);
  if (node != nullptr && node->image != nullptr) Use(node);
}

void PrefixCache::Insert(const std::string& salt, absl::Span<const int32_t> prefix,
                         std::shared_ptr<const StateImage> image) {
  // What alone is over the budget would only push everything else out.
  const size_t least = ImageBytes(*image) + prefix.size() * sizeof(int32_t) + sizeof(Node);
  if (least > max_bytes_) return;
  Node* node = MakeNode(salt, prefix);
  if (node->image != nullptr && (image->logits.empty() || !node->image->logits.empty())) {
    return Use(node);
  }
  SetImage(node, std::move(image));
  EvictToBudget();
}

PrefixCache::Node* PrefixCache::MakeNode(const std::string& salt,
                                         absl::Span<const int32_t> prefix) {
  const auto [root, is_new] = roots_.try_emplace(salt);
  if (is_new) {
    root->second = std::make_unique<Node>();
    root->second->salt = &root->first;
    bytes_ += root->second->own_bytes() + salt.size();
  }
  Node* node = root->second.get();
  while (node->end < static_cast<int64_t>(prefix.size())) {
    const auto rest = prefix.subspan(static_cast<size_t>(node->end));
    const auto child = node->children.find(rest.front());
    if (child == node->children.end()) {
      auto leaf = std::make_unique<Node>();
      leaf->parent = node;
      leaf->edge.assign(rest.begin(), rest.end());
      leaf->end = static_cast<int64_t>(prefix.size());
      bytes_ += leaf->own_bytes();
      Node* made = leaf.get();
      node->children.emplace(rest.front(), std::move(leaf));
      return made;
    }
    const size_t common = CommonPrefix(child->second->edge, rest);
    node = common == child->second->edge.size() ? child->second.get()
                                                : Split(child->second.get(), common);
  }
  return node;
}

PrefixCache::Node* PrefixCache::Split(Node* node, size_t tokens) {
  Node* parent = node->parent;
  std::unique_ptr<Node>& place = parent->children.at(node->edge.front());
  auto upper = std::make_unique<Node>();
  bytes_ -= node->own_bytes();
  const auto cut = node->edge.begin() + static_cast<ptrdiff_t>(tokens);
  upper->parent = parent;
  upper->edge = std::vector<int32_t>(node->edge.begin(), cut);
  upper->end = parent->end + static_cast<int64_t>(tokens);
  // A vector that only lost elements would keep their memory.
  node->edge = std::vector<int32_t>(cut, node->edge.end());
  node->parent = upper.get();
  upper->children.emplace(node->edge.front(), std::move(place));
  bytes_ += upper->own_bytes() + node->own_bytes();
  place = std::move(upper);
  return place.get();
}

void PrefixCache::SetImage(Node* node, std::shared_ptr<const StateImage> image) {
  if (node->image != nullptr) DropImage(node);
  bytes_ += ImageBytes(*image);
  node->image = std::move(image);
  ++version_;
  node->worth = {clock_, uses_++};
  by_worth_.emplace(node->worth, node);
  Use(node);
}

void PrefixCache::DropImage(Node* node) {
  by_worth_.erase(node->worth);
  bytes_ -= ImageBytes(*node->image);
  node->image = nullptr;
  ++version_;
}

void PrefixCache::Use(Node* node) {
  const Node* above = node->parent;
  while (above->parent != nullptr && above->image == nullptr) above = above->parent;
  by_worth_.erase(node->worth);
  node->worth = {clock_ + static_cast<double>(node->end - above->end), uses_++};
  by_worth_.emplace(node->worth, node);
}

// Takes away what holds nothing any more, from `node` upwards.
void PrefixCache::Prune(Node* node) {
  while (node->image == nullptr && node->children.empty()) {
    bytes_ -= node->own_bytes();
    if (node->parent == nullptr) {
      bytes_ -= node->salt->size();
      roots_.erase(roots_.find(*node->salt));
      return;
    }
    Node* parent = node->parent;
    const int32_t first = node->edge.front();
    parent->children.erase(first);
    node = parent;
  }
}

void PrefixCache::EvictToBudget() {
  while (bytes_ > max_bytes_ && !by_worth_.empty()) {
    const auto [worth, node] = *by_worth_.begin();
    clock_ = worth.first;
    DropImage(node);
    ++evictions_;
    Prune(node);
  }
}

}  // namespace osdn
