// The product of packed rows with one panel, for each weight type on each instruction set.
#ifndef OSDN_KERNELS_CPU_PANELS_KERNELS_H_
#define OSDN_KERNELS_CPU_PANELS_KERNELS_H_

#include <cstdint>

#include "absl/types/span.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/panels/layout.h"

namespace osdn::kernels::cpu {

// y[r, o] = (y[r, o] +) <x_r, w_o> for `rows` rows and the panel's outputs.
struct PanelProduct {
  Panel panel;
  const void* x = nullptr;          // packed rows; 64-byte aligned
  const float* x_scales = nullptr;  // [rows], for int8 formats
  int64_t rows = 0;
  float* y = nullptr;  // of the first row and output
  int64_t y_stride = 0;
  bool accumulate = false;
};

struct PanelKernel {
  RowFormat rows = RowFormat::kF32;
  // One after the other: what a kernel sets up lasts for all of them.
  void (*multiply)(absl::Span<const PanelProduct> products) = nullptr;
};

struct PanelKernels {
  PanelKernel f32, bf16, int8, int4;

  const PanelKernel& For(DType dtype) const;
};

// The fastest kernels `isa` has.
PanelKernels ChoosePanelKernels(Isa isa);

// x [rows, in_features] on its way into `packed`, padded with zeros to `padded` inputs.
struct RowsToPack {
  RowFormat format = RowFormat::kF32;
  const float* x = nullptr;
  int64_t rows = 0;
  int64_t in_features = 0;
  int64_t padded = 0;
  void* packed = nullptr;   // [rows * padded] elements of the format
  float* scales = nullptr;  // [rows], written for int8 formats
};

// Packs rows [begin, end).
void PackRows(const RowsToPack& rows, int64_t begin, int64_t end);

// --- Of each translation unit; use ChoosePanelKernels ---

// Every type on float32 rows, through Highway's dispatch: any CPU.
PanelKernels GenericPanelKernels();
#if defined(__x86_64__)
void MultiplyBf16Avx512(absl::Span<const PanelProduct> products);  // AVX512-BF16; rows kBf16
void MultiplyInt4Avx512(absl::Span<const PanelProduct> products);  // AVX512-BF16; rows kBf16
void MultiplyInt8Avx512(absl::Span<const PanelProduct> products);  // AVX512-VNNI; rows kUint8
void MultiplyBf16Amx(absl::Span<const PanelProduct> products);     // rows kBf16
void MultiplyInt8Amx(absl::Span<const PanelProduct> products);     // rows kInt8
#endif

}  // namespace osdn::kernels::cpu

#endif  // OSDN_KERNELS_CPU_PANELS_KERNELS_H_
