#include "tools/bench_engine.h"

#include <algorithm>
#include <utility>
#include <variant>

namespace osdn::tools {
namespace {

// Nobody is ever slow: this process reads after the measurement.
constexpr int64_t kStreamCapacity = 1 << 16;

struct Sampling {
  const char* name;
  SamplingParams params;
};

std::vector<Sampling> Samplings() {
  return {{"greedy", {.temperature = 0.0F}},
          {"top_k 40", {.temperature = 1.0F, .top_k = 40}},
          {"top_p 0.9", {.temperature = 1.0F, .top_p = 0.9F}}};
}

absl::Status ReadToEnd(TokenStream* stream) {
  while (true) {
    GenerationEvent event = stream->Next();
    if (const auto* finished = std::get_if<GenerationFinished>(&event)) return finished->status;
  }
}

double Seconds(std::chrono::nanoseconds time) {
  return std::chrono::duration<double>(time).count();
}

}  // namespace

absl::StatusOr<std::unique_ptr<EngineBench>> EngineBench::Create(const BenchOptions& options) {
  EngineOptions engine_options;
  engine_options.model_dir = options.model_dir;
  engine_options.backend = options.backend;
  engine_options.max_slots = *std::max_element(options.batches.begin(), options.batches.end());
  engine_options.max_queued_requests = engine_options.max_slots;
  engine_options.stream_capacity = kStreamCapacity;
  engine_options.prefix_cache_bytes = 0;  // it has no part in decoding
  engine_options.verify_checksums = false;
  absl::StatusOr<std::unique_ptr<Engine>> engine = Engine::Create(engine_options);
  if (!engine.ok()) return engine.status();
  return std::unique_ptr<EngineBench>(new EngineBench(*std::move(engine)));
}

std::vector<EngineCase> EngineBench::Cases(const BenchOptions& options) {
  std::vector<EngineCase> cases;
  for (const int32_t batch : options.batches) {
    for (const Sampling& sampling : Samplings()) {
      EngineCase added;
      added.batch = batch;
      added.sampling = sampling.name;
      added.params = sampling.params;
      cases.push_back(std::move(added));
    }
  }
  return cases;
}

absl::Status EngineBench::Measure(int64_t steps, EngineCase* result) {
  GenerationRequest request;
  request.prompt = {1};
  request.sampling = result->params;
  request.ignore_eos = true;
  request.max_tokens = std::min(steps, kStreamCapacity / 2);
  const StepTimes before = engine_->stats().step_times;
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (int32_t i = 0; i < result->batch; ++i) {
    request.sampling.seed = static_cast<uint64_t>(i);
    absl::StatusOr<std::shared_ptr<TokenStream>> stream = engine_->Submit(request);
    if (!stream.ok()) return stream.status();
    streams.push_back(*std::move(stream));
  }
  absl::Status status;
  for (const auto& stream : streams) {
    absl::Status end = ReadToEnd(stream.get());
    if (status.ok()) status = std::move(end);
  }
  if (!status.ok()) return status;

  // A last step may come too late for this sample and count in the next one.
  const StepTimes after = engine_->stats().step_times;
  const auto count = static_cast<double>(after.steps - before.steps);
  const double total = Seconds(after.total() - before.total());
  result->seconds.push_back(total / count);
  result->plan.push_back(Seconds(after.plan - before.plan) / total);
  result->admit.push_back(Seconds(after.admit - before.admit) / total);
  result->results.push_back(Seconds(after.results - before.results) / total);
  result->overhead.push_back(1 - Seconds(after.forward - before.forward) / total);
  return absl::OkStatus();
}

}  // namespace osdn::tools
