// Which states of a prompt are kept, and which prompts wait for another's: the policy around
// PrefixCache. Used by the engine's loop thread only.
#ifndef OSDN_ENGINE_PREFIX_REUSE_H_
#define OSDN_ENGINE_PREFIX_REUSE_H_

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "engine/engine_stats.h"
#include "engine/owned_slots.h"
#include "engine/prefix_cache.h"
#include "engine/state_image.h"

namespace osdn {

class Sequence;

// What a request wants of the cache.
struct PrefixCacheParams {
  std::string salt{};              // prompts under different salts share nothing
  bool skip = false;               // neither read nor written
  std::vector<int64_t> borders{};  // positions worth a state, e.g. ends of turns; ascending
};

// A sequence's own part: what was found, where its prefill must pause for a capture.
struct PrefixPlan {
  std::shared_ptr<const StateImage> image;  // to start from
  int64_t common = 0;                       // tokens of the prompt that the cache has met
  bool looked = false;
  uint64_t version = 0;         // of the cache, when it looked
  uint64_t leader = 0;          // the sequence it waits for, or 0
  int64_t leader_end = 0;       // until that one has read so much
  std::vector<int64_t> cuts{};  // ascending, all beyond the position it starts from
  // The best class of those who wait for it now (engine/scheduler.h).
  static constexpr int64_t kNobody = std::numeric_limits<int64_t>::max();
  int64_t wanted_class = kNobody;
};

// States are taken at the end of a prompt (with its logits), at the last chunk border before it,
// every `interval` tokens, at the chunk borders before the request's own borders, and where the
// prompt leaves a path that the cache knows (the branch point). All but the end are multiples of
// kernels::kChunk, so that a hit changes no bit.
//
// Single flight: a prompt that shares at least a chunk more with one being read now than with the
// cache waits until that one has got so far.
class PrefixReuse {
 public:
  struct Options {
    size_t max_bytes = 0;    // 0: off
    int64_t interval = 512;  // tokens; a multiple of kernels::kChunk
  };

  explicit PrefixReuse(const Options& options) : options_(options), cache_(options.max_bytes) {}

  // Whether the waiting `sequence` should start now; finds what it can start from. `ahead` are the
  // sequences that read their prompts now or will before it.
  bool MayStart(Sequence* sequence, absl::Span<Sequence* const> ahead);
  // `sequence` has its slot: counts it.
  void Start(Sequence* sequence);
  // Captures the slot if the sequence stands at one of its cuts. `logits` are those after its last
  // token; empty before the end of the prompt.
  absl::Status Capture(Sequence* sequence, absl::Span<const float> logits, OwnedSlots* slots);

  PrefixCacheStats stats() const;

 private:
  void Look(Sequence* sequence) const;
  bool Uses(const Sequence& sequence) const;

  const Options options_;
  PrefixCache cache_;
  PrefixCacheStats counters_;
};

}  // namespace osdn

#endif  // OSDN_ENGINE_PREFIX_REUSE_H_
