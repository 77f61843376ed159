// The façade: one model on one backend, requests in, token streams out.
#ifndef OSDN_ENGINE_ENGINE_H_
#define OSDN_ENGINE_ENGINE_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/constraint_compiler.h"
#include "engine/engine_observer.h"
#include "engine/engine_stats.h"
#include "engine/generation.h"
#include "engine/model_config.h"
#include "engine/token_stream.h"
#include "engine/tokenizer.h"
#include "kernels/backend.h"

namespace osdn {

class EngineLoop;
class ModelExecutor;

struct EngineOptions {
  std::string model_dir;
  kernels::BackendOptions backend;
  int32_t max_slots = 32;            // sequences that run at once
  int64_t max_prefill_tokens = 256;  // prompt tokens a step while others decode; >= kernels::kChunk
  int64_t max_queued_requests = 256;    // beyond: RESOURCE_EXHAUSTED at Submit
  int64_t max_queued_tokens = 1 << 20;  // prompt tokens; also the longest prompt
  int64_t stream_capacity = 256;  // events a reader may lag behind before its sequence sits out
  size_t prefix_cache_bytes = size_t{256} << 20;  // 0: no prefix cache
  int64_t prefix_cache_interval = 512;  // tokens between the states kept of a long prompt; a
                                        // multiple of kernels::kChunk
  int64_t max_swapped = 64;  // sequences of slow readers that may be parked while others wait
  std::chrono::milliseconds swap_after{200};  // of not reading, until a sequence may be parked
  EngineObserver* observer = nullptr;         // outlives the engine
  std::chrono::milliseconds ageing = std::chrono::seconds(10);  // a priority class for every so
                                                                // long in the queue
  bool verify_checksums = true;
};

struct EngineInfo {
  std::string backend;         // name
  std::string backend_detail;  // Backend::Describe()
  std::string backend_reason;
  size_t state_bytes_per_slot = 0;
  int32_t slots = 0;
  size_t weight_bytes = 0;       // mapped
  size_t model_extra_bytes = 0;  // repacked weights and scratch, beside the mapping
};

// Thread-safe. Owns the loop thread, which alone touches model, slots and scratch.
class Engine {
 public:
  // Loads everything; errors name file, key or tensor (see LoadModelConfig, Weights,
  // CreateBackend), or the option that is out of range.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(const EngineOptions& options);
  // Cancels what is left and joins the loop. Streams stay readable.
  ~Engine();

  const ModelConfig& config() const { return config_; }
  const EngineInfo& info() const { return info_; }
  EngineStats stats() const;
  // OK while requests are taken; else UNAVAILABLE and why (draining, or the backend failed: see
  // engine_loop.h).
  absl::Status health() const;
  // Null for a model without a tokenizer.
  const Tokenizer* tokenizer() const { return tokenizer_.get(); }

  // Everything wrong with a request, all at once, with field names as in osdn.v1.GenerateRequest.
  std::vector<FieldViolation> Validate(const GenerationRequest& request) const;

  // As ConstraintCompiler::Compile, which has a thread of its own; FAILED_PRECONDITION for a model
  // without a tokenizer. BeginConstraint puts the result into a request.
  void CompileConstraint(ConstraintSpec spec, ConstraintCompiler::Wanted wanted,
                         ConstraintCompiler::Done done) const;

  // INVALID_ARGUMENT (see Validate), FAILED_PRECONDITION (see CheckContinuation),
  // RESOURCE_EXHAUSTED when the queue is full (nothing is kept), UNAVAILABLE after Drain began or
  // the backend failed for good.
  absl::StatusOr<std::shared_ptr<TokenStream>> Submit(GenerationRequest request);

  // Takes no new requests and waits until the running and queued ones are done or `timeout` passed;
  // what is left then ends: with kDrained and its state if it has begun to answer, else with kError
  // / UNAVAILABLE. Idempotent.
  void Drain(std::chrono::milliseconds timeout);

 private:
  Engine(ModelConfig config, std::unique_ptr<Tokenizer> tokenizer,
         std::unique_ptr<ModelExecutor> executor);
  void MakeConstraintCompiler();
  void Start(const EngineOptions& options, std::string backend_reason);

  ModelConfig config_;
  EngineInfo info_;
  GenerationLimits limits_;
  // In order of dependence: each outlives what is below it.
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<ModelExecutor> executor_;
  std::unique_ptr<EngineLoop> loop_;
  std::unique_ptr<ConstraintCompiler> constraints_;  // null without a tokenizer
};

}  // namespace osdn

#endif  // OSDN_ENGINE_ENGINE_H_
