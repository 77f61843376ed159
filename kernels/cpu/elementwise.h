// Norms, gates and activations on ranges of rows or elements. Dispatched to the best SIMD target.
// Every element is computed by vector code, in tails too, so its bits do not depend on its place.
#ifndef OSDN_KERNELS_CPU_ELEMENTWISE_H_
#define OSDN_KERNELS_CPU_ELEMENTWISE_H_

#include <cstdint>

#include "kernels/include/mixer.h"
#include "kernels/include/norm.h"

namespace osdn::kernels::cpu {

// Rows [begin, end).
void RmsNormRows(const RmsNormArgs& args, int64_t begin, int64_t end);
void OutputNormRows(const OutputNormArgs& args, int64_t begin, int64_t end);
void QkPrepareRows(const QkPrepareArgs& args, int64_t begin, int64_t end);
void GateRows(const GateArgs& args, int64_t begin, int64_t end);

// Elements [begin, end) of the flat [rows * dim] arrays.
void SwiGluElements(const SwiGluArgs& args, int64_t begin, int64_t end);

// dst[i] = src[i] widened (src is bf16) or rounded to nearest even (dst is bf16).
void WidenBf16(const uint16_t* src, int64_t count, float* dst);
void RoundToBf16(const float* src, int64_t count, uint16_t* dst);

// to[c, r] = from[r, c], 32-bit words of any kind.
void TransposeWords(const uint32_t* from, int64_t rows, int64_t columns, int64_t from_row,
                    uint32_t* to, int64_t to_row);
int32_t SumInt8(const int8_t* values, int64_t count);

// The SIMD target that dispatch chose ("AVX3").
const char* SimdTargetName();

}  // namespace osdn::kernels::cpu

#endif  // OSDN_KERNELS_CPU_ELEMENTWISE_H_
