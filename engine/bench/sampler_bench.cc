// One token from one row of logits, at the vocabulary of the reference sizes. A decode step of the
// 340M model is the yardstick: docs/benchmarks.md.
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstdlib>
#include <random>
#include <vector>

#include "engine/logits.h"
#include "engine/sampler.h"

namespace osdn {
namespace {

constexpr size_t kVocab = 32000;

// Like a language model's: a few likely tokens over a wide floor.
std::vector<float> Logits(float scale) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0.0F, scale);
  std::vector<float> logits(kVocab);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

void Run(benchmark::State& state, const SamplingParams& params, float scale = 2.5F) {
  const std::vector<float> logits = Logits(scale);
  Sampler sampler;
  uint64_t index = 0;
  for (auto _ : state) {
    auto token = sampler.Sample(logits, params, {.index = index++});
    if (!token.ok()) std::abort();
    benchmark::DoNotOptimize(*token);
  }
}

void Greedy(benchmark::State& state) { Run(state, {.temperature = 0.0F}); }
void Plain(benchmark::State& state) { Run(state, {}); }
void TopK40(benchmark::State& state) { Run(state, {.top_k = 40}); }
void TopP(benchmark::State& state) { Run(state, {.top_p = 0.9F}); }
void TopPFlat(benchmark::State& state) { Run(state, {.top_p = 0.9F}, 0.3F); }
void MinP(benchmark::State& state) { Run(state, {.min_p = 0.05F}); }
void Typical(benchmark::State& state) { Run(state, {.typical_p = 0.9F}); }
void All(benchmark::State& state) {
  Run(state,
      {.temperature = 0.8F, .top_k = 100, .top_p = 0.9F, .min_p = 0.02F, .typical_p = 0.95F});
}
void Logprobs20(benchmark::State& state) {
  const std::vector<float> logits = Logits(2.5F);
  for (auto _ : state) benchmark::DoNotOptimize(ComputeLogprob(logits, 7, 20));
}

BENCHMARK(Greedy)->Unit(benchmark::kMicrosecond);
BENCHMARK(Plain)->Unit(benchmark::kMicrosecond);
BENCHMARK(TopK40)->Unit(benchmark::kMicrosecond);
BENCHMARK(TopP)->Unit(benchmark::kMicrosecond);
BENCHMARK(TopPFlat)->Unit(benchmark::kMicrosecond);
BENCHMARK(MinP)->Unit(benchmark::kMicrosecond);
BENCHMARK(Typical)->Unit(benchmark::kMicrosecond);
BENCHMARK(All)->Unit(benchmark::kMicrosecond);
BENCHMARK(Logprobs20)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace osdn

BENCHMARK_MAIN();
