// Types shared by every op: element types, borrowed host tensors, and the shape of one step's
// batch.
//
// Nothing here knows a model or a request. Views never own; the caller keeps memory alive for the
// duration of the call (or, for HostTensor given to Backend::Prepare*, for the lifetime of the
// prepared object: backends may use weights straight from a file mapping).
#ifndef OSDN_KERNELS_INCLUDE_TENSOR_H_
#define OSDN_KERNELS_INCLUDE_TENSOR_H_

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/types/span.h"

namespace osdn::kernels {

// Element types of weights. Activations and state are always float32.
//   kI8  one float32 scale an output row: w[o, i] = q[o, i] * scale[o], q in [-127, 127].
//   kI4  one bf16 scale a group of kInt4Group inputs: w[o, i] = (q[o, i] - 8) * scale[o, group],
//        q in [1, 15]. Two inputs a byte, the even one in the low half; a row starts at a byte of
//        its own and its last group may be short.
enum class DType : uint8_t { kF32, kBF16, kI8, kI4 };

inline constexpr int64_t kInt4Group = 32;
// Scales of a row of `columns` elements of kI4.
constexpr int64_t Int4Groups(int64_t columns) { return (columns + kInt4Group - 1) / kInt4Group; }

// Bytes of one row of `columns` elements.
constexpr int64_t RowBytes(DType dtype, int64_t columns) {
  switch (dtype) {
    case DType::kF32:
      return columns * 4;
    case DType::kBF16:
      return columns * 2;
    case DType::kI8:
      return columns;
    case DType::kI4:
      return (columns + 1) / 2;
  }
  return 0;
}

constexpr std::string_view DTypeName(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "f32";
    case DType::kBF16:
      return "bf16";
    case DType::kI8:
      return "int8";
    case DType::kI4:
      return "int4";
  }
  return "unknown";
}

constexpr bool IsQuantized(DType dtype) { return dtype == DType::kI8 || dtype == DType::kI4; }

// A borrowed, row-major tensor in host memory (usually a slice of a mapped safetensors file).
// `data` and `scales` are aligned to their element size at least.
struct HostTensor {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  // Of quantized matrices [out, in]: float32 [out] for kI8, bf16 [out, Int4Groups(in)] for kI4.
  const void* scales = nullptr;

  int64_t elements() const {
    int64_t n = 1;
    for (int64_t d : shape) n *= d;
    return n;
  }
};

// Consecutive rows of one sequence inside a packed batch.
struct SequenceSpan {
  int64_t row = 0;       // first row in the packed [rows, *] activations
  int64_t length = 0;    // tokens, >= 1
  int64_t position = 0;  // absolute position of the first token in its sequence
  int32_t slot = 0;      // index of the sequence's state in the pool
};

// One step's work, packed without padding: first `decode_rows` spans of length 1 (row i == span i),
// then prefill spans in row order. No two spans name the same slot.
//
// Batch invariance: a backend must compute every row from that row's own span alone. In particular
// it may pick its arithmetic by (length, position) of the span, never by what else is in the batch;
// and since a prompt is cut at multiples of kChunk wherever the budget allows, cutting a span there
// must not change its bits either: choose by absolute chunk, not by the length of the whole span.
struct BatchView {
  int64_t rows = 0;
  int64_t decode_rows = 0;
  absl::Span<const SequenceSpan> spans;
};

// Chunk length of the two-phase prefill (osdn-model.md section 2, C). Chunk borders are the
// multiples of kChunk in absolute position, so the same tokens always meet the same borders.
inline constexpr int64_t kChunk = 64;

// State of many sequences: element `slot` starts at base + slot * slot_stride (in floats).
struct SlotArray {
  float* base = nullptr;
  int64_t slot_stride = 0;

  constexpr float* at(int32_t slot) const { return base + slot * slot_stride; }
};

enum class Activation : uint8_t { kIdentity, kSilu, kRelu, kEluPlusOne };

}  // namespace osdn::kernels

#endif  // OSDN_KERNELS_INCLUDE_TENSOR_H_
