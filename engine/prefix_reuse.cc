#include "engine/prefix_reuse.h"

#include <algorithm>
#include <utility>

#include "engine/row_math.h"
#include "engine/sequence.h"
#include "kernels/include/tensor.h"

namespace osdn {
namespace {

using kernels::kChunk;

int64_t ChunkFloor(int64_t position) { return position / kChunk * kChunk; }

// The longest prefix of `prompt` whose state reading `leader` comes by.
int64_t SharedEnd(absl::Span<const int32_t> prompt, absl::Span<const int32_t> leader) {
  const size_t length = std::min(prompt.size(), leader.size());
  const auto ends = std::mismatch(prompt.begin(), prompt.begin() + static_cast<ptrdiff_t>(length),
                                  leader.begin());
  const auto common = static_cast<size_t>(ends.first - prompt.begin());
  if (common == prompt.size() && common == leader.size()) return static_cast<int64_t>(common);
  // One token at least is left to read, or there would be no logits.
  return ChunkFloor(static_cast<int64_t>(std::min(common, prompt.size() - 1)));
}

}  // namespace

bool PrefixReuse::Uses(const Sequence& sequence) const {
  return options_.max_bytes > 0 && sequence.cacheable();
}

void PrefixReuse::Look(Sequence* sequence) const {
  PrefixPlan& plan = sequence->prefix();
  if (plan.looked && plan.version == cache_.version()) return;
  PrefixCache::Match match = cache_.Find(sequence->cache_params().salt, sequence->prompt());
  plan.image = std::move(match.image);
  plan.common = match.common;
  plan.looked = true;
  plan.version = cache_.version();

  const int64_t start = plan.image != nullptr ? plan.image->position : 0;
  const int64_t size = sequence->prompt_tokens();
  std::vector<int64_t> cuts = {size, ChunkFloor(size), ChunkFloor(plan.common)};
  for (const int64_t border : sequence->cache_params().borders) cuts.push_back(ChunkFloor(border));
  for (int64_t at = options_.interval; at < size; at += options_.interval) cuts.push_back(at);
  plan.cuts.clear();
  for (const int64_t cut : cuts) {
    if (cut > start && cut <= size) sequence->AddCut(cut);
  }
}

bool PrefixReuse::MayStart(Sequence* sequence, absl::Span<Sequence* const> ahead) {
  if (!Uses(*sequence)) return true;
  Look(sequence);
  PrefixPlan& plan = sequence->prefix();
  const int64_t have = plan.image != nullptr ? plan.image->position : 0;
  for (Sequence* leader : ahead) {
    if (plan.leader != 0 && leader->id() != plan.leader) continue;
    if (!Uses(*leader) || leader->prefilled() || leader->stalled() ||
        leader->cache_params().salt != sequence->cache_params().salt) {
      continue;
    }
    const bool follows = plan.leader != 0;
    const int64_t end = follows ? plan.leader_end : SharedEnd(sequence->prompt(), leader->prompt());
    if (leader->position() >= end || (!follows && end < have + kChunk)) continue;
    plan.leader = leader->id();
    plan.leader_end = end;
    leader->AddCut(end);
    return false;
  }
  if (plan.leader == 0) return true;
  // It is gone, stalled or there: whoever else may lead is looked for in the next round.
  plan.leader = 0;
  return MayStart(sequence, ahead);
}

void PrefixReuse::Start(Sequence* sequence) {
  if (!Uses(*sequence)) return;
  ++counters_.queries;
  PrefixPlan& plan = sequence->prefix();
  const absl::Span<const int32_t> prompt = sequence->prompt();
  if (plan.image == nullptr) return;
  const int64_t start = plan.image->position;
  ++counters_.hits;
  counters_.cached_tokens += start;
  cache_.Touch(sequence->cache_params().salt, prompt.first(static_cast<size_t>(start)));
}

absl::Status PrefixReuse::Capture(Sequence* sequence, absl::Span<const float> logits,
                                  OwnedSlots* slots) {
  PrefixPlan& plan = sequence->prefix();
  const int64_t position = sequence->position();
  const auto next = std::upper_bound(plan.cuts.begin(), plan.cuts.end(), position);
  const bool wanted = next != plan.cuts.begin() && *(next - 1) == position;
  plan.cuts.erase(plan.cuts.begin(), next);
  if (!wanted) return absl::OkStatus();
  const std::string& salt = sequence->cache_params().salt;
  const auto prefix = sequence->prompt().first(static_cast<size_t>(position));
  if (cache_.Has(salt, prefix, /*with_logits=*/!logits.empty())) {
    cache_.Touch(salt, prefix);
    return absl::OkStatus();
  }
  auto image = std::make_shared<StateImage>(slots->bytes());
  if (absl::Status s = slots->Save(sequence->slot_ref(), image->mutable_state()); !s.ok()) {
    return s;
  }
  // It would spoil every prompt that begins so.
  if (!row_math::AllFinite(image->floats())) {
    return absl::InternalError("the state is not finite");
  }
  image->position = position;
  image->logits.assign(logits.begin(), logits.end());
  cache_.Insert(salt, prefix, std::move(image));
  return absl::OkStatus();
}

PrefixCacheStats PrefixReuse::stats() const {
  PrefixCacheStats stats = counters_;
  stats.bytes = static_cast<int64_t>(cache_.bytes());
  stats.images = cache_.images();
  stats.evictions = cache_.evictions();
  return stats;
}

}  // namespace osdn
