#include "kernels/cpu/bench/bench_util.h"

#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include "dnnl.hpp"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/threads.h"

namespace osdn::kernels::bench {
namespace {

constexpr int kPasses = 7;

template <class Pass>
double BestSeconds(const Pass& pass) {
  pass();
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < kPasses; ++i) {
    const auto start = std::chrono::steady_clock::now();
    pass();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::min(best, seconds.count());
  }
  return best;
}

int RequestedThreads() {
  const char* text = std::getenv("OSDN_BENCH_THREADS");
  return text == nullptr ? 0 : std::atoi(text);
}

// Larger than any L3 slice these benchmarks meet, small enough for small machines.
std::vector<uint64_t>& LargeBuffer() {
  static std::vector<uint64_t> buffer(size_t{32} << 20, 1);  // 256 MiB
  return buffer;
}

// Four sums hide the latency of the additions.
uint64_t SumWords(const uint64_t* words, int64_t begin, int64_t end) {
  uint64_t sums[4] = {};
  for (int64_t i = begin; i + 4 <= end; i += 4) {
    for (int j = 0; j < 4; ++j) sums[j] += words[i + j];
  }
  return sums[0] + sums[1] + sums[2] + sums[3];
}

}  // namespace

int ThreadCount() {
  const int requested = RequestedThreads();
  return requested > 0 ? requested : cpu::UsableCores();
}

std::unique_ptr<Backend> MakeBackend() {
  absl::StatusOr<std::unique_ptr<Backend>> backend = CreateCpuBackend(RequestedThreads());
  if (!backend.ok()) std::abort();
  return *std::move(backend);
}

Buffer RandomFloats(int64_t count, uint32_t seed) {
  std::minstd_rand random(seed + 1);
  Buffer buffer = ZeroFloats(count);
  for (int64_t i = 0; i < count; ++i) {
    buffer.floats()[i] = static_cast<float>(random()) * 0x1p-30F - 1.0F;
  }
  return buffer;
}

Buffer RandomBf16(int64_t count, uint32_t seed) {
  const Buffer values = RandomFloats(count, seed);
  Buffer rounded = ZeroFloats((count + 1) / 2);
  cpu::RoundToBf16(values.floats(), count, static_cast<uint16_t*>(rounded.data()));
  return rounded;
}

Buffer ZeroFloats(int64_t count) {
  absl::StatusOr<Buffer> buffer = cpu::AllocateZeroed(count * sizeof(float));
  if (!buffer.ok()) std::abort();
  return *std::move(buffer);
}

double ReadBandwidth() {
  const std::vector<uint64_t>& buffer = LargeBuffer();
  const auto words = static_cast<int64_t>(buffer.size());
  volatile uint64_t sink = 0;
  const double seconds = BestSeconds([&] {
    uint64_t sum = 0;
#pragma omp parallel num_threads(ThreadCount()) reduction(+ : sum)
    {
      const int64_t team = omp_get_num_threads();
      const int64_t thread = omp_get_thread_num();
      sum += SumWords(buffer.data(), words * thread / team, words * (thread + 1) / team);
    }
    sink = sum;
  });
  static_cast<void>(sink);
  return static_cast<double>(words) * sizeof(uint64_t) / seconds;
}

double UpdateBandwidth() {
  std::vector<uint64_t>& buffer = LargeBuffer();
  const auto words = static_cast<int64_t>(buffer.size());
  const double seconds = BestSeconds([&] {
#pragma omp parallel for schedule(static) num_threads(ThreadCount())
    for (int64_t i = 0; i < words; ++i) buffer[i] += 3;
  });
  return 2.0 * static_cast<double>(words) * sizeof(uint64_t) / seconds;
}

double GemmPeak(DType dtype) {
  using dnnl::memory;
  constexpr int64_t kSize = 1024;
  const auto type = dtype == DType::kBF16 ? memory::data_type::bf16 : memory::data_type::f32;
  omp_set_num_threads(ThreadCount());
  const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  dnnl::stream stream(engine);
  const memory::desc plain({kSize, kSize}, type, memory::format_tag::ab);
  const memory::desc any({kSize, kSize}, type, memory::format_tag::any);
  const memory::desc out({kSize, kSize}, memory::data_type::f32, memory::format_tag::ab);
  const dnnl::matmul::primitive_desc desc(dnnl::matmul::desc(plain, any, out), engine);
  const dnnl::matmul product(desc);
  memory x(plain, engine), w(desc.weights_desc(), engine), y(out, engine);
  const double seconds = BestSeconds([&] {
    product.execute(stream, {{DNNL_ARG_SRC, x}, {DNNL_ARG_WEIGHTS, w}, {DNNL_ARG_DST, y}});
    stream.wait();
  });
  return 2.0 * kSize * kSize * kSize / seconds;
}

}  // namespace osdn::kernels::bench
