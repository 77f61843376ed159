// What the mixer kernels work on: one head of consecutive tokens, and a thread's scratch.
#ifndef OSDN_KERNELS_CPU_MIXER_HEAD_H_
#define OSDN_KERNELS_CPU_MIXER_HEAD_H_

#include <cstdint>

#include "kernels/cpu/sizes.h"
#include "kernels/include/mixer.h"
#include "kernels/include/tensor.h"

namespace osdn::kernels::cpu {

// How the d_t of a chunk are found (docs/model.md section 2, phase 1).
enum class Phase1Form : uint8_t {
  kTokenLoop,  // token by token with the clip: fastest on CPUs
  kGram,       // all at once; a chunk that touches the box falls back to the token loop
};

// Token t's query is at q + t * key_stride, its beta at beta + t * gate_stride, and so on.
struct MixerHead {
  int64_t tokens = 0;
  int64_t key_dim = 0;
  int64_t value_dim = 0;
  int64_t key_stride = 0;
  int64_t value_stride = 0;
  int64_t gate_stride = 0;
  const float* q = nullptr;
  const float* k = nullptr;
  const float* v = nullptr;
  const float* beta = nullptr;
  const float* log_alpha = nullptr;  // or null
  float* o = nullptr;
  float* s = nullptr;  // [value_dim, key_dim]
  float* d = nullptr;  // [key_dim]; null when the preconditioner is off

  // Tokens [first, first + count) of this one.
  MixerHead Slice(int64_t first, int64_t count) const {
    MixerHead slice = *this;
    slice.tokens = count;
    slice.q += first * key_stride;
    slice.k += first * key_stride;
    slice.v += first * value_stride;
    slice.beta += first * gate_stride;
    if (log_alpha != nullptr) slice.log_alpha += first * gate_stride;
    slice.o += first * value_stride;
    return slice;
  }
};

// One thread's working memory for at most kChunk tokens. Rows are padded with zeros to whole lines
// and packed: in the activations they are a power of two apart, which caches dislike.
class MixerScratch {
 public:
  MixerScratch(float* base, int64_t key_dim, int64_t value_dim)
      : key_pad(RoundUp(key_dim, kLineFloats)), value_pad(RoundUp(value_dim, kLineFloats)) {
    Place(base);
  }
  static int64_t Floats(int64_t key_dim, int64_t value_dim) {
    return MixerScratch(nullptr, key_dim, value_dim).floats_;
  }

  int64_t key_pad;
  int64_t value_pad;

  float* keys;          // [kChunk, key_pad]
  float* queries;       // [kChunk, key_pad]
  float* write_keys;    // [kChunk, key_pad]: kt = d * k
  float* transposed;    // [key_pad, kChunk]: kt, or kappa, with tokens along the row
  float* d;             // [key_pad]
  float* beta;          // [kChunk]
  float* alpha;         // [kChunk]
  float* key_scores;    // [kChunk, kChunk]
  float* query_scores;  // [kChunk, kChunk]
  float* state;         // [key_pad, value_pad]: S transposed
  float* reads;         // [kChunk, value_pad]
  float* outputs;       // [kChunk, value_pad]
  float* updates;       // [kChunk, value_pad]: U
  float* rows;          // [kRowBlock, key_pad]: rows of S when key_dim is not a multiple of a line

  // Gram form only.
  float* kappa;    // [kChunk, key_pad]
  float* decay;    // [kChunk + 1, kChunk]: L
  float* all_d;    // [kChunk + 1, key_pad]
  float* vectors;  // [4, kChunk]

  static constexpr int64_t kRowBlock = 4;

 private:
  void Place(float* base) {
    const auto take = [&](float*& part, int64_t count) {
      part = base == nullptr ? nullptr : base + floats_;
      floats_ += RoundUp(count, kLineFloats);
    };
    take(keys, kChunk * key_pad);
    take(queries, kChunk * key_pad);
    take(write_keys, kChunk * key_pad);
    take(transposed, kChunk * key_pad);
    take(d, key_pad);
    take(beta, kChunk);
    take(alpha, kChunk);
    take(key_scores, kChunk * kChunk);
    take(query_scores, kChunk * kChunk);
    take(state, key_pad * value_pad);
    take(reads, kChunk * value_pad);
    take(outputs, kChunk * value_pad);
    take(updates, kChunk * value_pad);
    take(rows, kRowBlock * key_pad);
    take(kappa, kChunk * key_pad);
    take(decay, (kChunk + 1) * kChunk);
    take(all_d, (kChunk + 1) * key_pad);
    take(vectors, 4 * kChunk);
  }

  int64_t floats_ = 0;
};

}  // namespace osdn::kernels::cpu

#endif  // OSDN_KERNELS_CPU_MIXER_HEAD_H_
