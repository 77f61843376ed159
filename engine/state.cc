#include "engine/state.h"

#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"

namespace osdn {
namespace {

constexpr int64_t kAlignmentFloats = 64 / sizeof(float);

int64_t AlignUp(int64_t floats) {
  return (floats + kAlignmentFloats - 1) / kAlignmentFloats * kAlignmentFloats;
}

}  // namespace

StateLayout::StateLayout(const ArchitectureConfig& arch) {
  const int64_t key = arch.num_heads * arch.key_dim;
  const int64_t value = arch.num_heads * arch.value_dim;
  const int64_t tail = arch.use_short_conv ? arch.conv_size - 1 : 0;
  const auto add = [this](int64_t floats) {
    return std::exchange(slot_floats_, slot_floats_ + AlignUp(floats));
  };
  d_floats_ = key;
  layers_.resize(static_cast<size_t>(arch.num_layers));
  for (Layer& layer : layers_) {
    layer.s = add(value * arch.key_dim);
    layer.d = add(key);
    layer.conv_q = add(tail * key);
    layer.conv_k = add(tail * key);
    layer.conv_v = add(tail * value);
  }
}

absl::StatusOr<StatePool> StatePool::Create(kernels::Backend* backend, const StateLayout& layout,
                                            int32_t slots) {
  if (slots < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("state pool: ", slots, " slots, want at least 1"));
  }
  const size_t slot_bytes = layout.slot_bytes();
  const auto count = static_cast<size_t>(slots);
  const std::string numbers =
      absl::StrCat("state pool: ", slots, " slots of ", slot_bytes, " bytes");
  if (slot_bytes > std::numeric_limits<int64_t>::max() / count) {
    return absl::ResourceExhaustedError(absl::StrCat(numbers, " overflow the address space"));
  }
  absl::StatusOr<kernels::Buffer> arena = backend->Allocate(slot_bytes * count);
  if (!arena.ok()) {
    return absl::Status(
        arena.status().code(),
        absl::StrCat(numbers, " do not fit (use fewer slots): ", arena.status().message()));
  }
  return StatePool(backend, layout, slots, *std::move(arena));
}

StatePool::StatePool(kernels::Backend* backend, const StateLayout& layout, int32_t slots,
                     kernels::Buffer arena)
    : backend_(backend),
      layout_(layout),
      stride_(layout.slot_floats()),
      capacity_(slots),
      arena_(std::move(arena)),
      taken_(static_cast<size_t>(slots), false) {
  free_.reserve(taken_.size());
  // From the back, so that low slots, which share pages, are used first.
  for (int32_t slot = slots - 1; slot >= 0; --slot) free_.push_back(slot);
}

absl::StatusOr<std::optional<int32_t>> StatePool::Acquire() {
  if (free_.empty()) return std::nullopt;
  const int32_t slot = free_.back();
  if (absl::Status s = Initialise(slot); !s.ok()) return s;
  free_.pop_back();
  taken_[static_cast<size_t>(slot)] = true;
  return slot;
}

// A free slot is all zero (fresh from the backend or wiped by Release), so only d is left to set.
absl::Status StatePool::Initialise(int32_t slot) {
  for (int64_t i = 0; i < layout_.num_layers(); ++i) {
    float* d = At(layout_.layer(i).d).at(slot);
    if (absl::Status s = backend_->Fill(d, 1.0F, layout_.d_floats()); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status StatePool::CheckTaken(int32_t slot) const {
  if (slot >= 0 && slot < capacity_ && taken_[static_cast<size_t>(slot)]) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("state slot ", slot, " of ", capacity_, " is not in use"));
}

absl::Status StatePool::Release(int32_t slot) {
  if (absl::Status s = CheckTaken(slot); !s.ok()) return s;
  // A slot that could not be wiped stays taken: better one slot less than a leak.
  if (absl::Status s = backend_->Fill(At(0).at(slot), 0.0F, stride_); !s.ok()) return s;
  taken_[static_cast<size_t>(slot)] = false;
  free_.push_back(slot);
  return absl::OkStatus();
}

absl::Status StatePool::Save(int32_t slot, absl::Span<std::byte> out) const {
  if (absl::Status s = CheckTaken(slot); !s.ok()) return s;
  if (absl::Status s = CheckSize(out.size()); !s.ok()) return s;
  return backend_->CopyToHost(out.data(), At(0).at(slot), out.size());
}

absl::Status StatePool::Restore(int32_t slot, absl::Span<const std::byte> in) {
  if (absl::Status s = CheckTaken(slot); !s.ok()) return s;
  if (absl::Status s = CheckSize(in.size()); !s.ok()) return s;
  return backend_->CopyFromHost(At(0).at(slot), in.data(), in.size());
}

absl::Status StatePool::Copy(int32_t from, int32_t to) {
  if (absl::Status s = CheckTaken(from); !s.ok()) return s;
  if (absl::Status s = CheckTaken(to); !s.ok()) return s;
  if (from == to) {
    return absl::InvalidArgumentError(absl::StrCat("state slot ", from, " copied onto itself"));
  }
  return backend_->CopyOnDevice(At(0).at(to), At(0).at(from), layout_.slot_bytes());
}

absl::Status StatePool::CheckSize(size_t bytes) const {
  if (bytes == layout_.slot_bytes()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("state of ", bytes, " bytes, a slot has ", layout_.slot_bytes()));
}

}  // namespace osdn
