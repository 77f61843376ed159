#include "kernels/cpu/bench/bench_util.h"

#include <cstdlib>
#include <random>
#include <utility>

#include "kernels/cpu/ceilings.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/threads.h"

namespace osdn::kernels::bench {
namespace {

int RequestedThreads() {
  const char* text = std::getenv("OSDN_BENCH_THREADS");
  return text == nullptr ? 0 : std::atoi(text);
}

cpu::Ceilings& SharedCeilings() {
  static const auto ceilings = [] {
    auto made = cpu::Ceilings::Create({.threads = ThreadCount(), .buffer_bytes = size_t{1} << 30});
    if (!made.ok()) std::abort();
    return *std::move(made);
  }();
  return *ceilings;
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

double ReadBandwidth() { return SharedCeilings().ReadBandwidth(); }

double UpdateBandwidth() { return SharedCeilings().UpdateBandwidth(); }

double GemmPeak(DType dtype) {
  const absl::StatusOr<double> peak = SharedCeilings().GemmPeak(dtype);
  if (!peak.ok()) std::abort();
  return *peak;
}

}  // namespace osdn::kernels::bench
