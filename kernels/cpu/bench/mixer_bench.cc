// The mixer at the reference sizes: decode beside the bandwidth of updating memory in place,
// prefill beside oneDNN's best float32 product.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/cpu/bench/bench_util.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/mixer.h"
#include "kernels/cpu/threads.h"

namespace osdn::kernels::bench {
namespace {

constexpr int64_t kHeads = 8;
constexpr int64_t kDim = 128;
constexpr int64_t kSlotFloats = kHeads * kDim * (kDim + 1);

// Inputs of a batch, and state for `slots` sequences.
struct Problem {
  Problem(std::vector<SequenceSpan> batch_spans, int64_t batch_rows, int64_t slots)
      : spans(std::move(batch_spans)), rows(batch_rows) {
    q = RandomFloats(rows * kHeads * kDim, 1);
    k = RandomFloats(rows * kHeads * kDim, 2);
    for (int64_t i = 0; i < rows * kHeads * kDim; ++i) k.floats()[i] *= 0.15F;  // |k| about 1
    v = RandomFloats(rows * kHeads * kDim, 3);
    beta = ZeroFloats(rows * kHeads);
    std::fill_n(beta.floats(), rows * kHeads, 0.5F);
    log_alpha = ZeroFloats(rows * kHeads);
    std::fill_n(log_alpha.floats(), rows * kHeads, -0.01F);
    o = ZeroFloats(rows * kHeads * kDim);
    state = ZeroFloats(slots * kSlotFloats);
    ResetState();
  }

  void ResetState() { std::fill_n(state.floats(), state.bytes() / sizeof(float), 0.5F); }

  MixerArgs Args() {
    MixerArgs args;
    args.batch = {rows, 0, spans};
    args.heads = kHeads;
    args.key_dim = args.value_dim = kDim;
    args.q = q.floats();
    args.k = k.floats();
    args.v = v.floats();
    args.beta = beta.floats();
    args.log_alpha = log_alpha.floats();
    args.s = {state.floats(), kSlotFloats};
    args.d = {state.floats() + kHeads * kDim * kDim, kSlotFloats};
    args.o = o.floats();
    return args;
  }

  std::vector<SequenceSpan> spans;
  int64_t rows;
  Buffer q, k, v, beta, log_alpha, o, state;
};

// Slots are visited in turn, so that none is still in a cache.
void DecodeMixer(benchmark::State& state) {
  const auto batch = static_cast<int32_t>(state.range(0));
  const int32_t slots = 384;  // 201 MiB
  std::vector<SequenceSpan> spans;
  spans.reserve(static_cast<size_t>(batch));
  for (int32_t i = 0; i < batch; ++i) spans.push_back({i, 1, 100, i});
  Problem problem(spans, batch, slots);
  const double update = UpdateBandwidth();
  const cpu::Threads threads(ThreadCount());
  cpu::ThreadScratch scratch(threads.count());
  for (auto _ : state) {
    for (SequenceSpan& span : problem.spans) span.slot = (span.slot + batch) % slots;
    if (!cpu::Mix(problem.Args(), cpu::Phase1Form::kTokenLoop, threads, scratch).ok()) return;
    benchmark::ClobberMemory();
  }
  const double bytes = static_cast<double>(state.iterations()) * batch * kHeads * kDim * kDim * 8.0;
  state.counters["GB/s"] = benchmark::Counter(bytes * 1e-9, benchmark::Counter::kIsRate);
  state.counters["of_update"] = benchmark::Counter(bytes / update, benchmark::Counter::kIsRate);
}
BENCHMARK(DecodeMixer)->ArgName("sequences")->Arg(1)->Arg(4)->Arg(16)->Arg(64)->UseRealTime();

void PrefillMixer(benchmark::State& state) {
  const int64_t tokens = state.range(0);
  const auto form = static_cast<cpu::Phase1Form>(state.range(1));
  Problem problem({{0, tokens, 0, 0}}, tokens, 1);
  const double peak = GemmPeak(DType::kF32);
  const cpu::Threads threads(ThreadCount());
  cpu::ThreadScratch scratch(threads.count());
  for (auto _ : state) {
    problem.ResetState();
    if (!cpu::Mix(problem.Args(), form, threads, scratch).ok()) return;
    benchmark::ClobberMemory();
  }
  // Reads, scores (triangles), solve, outputs and state update of phase 2.
  const double per_token = kHeads * (6.0 * kDim * kDim + 64.0 * 4 * kDim);
  const double flops = static_cast<double>(state.iterations() * tokens) * per_token;
  state.counters["GFLOP/s"] = benchmark::Counter(flops * 1e-9, benchmark::Counter::kIsRate);
  state.counters["of_peak"] = benchmark::Counter(flops / peak, benchmark::Counter::kIsRate);
}
BENCHMARK(PrefillMixer)
    ->ArgNames({"tokens", "gram"})
    ->ArgsProduct({{8, 15, 16, 32, 64, 512}, {0, 1}})
    ->UseRealTime();

}  // namespace
}  // namespace osdn::kernels::bench

BENCHMARK_MAIN();
