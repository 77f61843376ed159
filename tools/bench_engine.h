// The engine around the model: what its loop costs beside the forward passes.
#ifndef OSDN_TOOLS_BENCH_ENGINE_H_
#define OSDN_TOOLS_BENCH_ENGINE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "tools/bench.h"

namespace osdn::tools {

// Decodes through Engine::Submit, as the server does, without the server: `batch` requests of one
// token that run together from the second step on. Used by one thread.
class EngineBench {
 public:
  // Loads the model anew. Errors: Engine::Create's.
  static absl::StatusOr<std::unique_ptr<EngineBench>> Create(const BenchOptions& options);

  // The cases to be measured: every batch with every kind of sampling.
  static std::vector<EngineCase> Cases(const BenchOptions& options);
  // One sample of about `steps` steps, which is at least 2.
  absl::Status Measure(int64_t steps, EngineCase* result);

 private:
  explicit EngineBench(std::unique_ptr<Engine> engine) : engine_(std::move(engine)) {}

  std::unique_ptr<Engine> engine_;
};

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_BENCH_ENGINE_H_
