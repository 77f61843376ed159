// Gauges of a running engine.
#ifndef OSDN_ENGINE_ENGINE_STATS_H_
#define OSDN_ENGINE_ENGINE_STATS_H_

#include <chrono>
#include <cstdint>

namespace osdn {

// Counters since the start, and what the prefix cache holds now.
struct PrefixCacheStats {
  int64_t queries = 0;  // prompts that asked
  int64_t hits = 0;     // of them, those that found a part
  int64_t cached_tokens = 0;
  int64_t evictions = 0;
  int64_t images = 0;
  int64_t bytes = 0;
};

// Where the loop's time goes, summed over all steps that ran a batch. What the model does not spend
// (forward) is the scheduler's own cost.
struct StepTimes {
  int64_t steps = 0;
  std::chrono::nanoseconds plan{0};     // taking orders, ending what is due, planning
  std::chrono::nanoseconds admit{0};    // slots: swaps, starts, copies; packing the batch
  std::chrono::nanoseconds forward{0};  // StepExecutor::Forward
  std::chrono::nanoseconds results{0};  // sampling, text, streams, captures, ends

  std::chrono::nanoseconds total() const { return plan + admit + forward + results; }
};

// A request counts as queued until it has a slot, then as running until it ends, once for each
// choice from the time that its prompt is read; by the time a choice's GenerationFinished can be
// read it counts nowhere.
struct EngineStats {
  int64_t running = 0;  // the swapped ones too
  int64_t swapped =
      0;  // without a slot: until their readers catch up, or choices until one is free
  int64_t queued = 0;
  int64_t queued_tokens = 0;  // input tokens of the queued
  int64_t slots_used = 0;
  PrefixCacheStats prefix_cache{};
  StepTimes step_times{};
};

}  // namespace osdn

#endif  // OSDN_ENGINE_ENGINE_STATS_H_
