// The recurrence token by token for head sizes that have no kernel of their own: any K and V,
// float32, inputs prepared. One block a span and head; a warp a row of S.
#ifndef OSDN_KERNELS_CUDA_MIXER_GENERIC_CUH_
#define OSDN_KERNELS_CUDA_MIXER_GENERIC_CUH_

#include "kernels/cuda/mixer_args.h"
#include "kernels/cuda/primitives.cuh"

namespace osdn::kernels::cuda {

constexpr int kGenericThreads = 256;

struct GenericArgs {
  RecurrentArgs<float> recurrent;
  int32_t key_dim = 0;
  int32_t value_dim = 0;
};

// <d, k^2>, |k|^2 and <q, kt>, by each warp for itself.
struct GenericSums {
  float s;
  float norm;
  float q_kt;
};

OSDN_DEVICE GenericSums SumKeys(const float* q, const float* k, const float* kt, int key_dim) {
  GenericSums sums = {};
  for (int i = Lane(); i < key_dim; i += kWarp) {
    sums.s += kt[i] * k[i];
    sums.norm += k[i] * k[i];
    sums.q_kt += kt[i] * q[i];
  }
  return {WarpSum(sums.s), WarpSum(sums.norm), WarpSum(sums.q_kt)};
}

// Shared memory: kt and d, key_dim floats each. Grid (spans or decode rows, heads).
OSDN_DEVICE void GenericBody(const GenericArgs& args, unsigned char* memory) {
  const RecurrentArgs<float>& in = args.recurrent;
  const PreconditionerParams& p = in.precond;
  const int head = BlockIndexY();
  auto* kt = reinterpret_cast<float*>(memory);
  float* d = kt + args.key_dim;
  SpanPlan span;
  if (in.decode_slots != nullptr) {
    span.row = BlockIndexX();
    span.length = 1;
    span.slot = in.decode_slots[BlockIndexX()];
    if (span.slot < 0) return;
  } else {
    span = in.spans[BlockIndexX()];
  }
  float* s = in.s.at(span.slot) + static_cast<int64_t>(head) * args.value_dim * args.key_dim;
  float* slot_d = in.d.at(span.slot) + static_cast<int64_t>(head) * args.key_dim;
  for (int i = ThreadIndex(); i < args.key_dim; i += kGenericThreads) {
    d[i] = p.enabled ? slot_d[i] : 1.0F;
  }
  for (int t = 0; t < span.length; ++t) {
    const int64_t place = (static_cast<int64_t>(span.row) + t) * in.heads + head;
    const float* q = in.q + place * args.key_dim;
    const float* k = in.k + place * args.key_dim;
    for (int i = ThreadIndex(); i < args.key_dim; i += kGenericThreads) kt[i] = d[i] * k[i];
    SyncThreads();
    const GenericSums sums = SumKeys(q, k, kt, args.key_dim);
    const float beta = in.input.beta[place];
    for (int row = Warp(); row < args.value_dim; row += kGenericThreads / kWarp) {
      float* state = s + static_cast<int64_t>(row) * args.key_dim;
      float read = 0.0F;
      float out = 0.0F;
      for (int i = Lane(); i < args.key_dim; i += kWarp) {
        read += state[i] * k[i];
        out += state[i] * q[i];
      }
      const float u = beta * (in.v[place * args.value_dim + row] - WarpSum(read));
      out = WarpSum(out) + u * sums.q_kt;
      for (int i = Lane(); i < args.key_dim; i += kWarp) state[i] += u * kt[i];
      if (Lane() == 0) in.o[place * args.value_dim + row] = out;
    }
    SyncThreads();
    if (!p.enabled) continue;
    const float alpha = in.input.log_alpha == nullptr ? 1.0F : Exp(in.input.log_alpha[place]);
    const float step = p.eta * beta * (1.0F - beta * sums.s) / Max(sums.norm, p.eps);
    for (int i = ThreadIndex(); i < args.key_dim; i += kGenericThreads) {
      const float next = p.anchor + alpha * (d[i] - p.anchor) + step * k[i] * k[i];
      d[i] = Min(Max(next, p.d_min), p.d_max);
    }
  }
  if (!p.enabled) return;
  for (int i = ThreadIndex(); i < args.key_dim; i += kGenericThreads) slot_d[i] = d[i];
}

}  // namespace osdn::kernels::cuda

#endif  // OSDN_KERNELS_CUDA_MIXER_GENERIC_CUH_
