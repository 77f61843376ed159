#include "kernels/cuda/device.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace osdn::kernels::cuda {
namespace {

constexpr int kMinComputeCapability = 80;

// "13.0" of 13000.
std::string VersionName(int version) {
  return absl::StrCat(version / 1000, ".", version % 1000 / 10);
}

// Errors after which every call of this process fails.
bool IsSticky(cudaError_t error) {
  switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorHardwareStackError:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorContextIsDestroyed:
    case cudaErrorDevicesUnavailable:
    case cudaErrorUnknown:
      return true;
    default:
      return false;
  }
}

absl::Status NoDevice(cudaError_t error) {
  int driver = 0;
  // 0 without a driver.
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    return absl::FailedPreconditionError("no NVIDIA driver was found");
  }
  if (error == cudaErrorInsufficientDriver) {
    return absl::FailedPreconditionError(absl::StrCat("the NVIDIA driver is for CUDA ",
                                                      VersionName(driver), ", this module needs ",
                                                      VersionName(CUDART_VERSION)));
  }
  if (error == cudaErrorNoDevice || error == cudaSuccess) {
    return absl::FailedPreconditionError(
        "no CUDA device is visible (CUDA_VISIBLE_DEVICES may hide them)");
  }
  return absl::FailedPreconditionError(absl::StrCat("cudaGetDeviceCount: ", cudaGetErrorName(error),
                                                    ": ", cudaGetErrorString(error)));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Device>> Device::Open() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count < 1) {
    absl::Status status = NoDevice(error);
    cudaGetLastError();
    return status;
  }
  std::unique_ptr<Device> device(new Device());
  if (absl::Status s = device->Check(cudaSetDevice(0), "cudaSetDevice"); !s.ok()) return s;
  cudaDeviceProp properties = {};
  if (absl::Status s =
          device->Check(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
      !s.ok()) {
    return s;
  }
  device->compute_capability_ = properties.major * 10 + properties.minor;
  device->multiprocessors_ = properties.multiProcessorCount;
  device->shared_bytes_per_block_ = properties.sharedMemPerBlockOptin;
  if (device->compute_capability_ < kMinComputeCapability) {
    return absl::FailedPreconditionError(absl::StrCat(
        properties.name, " has compute capability ", properties.major, ".", properties.minor,
        ", this module needs 8.0 or more (A100, H100, H200 and later)"));
  }
  int driver = 0;
  int runtime = 0;
  if (absl::Status s = device->Check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
      !s.ok()) {
    return s;
  }
  if (absl::Status s = device->Check(cudaRuntimeGetVersion(&runtime), "cudaRuntimeGetVersion");
      !s.ok()) {
    return s;
  }
  device->description_ =
      absl::StrFormat("%s (sm_%d, %d SMs, %.1f GiB), driver %s, runtime %s", properties.name,
                      device->compute_capability_, device->multiprocessors_,
                      static_cast<double>(properties.totalGlobalMem) / (1 << 30),
                      VersionName(driver), VersionName(runtime));
  if (absl::Status s = device->Check(
          cudaStreamCreateWithFlags(&device->stream_, cudaStreamNonBlocking), "cudaStreamCreate");
      !s.ok()) {
    return s;
  }
  return device;
}

Device::~Device() {
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

absl::Status Device::Check(cudaError_t error, const char* call) {
  if (!fault_.ok()) return fault_;
  if (error == cudaSuccess) return absl::OkStatus();
  cudaGetLastError();  // what is not sticky must not be met again by a later call
  absl::Status status = absl::InternalError(
      absl::StrCat("CUDA: ", call, ": ", cudaGetErrorName(error), ": ", cudaGetErrorString(error)));
  if (IsSticky(error)) fault_ = status;
  return status;
}

absl::Status Device::Synchronize() {
  if (absl::Status s = NotRecording("Synchronize"); !s.ok()) return s;
  return Check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
}

absl::Status Device::NotRecording(const char* call) const {
  if (!recording_) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("CUDA: ", call, " cannot be part of a recorded step"));
}

}  // namespace osdn::kernels::cuda
