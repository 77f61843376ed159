// The OSDN mixer of one head of one sequence, in the two exact forms of docs/model.md:
// the token recurrence (section 1, the truth) and the two-phase chunk form (section 2).
// Instantiated for float and double.
#ifndef OSDN_KERNELS_REFERENCE_MIXER_H_
#define OSDN_KERNELS_REFERENCE_MIXER_H_

#include <cstdint>

#include "kernels/include/mixer.h"

namespace osdn::kernels::reference {

// Consecutive tokens of one head; every array is contiguous.
template <typename T>
struct MixerHead {
  int64_t tokens = 0;
  int64_t key_dim = 0;
  int64_t value_dim = 0;
  PreconditionerParams precond;
  const T* q = nullptr;          // [tokens, key_dim], normalised and scaled
  const T* k = nullptr;          // [tokens, key_dim], normalised
  const T* v = nullptr;          // [tokens, value_dim]
  const T* beta = nullptr;       // [tokens]
  const T* log_alpha = nullptr;  // [tokens], <= 0, or null: alpha = 1
  T* s = nullptr;                // [value_dim, key_dim], in and out
  T* d = nullptr;                // [key_dim], in and out; untouched when precond is disabled
  T* o = nullptr;                // [tokens, value_dim]
};

template <typename T>
void MixerTokens(const MixerHead<T>& head);

// What the box check of the chunk form decided.
struct ChunkCounts {
  int64_t chunks = 0;
  int64_t clipped = 0;  // chunks whose d left the box and was redone token by token
};

// `position` is the absolute position of the first token; chunk borders are the multiples of
// `chunk` in absolute position.
template <typename T>
ChunkCounts MixerChunks(const MixerHead<T>& head, int64_t position, int64_t chunk = kChunk);

}  // namespace osdn::kernels::reference

#endif  // OSDN_KERNELS_REFERENCE_MIXER_H_
