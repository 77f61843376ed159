#include "kernels/cpu/panels/kernels.h"

namespace osdn::kernels::cpu {

const PanelKernel& PanelKernels::For(DType dtype) const {
  switch (dtype) {
    case DType::kBF16:
      return bf16;
    case DType::kI8:
      return int8;
    case DType::kI4:
      return int4;
    case DType::kF32:
      break;
  }
  return f32;
}

PanelKernels ChoosePanelKernels(Isa isa) {
  PanelKernels kernels = GenericPanelKernels();
#if defined(__x86_64__)
  if (isa >= Isa::kAvx512Bf16) {
    kernels.bf16 = {RowFormat::kBf16, &MultiplyBf16Avx512};
    kernels.int4 = {RowFormat::kBf16, &MultiplyInt4Avx512};
    kernels.int8 = {RowFormat::kUint8, &MultiplyInt8Avx512};
  }
  if (isa >= Isa::kAmx) {
    kernels.bf16 = {RowFormat::kBf16, &MultiplyBf16Amx};
    kernels.int8 = {RowFormat::kInt8, &MultiplyInt8Amx};
  }
#else
  static_cast<void>(isa);
#endif
  return kernels;
}

}  // namespace osdn::kernels::cpu
