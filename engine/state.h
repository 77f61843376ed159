// Recurrent state of sequences: what a slot holds, and the pool of slots.
//
// A slot is everything a sequence's past is: for every layer S [heads, V, K], d [heads, K] and
// three convolution tails. Its size is exact and constant, so capacity is known at start and
// admission never over-commits.
#ifndef OSDN_ENGINE_STATE_H_
#define OSDN_ENGINE_STATE_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/model_config.h"
#include "kernels/backend.h"

namespace osdn {

// Where each part of a slot lies, in floats from its start; parts are 64-byte aligned.
class StateLayout {
 public:
  struct Layer {
    int64_t s = 0;       // [heads, value_dim, key_dim]
    int64_t d = 0;       // [heads, key_dim]
    int64_t conv_q = 0;  // [conv_size - 1, heads * key_dim]
    int64_t conv_k = 0;
    int64_t conv_v = 0;  // [conv_size - 1, heads * value_dim]
  };

  explicit StateLayout(const ArchitectureConfig& arch);

  const Layer& layer(int64_t i) const { return layers_[static_cast<size_t>(i)]; }
  int64_t num_layers() const { return static_cast<int64_t>(layers_.size()); }
  int64_t d_floats() const { return d_floats_; }  // heads * key_dim
  int64_t slot_floats() const { return slot_floats_; }
  size_t slot_bytes() const { return static_cast<size_t>(slot_floats_) * sizeof(float); }

 private:
  std::vector<Layer> layers_;
  int64_t d_floats_ = 0;
  int64_t slot_floats_ = 0;
};

// Fixed number of slots in one arena of the backend's memory. Used by one thread (the engine loop).
class StatePool {
 public:
  // RESOURCE_EXHAUSTED with the numbers when the arena does not fit.
  static absl::StatusOr<StatePool> Create(kernels::Backend* backend, const StateLayout& layout,
                                          int32_t slots);

  // A slot in its initial state (S = 0, d = 1, tails = 0), or nullopt when all are taken.
  absl::StatusOr<std::optional<int32_t>> Acquire();
  // Gives a slot back and wipes it, so that no state outlives its sequence. INVALID_ARGUMENT for a
  // slot that is not in use; a slot that the device failed to wipe is not given out again.
  absl::Status Release(int32_t slot);

  // One slot as host bytes, layout.slot_bytes() long. Explicit copies, so their cost is visible.
  // INVALID_ARGUMENT for a slot that is not in use or another size.
  absl::Status Save(int32_t slot, absl::Span<std::byte> out) const;
  absl::Status Restore(int32_t slot, absl::Span<const std::byte> in);
  // Makes `to` an exact copy of `from`, on the device: a fork. INVALID_ARGUMENT unless both are in
  // use and differ.
  absl::Status Copy(int32_t from, int32_t to);

  kernels::SlotArray At(int64_t offset) const { return {arena_.floats() + offset, stride_}; }
  const StateLayout& layout() const { return layout_; }
  int32_t capacity() const { return capacity_; }
  int32_t used() const { return capacity_ - static_cast<int32_t>(free_.size()); }

 private:
  StatePool(kernels::Backend* backend, const StateLayout& layout, int32_t slots,
            kernels::Buffer arena);
  absl::Status Initialise(int32_t slot);
  absl::Status CheckTaken(int32_t slot) const;
  absl::Status CheckSize(size_t bytes) const;

  kernels::Backend* backend_;
  StateLayout layout_;
  int64_t stride_;
  int32_t capacity_;
  kernels::Buffer arena_;
  std::vector<int32_t> free_;
  std::vector<bool> taken_;
};

}  // namespace osdn

#endif  // OSDN_ENGINE_STATE_H_
