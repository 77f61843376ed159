// The plainest fast read: one sequential stream, the widest loads, enough sums to hide their adds.
#include "kernels/cpu/ceilings.h"
#include "kernels/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/ceilings_read.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// After foreach_target.h
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace osdn::kernels::cpu {
namespace HWY_NAMESPACE {

uint64_t SumWordsOf(const uint64_t* words, int64_t count, int64_t ahead) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::ScalableTag<uint64_t> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto s0 = hn::Zero(d);
  auto s1 = hn::Zero(d);
  auto s2 = hn::Zero(d);
  auto s3 = hn::Zero(d);
  const auto line = static_cast<int64_t>(64 / sizeof(uint64_t));
  for (int64_t i = 0; i < count; i += 4 * lanes) {
    // Prefetching beyond the end is harmless.
    for (int64_t at = 0; ahead > 0 && at < 4 * lanes; at += line) {
      __builtin_prefetch(words + i + ahead + at);
    }
    s0 = hn::Add(s0, hn::Load(d, words + i));
    s1 = hn::Add(s1, hn::Load(d, words + i + lanes));
    s2 = hn::Add(s2, hn::Load(d, words + i + 2 * lanes));
    s3 = hn::Add(s3, hn::Load(d, words + i + 3 * lanes));
  }
  HWY_ALIGN uint64_t sums[HWY_MAX_BYTES / sizeof(uint64_t)] = {};
  hn::Store(hn::Add(hn::Add(s0, s1), hn::Add(s2, s3)), d, sums);
  uint64_t sum = 0;
  for (int64_t i = 0; i < lanes; ++i) sum += sums[i];
  return sum;
}

}  // namespace HWY_NAMESPACE
}  // namespace osdn::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace osdn::kernels::cpu {

HWY_EXPORT(SumWordsOf);

uint64_t internal::SumWords(const uint64_t* words, int64_t count, int64_t ahead) {
  return HWY_DYNAMIC_DISPATCH(SumWordsOf)(words, count, ahead);
}

}  // namespace osdn::kernels::cpu
#endif
