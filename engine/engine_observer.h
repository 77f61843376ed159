// What the engine's loop tells whoever measures it, as it happens.
#ifndef OSDN_ENGINE_ENGINE_OBSERVER_H_
#define OSDN_ENGINE_ENGINE_OBSERVER_H_

#include <chrono>
#include <cstdint>

#include "engine/engine_stats.h"

namespace osdn {

// One step of the loop.
struct StepReport {
  int64_t decode_rows = 0;
  int64_t prefill_rows = 0;
  StepTimes times{};  // of this step alone
};

// Called on the loop's thread, so every call must be short.
class EngineObserver {
 public:
  virtual void OnStep(const StepReport& step) = 0;
  // A token was chosen; `since` its sequence was submitted or, if it is not the first, since the
  // one before.
  virtual void OnToken(bool first, std::chrono::nanoseconds since) = 0;
  // A sequence ended because its logits were not finite.
  virtual void OnNonFinite() = 0;

 protected:
  ~EngineObserver() = default;
};

}  // namespace osdn

#endif  // OSDN_ENGINE_ENGINE_OBSERVER_H_
