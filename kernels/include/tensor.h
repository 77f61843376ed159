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

enum class DType : uint8_t { kF32, kBF16 };

constexpr size_t DTypeSize(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }
constexpr std::string_view DTypeName(DType dtype) { return dtype == DType::kF32 ? "f32" : "bf16"; }

// A borrowed, row-major tensor in host memory (usually a slice of a mapped safetensors file).
// `data` is aligned to the element size at least.
struct HostTensor {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;

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
// it may pick its arithmetic by (length, position) of the span, never by what else is in the batch.
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

  float* at(int32_t slot) const { return base + slot * slot_stride; }
};

enum class Activation : uint8_t { kIdentity, kSilu, kRelu, kEluPlusOne };

}  // namespace osdn::kernels

#endif  // OSDN_KERNELS_INCLUDE_TENSOR_H_
