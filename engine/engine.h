// The façade: one model on one backend, requests in, token streams out.
#ifndef OSDN_ENGINE_ENGINE_H_
#define OSDN_ENGINE_ENGINE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/generation.h"
#include "engine/model_config.h"
#include "engine/token_stream.h"
#include "engine/tokenizer.h"
#include "kernels/backend.h"

namespace osdn {

struct EngineOptions {
  std::string model_dir;
  kernels::BackendOptions backend;
  int32_t max_slots = 32;             // sequences that run at once
  int64_t max_prefill_tokens = 256;   // prompt tokens a step while others decode
  int64_t max_queued_requests = 256;  // beyond: RESOURCE_EXHAUSTED at Submit
  int64_t max_queued_tokens = 1 << 20;
  bool verify_checksums = true;
};

struct EngineInfo {
  std::string backend;         // name
  std::string backend_detail;  // Backend::Describe()
  std::string backend_reason;
  size_t state_bytes_per_slot = 0;
  int32_t slots = 0;
  size_t weight_bytes = 0;
};

struct EngineStats {
  int64_t running = 0;
  int64_t queued = 0;
  int64_t queued_tokens = 0;
  int64_t slots_used = 0;
};

// Thread-safe. Owns the loop thread, which alone touches model, slots and scratch.
class Engine {
 public:
  // Loads everything; errors name file, key or tensor (see LoadModelConfig, Weights, CreateBackend).
  static absl::StatusOr<std::unique_ptr<Engine>> Create(const EngineOptions& options);
  // Cancels what is left and joins the loop.
  ~Engine();

  const ModelConfig& config() const;
  const EngineInfo& info() const;
  EngineStats stats() const;
  // Null for a model without a tokenizer.
  const Tokenizer* tokenizer() const;

  // Everything wrong with a request, all at once, with field names as in osdn.v1.GenerateRequest.
  std::vector<FieldViolation> Validate(const GenerationRequest& request) const;

  // INVALID_ARGUMENT (see Validate), RESOURCE_EXHAUSTED when the queue is full (nothing is kept),
  // UNAVAILABLE after Drain began.
  absl::StatusOr<std::shared_ptr<TokenStream>> Submit(GenerationRequest request);

  // Takes no new requests and waits until the running and queued ones are done or `timeout` passed;
  // what is left then ends with kError / UNAVAILABLE. Idempotent.
  void Drain(std::chrono::milliseconds timeout);

 private:
  class Loop;
  explicit Engine(std::unique_ptr<Loop> loop);

  std::unique_ptr<Loop> loop_;
};

}  // namespace osdn

#endif  // OSDN_ENGINE_ENGINE_H_
