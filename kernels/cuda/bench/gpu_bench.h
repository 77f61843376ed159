// What programs that check and time kernels on a GPU share: memory that ends the program when there
// is none, bfloat16 on the host, medians with a cold L2 cache, and figures as JSON.
#ifndef OSDN_KERNELS_CUDA_BENCH_GPU_BENCH_H_
#define OSDN_KERNELS_CUDA_BENCH_GPU_BENCH_H_

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace osdn::kernels::cuda {

inline void Must(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(2);
}

inline float FromBits(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

inline uint16_t RoundToBf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count) : count_(count) {
    Must(cudaMalloc(&data_, count * sizeof(T) + 256), "cudaMalloc");
    Must(cudaMemset(data_, 0xFF, count * sizeof(T)), "cudaMemset");  // what is not written is NaN
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    Must(cudaMemcpy(data_, values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice), "copy");
  }
  DeviceArray(DeviceArray&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), count_(other.count_) {}
  DeviceArray& operator=(DeviceArray&&) = delete;
  ~DeviceArray() { cudaFree(data_); }

  T* get() const { return data_; }
  std::vector<T> Read() const {
    std::vector<T> values(count_);
    Must(cudaMemcpy(values.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost), "copy");
    return values;
  }

 private:
  T* data_ = nullptr;
  size_t count_;
};

// Events around work with a cold L2; the median of `repeats` in microseconds.
class Timer {
 public:
  Timer() : flush_(size_t{256} << 20) {
    Must(cudaStreamCreate(&stream_), "stream");
    Must(cudaEventCreate(&start_), "event");
    Must(cudaEventCreate(&stop_), "event");
  }
  cudaStream_t stream() const { return stream_; }

  double Median(int repeats, const std::function<void()>& work) {
    std::vector<float> times;
    for (int i = 0; i < repeats + 2; ++i) {
      Must(cudaMemsetAsync(flush_.get(), 0, size_t{256} << 20, stream_), "flush");
      Must(cudaEventRecord(start_, stream_), "event");
      work();
      Must(cudaEventRecord(stop_, stream_), "event");
      Must(cudaEventSynchronize(stop_), "wait");
      float ms = 0;
      Must(cudaEventElapsedTime(&ms, start_, stop_), "elapsed");
      if (i >= 2) times.push_back(ms * 1e3F);
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }

  // The same of a graph made of what `work` enqueues.
  double MedianOfGraph(int repeats, const std::function<void()>& work) {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    work();
    Must(cudaStreamSynchronize(stream_), "warm-up");
    Must(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "capture");
    work();
    Must(cudaStreamEndCapture(stream_, &graph), "capture");
    Must(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
    const double time = Median(repeats, [&] { Must(cudaGraphLaunch(exec, stream_), "replay"); });
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    return time;
  }

 private:
  DeviceArray<unsigned char> flush_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t start_ = nullptr;
  cudaEvent_t stop_ = nullptr;
};

// Flat figures.
struct Json {
  std::string text = "{\n";
  void Add(const std::string& key, double value) {
    char line[256];
    std::snprintf(line, sizeof(line), "  \"%s\": %.6g,\n", key.c_str(), value);
    text += line;
  }
};

}  // namespace osdn::kernels::cuda

#endif  // OSDN_KERNELS_CUDA_BENCH_GPU_BENCH_H_
