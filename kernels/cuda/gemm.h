// Products of many rows by cuBLASLt: y = x W^T (+ y), all row-major.
#ifndef OSDN_KERNELS_CUDA_GEMM_H_
#define OSDN_KERNELS_CUDA_GEMM_H_

#include <cublasLt.h>

#include <cstdint>
#include <memory>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/memory.h"
#include "kernels/cuda/mixer.h"

namespace osdn::kernels::cuda {

// x is [m, k], w is [n, k], y is [m, n]; leading dimensions and strides are in elements. x and w
// have one type. Accumulation is float32, without TF32.
struct GemmArgs {
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  const void* x = nullptr;
  int64_t x_stride = 0;
  const void* w = nullptr;
  int64_t w_stride = 0;
  void* y = nullptr;
  int64_t y_stride = 0;
  ActivationType type = ActivationType::kBF16;
  ActivationType y_type = ActivationType::kF32;
  bool accumulate = false;
  // Several products of one shape: the same x, w and y so many elements apart.
  int64_t batch = 1;
  int64_t w_batch_stride = 0;
  int64_t y_batch_stride = 0;
};

// Which algorithm a shape takes is asked of cuBLASLt once and remembered. Nothing is allocated on
// the device after Create, so calls may be recorded in graphs.
class Gemm {
 public:
  static absl::StatusOr<std::unique_ptr<Gemm>> Create(Device* device);
  Gemm(const Gemm&) = delete;
  Gemm& operator=(const Gemm&) = delete;
  ~Gemm();

  absl::Status Run(const GemmArgs& args);

 private:
  // All that the choice of an algorithm depends on.
  struct Key {
    int64_t m, n, k, x_stride, w_stride, y_stride, batch, w_batch_stride, y_batch_stride;
    uint32_t alignment;  // bytes that all addresses are multiples of
    ActivationType type, y_type;
    bool accumulate;

    bool operator==(const Key& other) const = default;
    template <class H>
    friend H AbslHashValue(H h, const Key& key) {
      return H::combine(std::move(h), key.m, key.n, key.k, key.x_stride, key.w_stride, key.y_stride,
                        key.batch, key.w_batch_stride, key.y_batch_stride, key.alignment, key.type,
                        key.y_type, key.accumulate);
    }
  };
  struct Plan;

  explicit Gemm(Device* device);
  static Key KeyOf(const GemmArgs& args);
  absl::StatusOr<const Plan*> PlanFor(const GemmArgs& args);
  absl::Status MakePlan(const Key& key, Plan* plan);

  Device* device_;
  cublasLtHandle_t handle_ = nullptr;
  Scratch workspace_;
  absl::flat_hash_map<Key, std::unique_ptr<Plan>> plans_;
};

}  // namespace osdn::kernels::cuda

#endif  // OSDN_KERNELS_CUDA_GEMM_H_
