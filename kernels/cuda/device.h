// The GPU, the stream that all work goes to, and how CUDA's errors become absl::Status.
#ifndef OSDN_KERNELS_CUDA_DEVICE_H_
#define OSDN_KERNELS_CUDA_DEVICE_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace osdn::kernels::cuda {

// Owns the stream. Used by one thread at a time. Everything else of the backend holds a pointer to
// it and is destroyed first.
class Device {
 public:
  // Device 0 of those that CUDA_VISIBLE_DEVICES leaves. FAILED_PRECONDITION with the cause: no
  // driver, one too old, no device, compute capability below 8.0.
  static absl::StatusOr<std::unique_ptr<Device>> Open();

  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  ~Device();

  cudaStream_t stream() const { return stream_; }
  int multiprocessors() const { return multiprocessors_; }
  // Most dynamic shared memory a block may ask for.
  size_t shared_bytes_per_block() const { return shared_bytes_per_block_; }
  // Kernels may start while the one before them still runs (launch.cuh).
  bool overlaps_launches() const { return compute_capability_ >= 90; }
  // "NVIDIA H100 80GB HBM3 (sm_90, 132 SMs, 79.1 GiB), driver 13.0, runtime 13.0"
  const std::string& description() const { return description_; }

  // OK, or INTERNAL naming the call and the error. An error that leaves the device unusable is
  // remembered: from then on every Check and Usable gives that first cause.
  absl::Status Check(cudaError_t error, const char* call);
  absl::Status Usable() const { return fault_; }
  absl::Status Synchronize();

  // While a graph is recorded, nothing may wait or allocate.
  bool recording() const { return recording_; }
  void set_recording(bool recording) { recording_ = recording; }
  // FAILED_PRECONDITION naming the call while a graph is recorded.
  absl::Status NotRecording(const char* call) const;

  // Changes whenever memory that a recorded graph may point to went away.
  int64_t memory_epoch() const { return memory_epoch_; }
  void MemoryWentAway() { ++memory_epoch_; }

 private:
  Device() = default;

  cudaStream_t stream_ = nullptr;
  int multiprocessors_ = 0;
  int compute_capability_ = 0;  // major * 10 + minor
  size_t shared_bytes_per_block_ = 0;
  std::string description_;
  absl::Status fault_;
  bool recording_ = false;
  int64_t memory_epoch_ = 0;
};

}  // namespace osdn::kernels::cuda

#endif  // OSDN_KERNELS_CUDA_DEVICE_H_
