#include "kernels/cpu/elementwise.h"

#include <cstring>

#include "kernels/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/elementwise.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// After foreach_target.h
#include "kernels/cpu/simd-inl.h"
#include "kernels/cpu/small_gemm-inl.h"

HWY_BEFORE_NAMESPACE();
namespace osdn::kernels::cpu {
namespace HWY_NAMESPACE {

// Calls f(vector of a, vector of b) for all of [0, n) and stores to y. The tail goes through a zero
// padded copy.
template <class F>
HWY_INLINE void Map2(const float* a, const float* b, int64_t n, float* y, const F& f) {
  const DF d;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    hn::StoreU(f(hn::LoadU(d, a + i), hn::LoadU(d, b + i)), d, y + i);
  }
  if (i == n) return;
  HWY_ALIGN float tail[3][kLanes] = {};
  std::memcpy(tail[0], a + i, (n - i) * sizeof(float));
  std::memcpy(tail[1], b + i, (n - i) * sizeof(float));
  hn::Store(f(hn::Load(d, tail[0]), hn::Load(d, tail[1])), d, tail[2]);
  std::memcpy(y + i, tail[2], (n - i) * sizeof(float));
}

template <class F>
HWY_INLINE void Map1(const float* a, int64_t n, float* y, const F& f) {
  Map2(a, a, n, y, [&f](VF x, VF) HWY_ATTR { return f(x); });
}

// Sum of f(x) over a row; the order depends on n alone. f(0) must be 0.
template <class F>
HWY_INLINE float SumOver(const float* x, int64_t n, const F& f) {
  const DF d;
  VF sum0 = hn::Zero(d), sum1 = hn::Zero(d), sum2 = hn::Zero(d), sum3 = hn::Zero(d);
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    sum0 = hn::Add(sum0, f(hn::LoadU(d, x + i)));
    sum1 = hn::Add(sum1, f(hn::LoadU(d, x + i + kLanes)));
    sum2 = hn::Add(sum2, f(hn::LoadU(d, x + i + 2 * kLanes)));
    sum3 = hn::Add(sum3, f(hn::LoadU(d, x + i + 3 * kLanes)));
  }
  for (; i + kLanes <= n; i += kLanes) sum0 = hn::Add(sum0, f(hn::LoadU(d, x + i)));
  if (i < n) {
    HWY_ALIGN float tail[kLanes] = {};
    std::memcpy(tail, x + i, (n - i) * sizeof(float));
    sum1 = hn::Add(sum1, f(hn::Load(d, tail)));
  }
  return SumLanes(hn::Add(hn::Add(sum0, sum1), hn::Add(sum2, sum3)));
}

HWY_INLINE float SumSquares(const float* x, int64_t n) {
  return SumOver(x, n, [](VF v) HWY_ATTR { return hn::Mul(v, v); });
}

// 1 / sqrt(x), correctly rounded steps: Highway's approximate form is not accurate enough.
HWY_INLINE float InverseSqrt(float x) {
  const hn::CappedTag<float, 1> d;
  return 1.0F / hn::GetLane(hn::Sqrt(hn::Set(d, x)));
}

void RmsNormRowsImpl(const RmsNormArgs& args, int64_t begin, int64_t end) {
  const DF d;
  for (int64_t row = begin; row < end; ++row) {
    const float* x = args.x + row * args.dim;
    const float mean = SumSquares(x, args.dim) / static_cast<float>(args.dim);
    const VF scale = hn::Set(d, InverseSqrt(mean + args.eps));
    Map2(x, args.weight, args.dim, args.y + row * args.dim,
         [scale](VF v, VF w) HWY_ATTR { return hn::Mul(hn::Mul(v, scale), w); });
  }
}

void OutputNormRowsImpl(const OutputNormArgs& args, int64_t begin, int64_t end) {
  const DF d;
  const int64_t n = args.value_dim;
  for (int64_t head = begin * args.heads; head < end * args.heads; ++head) {
    float* o = args.o + head * n;
    const float mean = SumSquares(o, n) / static_cast<float>(n);
    const VF scale = hn::Set(d, InverseSqrt(mean + args.eps));
    Map2(o, args.weight, n, o,
         [scale](VF v, VF w) HWY_ATTR { return hn::Mul(hn::Mul(v, scale), w); });
    if (args.gate == nullptr) continue;
    Map2(o, args.gate + head * n, n, o, [](VF v, VF g) HWY_ATTR { return hn::Mul(v, Silu(g)); });
  }
}

void SwiGluElementsImpl(const SwiGluArgs& args, int64_t begin, int64_t end) {
  Map2(args.gate + begin, args.up + begin, end - begin, args.y + begin,
       [](VF gate, VF up) HWY_ATTR { return hn::Mul(Silu(gate), up); });
}

template <Activation kActivation>
HWY_INLINE void ActivateAll(int64_t n, float* x) {
  Map1(x, n, x, [](VF v) HWY_ATTR { return Activate<kActivation>(v); });
}

void ActivateInPlace(Activation activation, int64_t n, float* x) {
  switch (activation) {
    case Activation::kIdentity:
      return;
    case Activation::kSilu:
      return ActivateAll<Activation::kSilu>(n, x);
    case Activation::kRelu:
      return ActivateAll<Activation::kRelu>(n, x);
    case Activation::kEluPlusOne:
      return ActivateAll<Activation::kEluPlusOne>(n, x);
  }
}

void QkPrepareRowsImpl(const QkPrepareArgs& args, int64_t begin, int64_t end) {
  const DF d;
  const int64_t n = args.key_dim;
  for (int64_t head = begin * args.heads; head < end * args.heads; ++head) {
    for (float* base : {args.q, args.k}) {
      float* x = base + head * n;
      ActivateInPlace(args.activation, n, x);
      const float factor = args.norm == QkNorm::kL2
                               ? InverseSqrt(SumSquares(x, n) + 1e-6F)
                               : 1.0F / SumOver(x, n, [](VF v) HWY_ATTR { return v; });
      const VF scale = hn::Set(d, base == args.q ? factor * args.q_scale : factor);
      Map1(x, n, x, [scale](VF v) HWY_ATTR { return hn::Mul(v, scale); });
    }
  }
}

void GateRowsImpl(const GateArgs& args, int64_t begin, int64_t end) {
  const DF d;
  const VF beta_scale = hn::Set(d, args.beta_scale);
  const int64_t first = begin * args.heads;
  const int64_t count = (end - begin) * args.heads;
  Map1(args.beta + first, count, args.beta + first,
       [beta_scale](VF x) HWY_ATTR { return hn::Mul(Sigmoid(x), beta_scale); });
  if (args.log_alpha == nullptr) return;
  for (int64_t row = begin; row < end; ++row) {
    float* alpha = args.log_alpha + row * args.heads;
    if (args.alpha_bias == nullptr) {
      Map1(alpha, args.heads, alpha, [](VF x) HWY_ATTR { return LogSigmoid(x); });
    } else {
      Map2(alpha, args.alpha_bias, args.heads, alpha,
           [](VF x, VF bias) HWY_ATTR { return LogSigmoid(hn::Add(x, bias)); });
    }
  }
}

void WidenBf16Impl(const uint16_t* src, int64_t count, float* dst) {
  const auto* values = reinterpret_cast<const hwy::bfloat16_t*>(src);
  const DF d;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) hn::StoreU(LoadWide(values + i), d, dst + i);
  for (; i < count; ++i) dst[i] = WidenScalar(values[i]);
}

void RoundToBf16Impl(const float* src, int64_t count, uint16_t* dst) {
  const DF d;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) StoreBf16(hn::LoadU(d, src + i), dst + i);
  if (i == count) return;
  HWY_ALIGN float tail[kLanes] = {};
  HWY_ALIGN uint16_t rounded[kLanes];
  std::memcpy(tail, src + i, (count - i) * sizeof(float));
  StoreBf16(hn::Load(d, tail), rounded);
  std::memcpy(dst + i, rounded, (count - i) * sizeof(uint16_t));
}

// Loads, interleaves and stores: the bits of a word are never looked at.
void TransposeWordsImpl(const uint32_t* from, int64_t rows, int64_t columns, int64_t from_row,
                        uint32_t* to, int64_t to_row) {
  Transpose(reinterpret_cast<const float*>(from), rows, columns, from_row,
            reinterpret_cast<float*>(to), to_row);
}

int32_t SumInt8Impl(const int8_t* values, int64_t count) {
  const hn::RebindToSigned<DF> di;
  const hn::Rebind<int8_t, DF> d8;
  auto sum = hn::Zero(di);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    sum = hn::Add(sum, hn::PromoteTo(di, hn::LoadU(d8, values + i)));
  }
  int32_t total = hn::GetLane(hn::SumOfLanes(di, sum));
  for (; i < count; ++i) total += values[i];
  return total;
}

const char* SimdTargetNameImpl() { return hwy::TargetName(HWY_TARGET); }

}  // namespace HWY_NAMESPACE
}  // namespace osdn::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace osdn::kernels::cpu {

HWY_EXPORT(RmsNormRowsImpl);
HWY_EXPORT(OutputNormRowsImpl);
HWY_EXPORT(SwiGluElementsImpl);
HWY_EXPORT(QkPrepareRowsImpl);
HWY_EXPORT(GateRowsImpl);
HWY_EXPORT(WidenBf16Impl);
HWY_EXPORT(RoundToBf16Impl);
HWY_EXPORT(TransposeWordsImpl);
HWY_EXPORT(SumInt8Impl);
HWY_EXPORT(SimdTargetNameImpl);

void RmsNormRows(const RmsNormArgs& args, int64_t begin, int64_t end) {
  HWY_DYNAMIC_DISPATCH(RmsNormRowsImpl)(args, begin, end);
}
void OutputNormRows(const OutputNormArgs& args, int64_t begin, int64_t end) {
  HWY_DYNAMIC_DISPATCH(OutputNormRowsImpl)(args, begin, end);
}
void SwiGluElements(const SwiGluArgs& args, int64_t begin, int64_t end) {
  HWY_DYNAMIC_DISPATCH(SwiGluElementsImpl)(args, begin, end);
}
void QkPrepareRows(const QkPrepareArgs& args, int64_t begin, int64_t end) {
  HWY_DYNAMIC_DISPATCH(QkPrepareRowsImpl)(args, begin, end);
}
void GateRows(const GateArgs& args, int64_t begin, int64_t end) {
  HWY_DYNAMIC_DISPATCH(GateRowsImpl)(args, begin, end);
}
void WidenBf16(const uint16_t* src, int64_t count, float* dst) {
  HWY_DYNAMIC_DISPATCH(WidenBf16Impl)(src, count, dst);
}
void RoundToBf16(const float* src, int64_t count, uint16_t* dst) {
  HWY_DYNAMIC_DISPATCH(RoundToBf16Impl)(src, count, dst);
}
void TransposeWords(const uint32_t* from, int64_t rows, int64_t columns, int64_t from_row,
                    uint32_t* to, int64_t to_row) {
  HWY_DYNAMIC_DISPATCH(TransposeWordsImpl)(from, rows, columns, from_row, to, to_row);
}
int32_t SumInt8(const int8_t* values, int64_t count) {
  return HWY_DYNAMIC_DISPATCH(SumInt8Impl)(values, count);
}
const char* SimdTargetName() { return HWY_DYNAMIC_DISPATCH(SimdTargetNameImpl)(); }

}  // namespace osdn::kernels::cpu
#endif  // HWY_ONCE
