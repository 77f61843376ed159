// Linear layers beside plain read bandwidth (decode) and oneDNN's best (prefill).
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/cpu/bench/bench_util.h"

namespace osdn::kernels::bench {
namespace {

constexpr int64_t kIn = 1024;
constexpr int64_t kOut = 1024;
// Weights are visited in turn, so that none is still in a cache.
constexpr size_t kWeightBytes = size_t{192} << 20;

DType TypeArg(int64_t arg) { return arg == 0 ? DType::kF32 : DType::kBF16; }

class Layers {
 public:
  Layers(Backend* backend, DType dtype) {
    const int64_t elements = kIn * kOut;
    const auto count = static_cast<int64_t>(kWeightBytes / (RowBytes(dtype, elements)));
    data_ =
        dtype == DType::kF32 ? RandomFloats(count * elements, 1) : RandomBf16(count * elements, 1);
    for (int64_t i = 0; i < count; ++i) {
      const void* data = static_cast<const char*>(data_.data()) + i * RowBytes(dtype, elements);
      weights_.push_back(*backend->PrepareLinear({data, dtype, {kOut, kIn}}));
    }
  }

  const LinearWeight* Next() { return weights_[next_++ % weights_.size()].get(); }

 private:
  Buffer data_;
  std::vector<std::unique_ptr<LinearWeight>> weights_;
  size_t next_ = 0;
};

double Run(benchmark::State& state, const std::vector<SequenceSpan>& spans, int64_t rows,
           int64_t decode_rows, DType dtype) {
  const std::unique_ptr<Backend> backend = MakeBackend();
  Layers layers(backend.get(), dtype);
  const Buffer x = RandomFloats(rows * kIn, 2);
  const Buffer y = ZeroFloats(rows * kOut);
  for (auto _ : state) {
    const LinearJob job = {layers.Next(), y.floats(), false};
    const absl::Status status =
        backend->Linear({{rows, decode_rows, spans}, x.floats(), {&job, 1}});
    if (!status.ok()) state.SkipWithError(status.ToString().c_str());
    benchmark::ClobberMemory();
  }
  return static_cast<double>(state.iterations());
}

void DecodeLinear(benchmark::State& state) {
  const int64_t rows = state.range(0);
  const DType dtype = TypeArg(state.range(1));
  std::vector<SequenceSpan> spans;
  for (int64_t i = 0; i < rows; ++i) spans.push_back({i, 1, 100, static_cast<int32_t>(i)});
  const double read = ReadBandwidth();
  const double runs = Run(state, spans, rows, rows, dtype);
  const double bytes = runs * static_cast<double>(RowBytes(dtype, kIn * kOut));
  state.counters["GB/s"] = benchmark::Counter(bytes * 1e-9, benchmark::Counter::kIsRate);
  state.counters["of_read"] = benchmark::Counter(bytes / read, benchmark::Counter::kIsRate);
  state.counters["GFLOP/s"] = benchmark::Counter(
      runs * 2e-9 * kIn * kOut * static_cast<double>(rows), benchmark::Counter::kIsRate);
}
BENCHMARK(DecodeLinear)
    ->ArgNames({"rows", "bf16"})
    ->ArgsProduct({{1, 2, 4, 8, 16, 64}, {0, 1}})
    ->UseRealTime();

void PrefillLinear(benchmark::State& state) {
  const int64_t rows = state.range(0);
  const DType dtype = TypeArg(state.range(1));
  const double peak = GemmPeak(dtype);
  const double runs = Run(state, {{0, rows, 0, 0}}, rows, 0, dtype);
  const double flops = runs * 2.0 * kIn * kOut * static_cast<double>(rows);
  state.counters["GFLOP/s"] = benchmark::Counter(flops * 1e-9, benchmark::Counter::kIsRate);
  state.counters["of_peak"] = benchmark::Counter(flops / peak, benchmark::Counter::kIsRate);
}
BENCHMARK(PrefillLinear)
    ->ArgNames({"tokens", "bf16"})
    ->ArgsProduct({{8, 16, 64, 512}, {0, 1}})
    ->UseRealTime();

}  // namespace
}  // namespace osdn::kernels::bench

BENCHMARK_MAIN();
