// How weights and activations are laid out for the CPU's products y = x W^T.
//
// A weight [out, in] is cut into panels of kPanelOuts outputs. A panel is stored in the order it is
// read: run by run along the inputs, a run being some words of each block of kOutBlock outputs,
// word by word, outputs side by side: [inputs / (run * per word), width / 16, run, 16]. Runs are an
// AMX tile (16 words, 1 KB) for bf16 and int8 and one word for the others. A 32-bit word holds:
//
//   f32   1 input                            int8  4 inputs, in order of address
//   bf16  2 inputs, the even one in the      int4  8 inputs: nibble n of the low half is input 2n,
//         low half                                 nibble n of the high half 2n + 1
//
// So any number of rows reads every byte once, in sequence: at one row memory sets the pace, at
// many the arithmetic. The words are what AVX512-BF16 and VNNI dot instructions and AMX tiles take,
// and other targets unpack them with shifts.
//
// The arithmetic of one result is the same whatever the number of rows: inputs in ascending order
// into one accumulator. That is what makes batches invariant.
#ifndef OSDN_KERNELS_CPU_PANELS_LAYOUT_H_
#define OSDN_KERNELS_CPU_PANELS_LAYOUT_H_

#include <cstdint>

#include "kernels/cpu/sizes.h"
#include "kernels/include/tensor.h"

namespace osdn::kernels::cpu {

inline constexpr int64_t kPanelOuts = 64;
// A panel's width is a multiple of this: the last panel is as narrow as it can be.
inline constexpr int64_t kOutBlock = 16;
// Rows of x are packed in blocks of this many (an AMX tile's height); the last may be shorter.
inline constexpr int64_t kRowBlock = 16;
inline constexpr int64_t kWordBytes = 4;

// Inputs a 32-bit word holds.
constexpr int64_t InputsPerWord(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return 1;
    case DType::kBF16:
      return 2;
    case DType::kI8:
      return 4;
    case DType::kI4:
      return 8;
  }
  return 1;
}

// Words of a run.
constexpr int64_t RunWords(DType dtype) {
  return dtype == DType::kBF16 || dtype == DType::kI8 ? 16 : 1;
}

// Inputs are padded with zeros to whole AMX tiles (16 words) or whole int4 groups.
constexpr int64_t PaddedInputs(DType dtype, int64_t in_features) {
  switch (dtype) {
    case DType::kF32:
      return in_features;
    case DType::kBF16:
      return RoundUp(in_features, 32);
    case DType::kI8:
      return RoundUp(in_features, 64);
    case DType::kI4:
      return RoundUp(in_features, kInt4Group);
  }
  return in_features;
}

// One panel of a packed weight.
struct Panel {
  const uint32_t* words = nullptr;  // [inputs / InputsPerWord * width], in runs
  int64_t inputs = 0;               // padded
  int64_t width = 0;                // outputs stored, a multiple of kOutBlock
  int64_t outs = 0;                 // outputs that exist
  // int8: the scale of each output, and the sum of its weights. int4: bf16, [inputs / kInt4Group,
  // width].
  const float* scales = nullptr;  // [width]
  const int32_t* sums = nullptr;  // [width]
  const uint16_t* group_scales = nullptr;
};

// How a kernel wants its rows of x. Rows come in blocks of kRowBlock, block b at byte
// b * kRowBlock * RowFormatBytes(...); a block of R rows holds, piece by piece of 64 bytes along
// the inputs, the piece of each row (so that a row's neighbours lie a line apart, which AMX and
// caches like), but float32 rows, which are contiguous.
enum class RowFormat : uint8_t {
  kF32,
  kBf16,
  // Scaled by absmax / 127 of the row, rounded to nearest; unsigned: plus 128. A row that is not
  // finite gets a NaN scale.
  kInt8,
  kUint8,
};
inline constexpr int64_t kPieceBytes = 64;

constexpr bool HasRowScales(RowFormat format) {
  return format == RowFormat::kInt8 || format == RowFormat::kUint8;
}
constexpr int64_t ElementBytes(RowFormat format) {
  return format == RowFormat::kF32 ? 4 : format == RowFormat::kBf16 ? 2 : 1;
}

}  // namespace osdn::kernels::cpu

#endif  // OSDN_KERNELS_CPU_PANELS_LAYOUT_H_
