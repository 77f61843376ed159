// A weight in panels (layout.h), made once at load.
#ifndef OSDN_KERNELS_CPU_PANELS_PACKED_WEIGHT_H_
#define OSDN_KERNELS_CPU_PANELS_PACKED_WEIGHT_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/panels/layout.h"
#include "kernels/cpu/threads.h"
#include "kernels/include/linear.h"

namespace osdn::kernels::cpu {

// Hands out parts of large blocks, so that the weights of a model lie end to end, in huge pages
// where the system has them. Blocks live as long as any part of them. Used by one thread at a time.
class WeightArena {
 public:
  // `bytes` zeros, 64-byte aligned. RESOURCE_EXHAUSTED with the size.
  absl::StatusOr<std::shared_ptr<char>> Allocate(size_t bytes);

 private:
  std::shared_ptr<Buffer> block_;
  size_t used_ = 0;
};

class PackedWeight : public LinearWeight {
 public:
  // `weight` is [out, in] with what its type needs. It is read now and, row by row, by ReadRow.
  static absl::StatusOr<std::unique_ptr<PackedWeight>> Pack(const HostTensor& weight,
                                                            const Threads& threads,
                                                            WeightArena* arena);

  size_t extra_bytes() const override { return bytes_; }
  int64_t panels() const { return CeilDiv(out_features(), kPanelOuts); }
  int64_t padded_inputs() const { return inputs_; }
  Panel panel(int64_t index) const;
  // Bytes of a panel's words: what one row of x costs.
  int64_t panel_bytes(int64_t index) const;

  // y [in_features] = row `row` in float32, from the tensor this was made of (embedding lookup).
  void ReadRow(int64_t row, float* y) const;

 private:
  PackedWeight(const HostTensor& source, int64_t inputs);
  absl::Status Allocate(WeightArena* arena);
  void PackPanel(int64_t index);
  void PackScales(int64_t index);
  int64_t Width(int64_t index) const;

  HostTensor source_;
  int64_t inputs_;
  int64_t padded_outs_;
  size_t bytes_ = 0;
  std::shared_ptr<char> memory_;  // of all below
  uint32_t* words_ = nullptr;
  float* scales_ = nullptr;           // int8: [padded_outs_]
  int32_t* sums_ = nullptr;           // int8: [padded_outs_]
  uint16_t* group_scales_ = nullptr;  // int4: [inputs_ / kInt4Group, width] a panel
};

}  // namespace osdn::kernels::cpu

#endif  // OSDN_KERNELS_CPU_PANELS_PACKED_WEIGHT_H_
