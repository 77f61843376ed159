// Which recorded step serves which shape, bounded in number: the least recently used goes first.
// Pure logic: tested without a GPU.
#ifndef OSDN_KERNELS_CUDA_GRAPH_CACHE_H_
#define OSDN_KERNELS_CUDA_GRAPH_CACHE_H_

#include <cstddef>
#include <cstdint>
#include <list>
#include <utility>

namespace osdn::kernels::cuda {

struct GraphKey {
  const void* key = nullptr;    // StepInputs::key
  const void* state = nullptr;  // StepInputs::state
  int64_t rows = 0;             // after padding; all are decode rows
  int64_t logit_rows = 0;

  bool operator==(const GraphKey& other) const = default;
};

// Graph frees itself and is default-constructible as "none". Searched from the front: some tens.
template <class Graph>
class GraphCache {
 public:
  struct Entry {
    GraphKey key;
    // Times the shape was asked for before: the first runs plainly, which also makes what must not
    // be made while a graph is recorded.
    int64_t uses = 0;
    bool refused = false;  // recording failed: not tried again
    Graph graph = Graph();
  };

  explicit GraphCache(size_t capacity) : capacity_(capacity) {}

  // The entry for `key`, made if need be, with `uses` counted. Valid until the next call.
  Entry* Use(const GraphKey& key) {
    for (auto it = entries_.begin(); it != entries_.end(); ++it) {
      if (!(it->key == key)) continue;
      entries_.splice(entries_.begin(), entries_, it);
      ++entries_.front().uses;
      return &entries_.front();
    }
    if (entries_.size() >= capacity_) entries_.pop_back();
    entries_.emplace_front();
    entries_.front().key = key;
    return &entries_.front();
  }

  void Clear() { entries_.clear(); }
  size_t size() const { return entries_.size(); }

 private:
  size_t capacity_;
  std::list<Entry> entries_;
};

}  // namespace osdn::kernels::cuda

#endif  // OSDN_KERNELS_CUDA_GRAPH_CACHE_H_
