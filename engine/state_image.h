// One slot's content on the host, with what belongs to it: immutable and shared by whoever needs it
// (prefix cache, swapped-out sequences, saved states).
#ifndef OSDN_ENGINE_STATE_IMAGE_H_
#define OSDN_ENGINE_STATE_IMAGE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/types/span.h"

namespace osdn {

class StateImage {
 public:
  // `bytes` of state, uninitialised: the maker fills them before sharing the image.
  explicit StateImage(size_t bytes) : data_(new std::byte[bytes]), bytes_(bytes) {}

  absl::Span<std::byte> mutable_state() { return {data_.get(), bytes_}; }
  absl::Span<const std::byte> state() const { return {data_.get(), bytes_}; }
  // The state as what it is, on every backend: float32.
  absl::Span<const float> floats() const {
    return {reinterpret_cast<const float*>(data_.get()), bytes_ / sizeof(float)};
  }
  // Host memory held.
  size_t total_bytes() const { return sizeof(*this) + bytes_ + logits.size() * sizeof(float); }

  int64_t position = 0;       // tokens in the state
  std::vector<float> logits;  // after the last of them; empty where nobody asked for them

 private:
  std::unique_ptr<std::byte[]> data_;
  size_t bytes_;
};

}  // namespace osdn

#endif  // OSDN_ENGINE_STATE_IMAGE_H_
