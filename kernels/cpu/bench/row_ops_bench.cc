// Convolution, norms, gates and activations beside read bandwidth: they should cost as much as
// touching their operands.
#include <cstdint>
#include <memory>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/cpu/bench/bench_util.h"

namespace osdn::kernels::bench {
namespace {

constexpr int64_t kDim = 1024;

void Report(benchmark::State& state, double bytes_a_run) {
  const double bytes = static_cast<double>(state.iterations()) * bytes_a_run;
  state.counters["GB/s"] = benchmark::Counter(bytes * 1e-9, benchmark::Counter::kIsRate);
  state.counters["of_read"] =
      benchmark::Counter(bytes / ReadBandwidth(), benchmark::Counter::kIsRate);
}

void RmsNorm(benchmark::State& state) {
  const std::unique_ptr<Backend> backend = MakeBackend();
  const int64_t rows = state.range(0);
  const Buffer x = RandomFloats(rows * kDim, 1);
  const Buffer weight = RandomFloats(kDim, 2);
  const Buffer y = ZeroFloats(rows * kDim);
  for (auto _ : state) {
    if (!backend->RmsNorm({rows, kDim, 1e-6F, x.floats(), weight.floats(), y.floats()}).ok())
      return;
    benchmark::ClobberMemory();
  }
  Report(state, 8.0 * static_cast<double>(rows * kDim));
}
BENCHMARK(RmsNorm)->ArgName("rows")->Arg(1)->Arg(16)->Arg(512)->UseRealTime();

void SwiGlu(benchmark::State& state) {
  const std::unique_ptr<Backend> backend = MakeBackend();
  const int64_t rows = state.range(0);
  const Buffer gate = RandomFloats(rows * kDim, 1);
  const Buffer up = RandomFloats(rows * kDim, 2);
  const Buffer y = ZeroFloats(rows * kDim);
  for (auto _ : state) {
    if (!backend->SwiGlu({rows, kDim, gate.floats(), up.floats(), y.floats()}).ok()) return;
    benchmark::ClobberMemory();
  }
  Report(state, 12.0 * static_cast<double>(rows * kDim));
}
BENCHMARK(SwiGlu)->ArgName("rows")->Arg(1)->Arg(16)->Arg(512)->UseRealTime();

// One prefill span of `rows` tokens, or `rows` decoding sequences.
void ShortConv(benchmark::State& state) {
  const std::unique_ptr<Backend> backend = MakeBackend();
  const int64_t rows = state.range(0);
  const bool decode = state.range(1) != 0;
  constexpr int64_t kTaps = 4;
  std::vector<SequenceSpan> spans;
  for (int64_t i = 0; decode && i < rows; ++i) {
    spans.push_back({i, 1, 100, static_cast<int32_t>(i)});
  }
  if (!decode) spans.push_back({0, rows, 0, 0});
  const Buffer x = RandomFloats(rows * kDim, 1);
  const Buffer weight = RandomFloats(kDim * kTaps, 2);
  const Buffer tails = ZeroFloats(static_cast<int64_t>(spans.size()) * (kTaps - 1) * kDim);
  const Buffer y = ZeroFloats(rows * kDim);
  ShortConvArgs args;
  args.batch = {rows, decode ? rows : 0, spans};
  args.dim = kDim;
  args.size = kTaps;
  args.weight = weight.floats();
  args.x = x.floats();
  args.tail = {tails.floats(), (kTaps - 1) * kDim};
  args.y = y.floats();
  for (auto _ : state) {
    if (!backend->ShortConv(args).ok()) return;
    benchmark::ClobberMemory();
  }
  Report(state, (decode ? 32.0 : 8.0) * static_cast<double>(rows * kDim));
}
BENCHMARK(ShortConv)
    ->ArgNames({"rows", "decode"})
    ->ArgsProduct({{1, 16, 512}, {0, 1}})
    ->UseRealTime();

void QkPrepare(benchmark::State& state) {
  const std::unique_ptr<Backend> backend = MakeBackend();
  const int64_t rows = state.range(0);
  const Buffer q = RandomFloats(rows * kDim, 1);
  const Buffer k = RandomFloats(rows * kDim, 2);
  QkPrepareArgs args;
  args.rows = rows;
  args.heads = 8;
  args.key_dim = kDim / 8;
  args.q = q.floats();
  args.k = k.floats();
  for (auto _ : state) {
    if (!backend->QkPrepare(args).ok()) return;
    benchmark::ClobberMemory();
  }
  Report(state, 16.0 * static_cast<double>(rows * kDim));
}
BENCHMARK(QkPrepare)->ArgName("rows")->Arg(1)->Arg(16)->Arg(512)->UseRealTime();

}  // namespace
}  // namespace osdn::kernels::bench

BENCHMARK_MAIN();
