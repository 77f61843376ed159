// Vector helpers, compiled once for every Highway target (hence no ordinary include guard).
#if defined(OSDN_KERNELS_CPU_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OSDN_KERNELS_CPU_SIMD_INL_H_
#undef OSDN_KERNELS_CPU_SIMD_INL_H_
#else
#define OSDN_KERNELS_CPU_SIMD_INL_H_
#endif

#include <cstdint>

#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"
#include "kernels/cpu/sizes.h"
#include "kernels/include/tensor.h"

HWY_BEFORE_NAMESPACE();
namespace osdn::kernels::cpu {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::ScalableTag<float>;
using VF = hn::Vec<DF>;
// Lanes is a constant for every target we compile.
inline constexpr int64_t kLanes = HWY_LANES(float);
static_assert(kLineFloats % kLanes == 0);

HWY_INLINE VF LoadWide(const float* p) { return hn::LoadU(DF(), p); }
HWY_INLINE VF LoadWide(const hwy::bfloat16_t* p) {
  const hn::Rebind<hwy::bfloat16_t, DF> d;
  return hn::PromoteTo(DF(), hn::LoadU(d, p));
}
HWY_INLINE float WidenScalar(float x) { return x; }
HWY_INLINE float WidenScalar(hwy::bfloat16_t x) { return hwy::F32FromBF16(x); }

// out[i] = sum of the lanes of v_i. The order of additions is the same for each of the four, so a
// sum does not depend on its place or its neighbours.
HWY_INLINE void SumFour(VF v0, VF v1, VF v2, VF v3, float* HWY_RESTRICT out) {
#if HWY_TARGET == HWY_SCALAR
  out[0] = hn::GetLane(v0);
  out[1] = hn::GetLane(v1);
  out[2] = hn::GetLane(v2);
  out[3] = hn::GetLane(v3);
#else
  const DF d;
  const hn::Repartition<uint64_t, DF> d64;
  const VF v01 = hn::Add(hn::InterleaveLower(d, v0, v1), hn::InterleaveUpper(d, v0, v1));
  const VF v23 = hn::Add(hn::InterleaveLower(d, v2, v3), hn::InterleaveUpper(d, v2, v3));
  const auto a = hn::BitCast(d64, v01);
  const auto b = hn::BitCast(d64, v23);
  VF sum = hn::Add(hn::BitCast(d, hn::InterleaveLower(d64, a, b)),
                   hn::BitCast(d, hn::InterleaveUpper(d64, a, b)));
#if HWY_MAX_BYTES >= 64
  sum = hn::Add(sum, hn::ConcatLowerUpper(d, sum, sum));
#endif
#if HWY_MAX_BYTES >= 32
  sum = hn::Add(sum, hn::SwapAdjacentBlocks(sum));
#endif
#if HWY_MAX_BYTES >= 64
  const hn::Half<hn::Half<DF>> d4;
  hn::StoreU(hn::LowerHalf(d4, hn::LowerHalf(sum)), d4, out);
#elif HWY_MAX_BYTES >= 32
  const hn::Half<DF> d4;
  hn::StoreU(hn::LowerHalf(d4, sum), d4, out);
#else
  hn::StoreU(sum, d, out);
#endif
#endif
}

HWY_INLINE float SumLanes(VF v) { return hn::GetLane(hn::SumOfLanes(DF(), v)); }

// 1 / (1 + e^-x). Highway's Exp is good up to 104, where it is already infinite in float32.
HWY_INLINE VF Sigmoid(VF x) {
  const DF d;
  const VF one = hn::Set(d, 1.0F);
  const VF e = hn::Exp(d, hn::Min(hn::Neg(x), hn::Set(d, 104.0F)));
  return hn::Div(one, hn::Add(one, e));
}

// x / (1 + e^-x)
HWY_INLINE VF Silu(VF x) {
  const DF d;
  const VF e = hn::Exp(d, hn::Min(hn::Neg(x), hn::Set(d, 104.0F)));
  return hn::Div(x, hn::Add(hn::Set(d, 1.0F), e));
}

// log sigmoid(x) = min(x, 0) - log(1 + e^-|x|)
HWY_INLINE VF LogSigmoid(VF x) {
  const DF d;
  const VF e = hn::Exp(d, hn::Neg(hn::Abs(x)));
  return hn::Sub(hn::Min(x, hn::Zero(d)), hn::Log1p(d, e));
}

// x + 1 above 0, e^x below.
HWY_INLINE VF EluPlusOne(VF x) {
  const DF d;
  const VF e = hn::Exp(d, hn::Min(x, hn::Zero(d)));
  return hn::IfThenElse(hn::Gt(x, hn::Zero(d)), hn::Add(x, hn::Set(d, 1.0F)), e);
}

template <Activation kActivation>
HWY_INLINE VF Activate(VF x) {
  if constexpr (kActivation == Activation::kSilu) return Silu(x);
  if constexpr (kActivation == Activation::kRelu) return hn::Max(x, hn::Zero(DF()));
  if constexpr (kActivation == Activation::kEluPlusOne) return EluPlusOne(x);
  return x;
}

// Round to nearest even; a NaN stays one.
HWY_INLINE void StoreBf16(VF x, uint16_t* HWY_RESTRICT out) {
  const hn::RebindToUnsigned<DF> du;
  const hn::RebindToSigned<DF> di;
  const hn::Rebind<uint16_t, DF> d16;
  const auto bits = hn::BitCast(du, x);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
  const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7FFF))));
  const auto quiet = hn::Set(du, 0x7FC0);
  const auto result = hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(x)), quiet, rounded);
  hn::StoreU(hn::DemoteTo(d16, hn::BitCast(di, result)), d16, out);
}

}  // namespace HWY_NAMESPACE
}  // namespace osdn::kernels::cpu
HWY_AFTER_NAMESPACE();

#endif  // OSDN_KERNELS_CPU_SIMD_INL_H_
