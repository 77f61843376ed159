// What the server tells Prometheus. Names and meanings: docs/api.md, "Metrics".
#ifndef OSDN_SERVER_METRICS_H_
#define OSDN_SERVER_METRICS_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "engine/engine_observer.h"
#include "engine/engine_stats.h"
#include "engine/state_store.h"

namespace osdn {

// Thread-safe. Counting costs a fraction of a microsecond; gauges are read when somebody asks.
class Metrics final : public EngineObserver {
 public:
  // What gauges and the engine's own counters are read from.
  struct Reading {
    EngineStats engine{};
    int64_t slots = 0;
    int64_t slot_bytes = 0;
    StateStore::Usage store{};
    int64_t transit_bytes = 0;
    std::string model{};
    std::string backend{};
  };

  Metrics();
  ~Metrics();

  // From now on gauges come from `source`, which is thread-safe and lives as long as this; nullopt
  // while there is no model.
  void SetSource(std::function<std::optional<Reading>()> source);

  // A call has ended. `method` and `code` are of fixed sets, never what a client sent.
  void CallDone(absl::string_view method, absl::string_view code, absl::Duration duration);
  // A request was in the queue for so long.
  void Queued(std::chrono::nanoseconds time);
  // A request was refused before it cost anything: "queue_full", "state_bytes", "unauthenticated",
  // "permission", "rate".
  void Rejected(absl::string_view reason);

  void OnStep(const StepReport& step) override;
  void OnToken(bool first, std::chrono::nanoseconds since) override;
  void OnNonFinite() override;

  // The text format, version 0.0.4.
  std::string Text() const;

 private:
  struct Series;
  const std::unique_ptr<Series> series_;
};

}  // namespace osdn

#endif  // OSDN_SERVER_METRICS_H_
