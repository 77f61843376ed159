// Products of activations with prepared weights, whatever the weights' type and the number of rows:
// skinny kernels for few rows (gemv.h), cuBLASLt beyond (gemm.h).
//
// What a row's bits depend on: among batches of at most GemvRows rows, on that row alone. Beyond,
// on the number of rows too, because cuBLASLt picks its algorithm by shape.
#ifndef OSDN_KERNELS_CUDA_LINEAR_H_
#define OSDN_KERNELS_CUDA_LINEAR_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/gemv.h"
#include "kernels/cuda/memory.h"
#include "kernels/cuda/mixer.h"
#include "kernels/include/linear.h"

namespace osdn::kernels::cuda {

// The input's RMSNorm, where there is one.
struct InputNorm {
  const float* weight = nullptr;
  float eps = 0;
};

// One product; y is [rows, out].
struct Product {
  const LinearWeight* weight = nullptr;
  void* y = nullptr;
  ActivationType y_type = ActivationType::kF32;
  bool accumulate = false;  // y is float32 then
};

// The type of operands that products with weights of `dtype` read.
constexpr ActivationType OperandType(DType dtype) {
  return dtype == DType::kF32 ? ActivationType::kF32 : ActivationType::kBF16;
}

// Two products joined: y [rows, out] = silu(gate x) * (up x) as `y_type`. One shape, one type.
struct SwiGluProduct {
  const LinearWeight* gate = nullptr;
  const LinearWeight* up = nullptr;
  void* y = nullptr;
  ActivationType y_type = ActivationType::kBF16;
};

// Used with its device's stream by one thread.
class Linear {
 public:
  static absl::StatusOr<std::unique_ptr<Linear>> Create(Device* device);

  // y = norm(x) W^T for all products, whose weights have one `in`. x is float32 with a norm.
  absl::Status Run(int64_t rows, const RowsView& x, const InputNorm& norm,
                   absl::Span<const Product> products);
  absl::Status RunSwiGlu(int64_t rows, const RowsView& x, const InputNorm& norm,
                         const SwiGluProduct& product);

  // Makes the room that products of so many rows want, which is otherwise made when they are run.
  // `intermediate` 0: no RunSwiGlu.
  absl::Status Reserve(ActivationType type, int64_t rows, int64_t in, int64_t intermediate);
  size_t scratch_bytes() const { return operand_.bytes() + wide_.bytes() + gate_up_.bytes(); }

 private:
  Linear(Device* device, std::unique_ptr<Gemm> gemm);

  bool IsSkinny(int64_t rows, DType dtype, int64_t in) const;
  absl::Status RunSkinny(int64_t rows, const RowsView& x, const InputNorm& norm,
                         absl::Span<const Product> products);
  absl::Status RunLarge(int64_t rows, const RowsView& x, const InputNorm& norm,
                        absl::Span<const Product> products);
  // x as operand of weights of `dtype`: normed, rounded, rows padded with zeros.
  absl::StatusOr<RowsView> Operand(int64_t rows, const RowsView& x, const InputNorm& norm,
                                   const WeightView& weight);
  // The first of `products` and those behind it that run as one batch with it; how many.
  absl::StatusOr<size_t> RunBatch(int64_t rows, const RowsView& x,
                                  absl::Span<const Product> products);
  // A product of few outputs, with x in the weight's place.
  absl::Status RunNarrow(int64_t rows, const RowsView& x, const Product& product);
  // A product with a quantized weight, which is widened part by part.
  absl::Status RunQuantized(int64_t rows, const RowsView& x, const Product& product);

  Device* device_;
  std::unique_ptr<Gemm> gemm_;
  Scratch operand_;  // x as operand
  Scratch wide_;     // part of a quantized weight as bf16
  Scratch gate_up_;  // [2, rows, intermediate]
};

}  // namespace osdn::kernels::cuda

#endif  // OSDN_KERNELS_CUDA_LINEAR_H_
