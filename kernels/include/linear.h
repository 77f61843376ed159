// Matrix products with prepared weights: y = x W^T (+ y).
#ifndef OSDN_KERNELS_INCLUDE_LINEAR_H_
#define OSDN_KERNELS_INCLUDE_LINEAR_H_

#include "kernels/include/tensor.h"

namespace osdn::kernels {

// A [out, in] weight in whatever layout its backend computes with. Made by Backend::PrepareLinear,
// immutable, usable only with the backend that made it. It may keep pointing into the HostTensor it
// was made from.
class LinearWeight {
 public:
  virtual ~LinearWeight() = default;

  int64_t in_features() const { return in_features_; }
  int64_t out_features() const { return out_features_; }
  DType dtype() const { return dtype_; }
  // Bytes held beside the source tensor (repacked copies, device memory).
  virtual size_t extra_bytes() const = 0;

 protected:
  LinearWeight(int64_t out_features, int64_t in_features, DType dtype)
      : in_features_(in_features), out_features_(out_features), dtype_(dtype) {}

 private:
  int64_t in_features_;
  int64_t out_features_;
  DType dtype_;
};

// One product of a group that shares its input.
struct LinearJob {
  const LinearWeight* weight = nullptr;
  float* y = nullptr;       // [rows, out_features]
  bool accumulate = false;  // y += x W^T instead of y = x W^T
};

// All jobs read the same x [rows, in_features] (every weight has that in_features) and write their
// own y; no y overlaps x or another y. Accumulation is float32; operands may be rounded to bf16
// when the weight is bf16. The reduction order of a row depends on its span only (see BatchView).
struct LinearArgs {
  BatchView batch;
  const float* x = nullptr;
  absl::Span<const LinearJob> jobs;
};

}  // namespace osdn::kernels

#endif  // OSDN_KERNELS_INCLUDE_LINEAR_H_
