#include "server/metrics.h"

#include <prometheus/collectable.h>
#include <prometheus/counter.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <mutex>
#include <utility>
#include <vector>

#include "server/version.h"

namespace osdn {
namespace {

using prometheus::Counter;
using prometheus::Family;
using prometheus::Histogram;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Labels = std::vector<prometheus::ClientMetric::Label>;
using Buckets = Histogram::BucketBoundaries;

double Seconds(std::chrono::nanoseconds time) {
  return std::chrono::duration<double>(time).count();
}

// From a token on a GPU to a long prompt on two cores.
Buckets TokenBuckets() {
  return {0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5};
}
Buckets RequestBuckets() {
  return {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300};
}
Buckets StepBuckets() {
  return {0.00001, 0.00005, 0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1};
}
Buckets BatchBuckets() { return {1, 2, 4, 8, 16, 32, 64, 128, 256, 512}; }

// Families that are made when somebody asks.
class Reader final : public prometheus::Collectable {
 public:
  void SetSource(std::function<std::optional<Metrics::Reading>()> source) {
    std::lock_guard<std::mutex> lock(mutex_);
    source_ = std::move(source);
  }

  std::vector<MetricFamily> Collect() const override {
    std::vector<MetricFamily> families;
    std::function<std::optional<Metrics::Reading>()> source;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      source = source_;
    }
    const std::optional<Metrics::Reading> reading = source ? source() : std::nullopt;
    families.push_back(Family("osdn_build_info", "The server's version, its model and backend.",
                              MetricType::Gauge));
    Add(1.0,
        {{"version", std::string(Version())},
         {"model", reading.has_value() ? reading->model : ""},
         {"backend", reading.has_value() ? reading->backend : ""}},
        &families.back());
    if (reading.has_value()) Fill(*reading, &families);
    return families;
  }

 private:
  static MetricFamily Family(const char* name, const char* help, MetricType type) {
    MetricFamily family;
    family.name = name;
    family.help = help;
    family.type = type;
    return family;
  }

  static void Add(double value, Labels labels, MetricFamily* family) {
    prometheus::ClientMetric metric;
    metric.label = std::move(labels);
    if (family->type == MetricType::Counter) {
      metric.counter.value = value;
    } else {
      metric.gauge.value = value;
    }
    family->metric.push_back(std::move(metric));
  }

  static void Fill(const Metrics::Reading& reading, std::vector<MetricFamily>* families) {
    const auto one = [&](const char* name, const char* help, MetricType type, int64_t value) {
      families->push_back(Family(name, help, type));
      Add(static_cast<double>(value), {}, &families->back());
    };
    const EngineStats& engine = reading.engine;
    const PrefixCacheStats& cache = engine.prefix_cache;
    one("osdn_requests_running", "Sequences that have begun and not ended, swapped ones too.",
        MetricType::Gauge, engine.running);
    one("osdn_requests_swapped", "Of them, without a slot: their readers do not read.",
        MetricType::Gauge, engine.swapped);
    one("osdn_requests_queued", "Requests that wait for a slot.", MetricType::Gauge, engine.queued);
    one("osdn_queued_tokens", "Prompt tokens of the requests that wait.", MetricType::Gauge,
        engine.queued_tokens);
    one("osdn_state_slots_used", "Slots that sequences have.", MetricType::Gauge,
        engine.slots_used);
    one("osdn_state_slots_total", "Slots there are.", MetricType::Gauge, reading.slots);
    one("osdn_prefix_cache_queries_total", "Prompts that were looked up.", MetricType::Counter,
        cache.queries);
    one("osdn_prefix_cache_hits_total", "Prompts of which a part was there.", MetricType::Counter,
        cache.hits);
    one("osdn_prefix_cache_cached_tokens_total", "Prompt tokens that were not read again.",
        MetricType::Counter, cache.cached_tokens);

    families->push_back(
        Family("osdn_state_bytes", "Bytes of states, by where they are.", MetricType::Gauge));
    const auto tier = [&](const char* name, int64_t bytes) {
      Add(static_cast<double>(bytes), {{"tier", name}}, &families->back());
    };
    tier("slots", reading.slots * reading.slot_bytes);
    tier("prefix_cache", static_cast<int64_t>(cache.bytes));
    tier("store", reading.store.bytes);
    tier("transit", reading.transit_bytes);

    families->push_back(Family("osdn_state_evictions_total",
                               "States that were given up, by where they were and why.",
                               MetricType::Counter));
    const auto evicted = [&](const char* name, const char* reason, int64_t count) {
      Add(static_cast<double>(count), {{"tier", name}, {"reason", reason}}, &families->back());
    };
    evicted("prefix_cache", "space", cache.evictions);
    evicted("store", "expired", reading.store.expired);
    one("osdn_saved_states", "States in the store.", MetricType::Gauge, reading.store.states);
  }

  mutable std::mutex mutex_;
  std::function<std::optional<Metrics::Reading>()> source_;
};

Histogram& MakeHistogram(prometheus::Registry* registry, const char* name, const char* help,
                         const Buckets& buckets) {
  return prometheus::BuildHistogram().Name(name).Help(help).Register(*registry).Add({}, buckets);
}

Counter& MakeCounter(prometheus::Registry* registry, const char* name, const char* help) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(*registry).Add({});
}

}  // namespace

struct Metrics::Series {
  prometheus::Registry registry;
  Reader reader;
  Family<Counter>& requests = prometheus::BuildCounter()
                                  .Name("osdn_requests_total")
                                  .Help("Calls that have ended, by method and status code.")
                                  .Register(registry);
  Family<Histogram>& durations = prometheus::BuildHistogram()
                                     .Name("osdn_request_duration_seconds")
                                     .Help("Calls from their arrival to their end.")
                                     .Register(registry);
  Family<Counter>& rejected = prometheus::BuildCounter()
                                  .Name("osdn_rejected_total")
                                  .Help("Calls that were refused before they cost anything.")
                                  .Register(registry);
  Family<Histogram>& steps = prometheus::BuildHistogram()
                                 .Name("osdn_step_seconds")
                                 .Help("Parts of the engine's steps.")
                                 .Register(registry);
  Histogram& queue =
      MakeHistogram(&registry, "osdn_request_queue_seconds",
                    "Requests from their submission to their slot.", RequestBuckets());
  Histogram& first_token =
      MakeHistogram(&registry, "osdn_time_to_first_token_seconds",
                    "Sequences from their submission to their first token.", RequestBuckets());
  Histogram& inter_token = MakeHistogram(&registry, "osdn_inter_token_latency_seconds",
                                         "From a token of a sequence to its next.", TokenBuckets());
  Histogram& batch = MakeHistogram(&registry, "osdn_batch_size", "Sequences that decode in a step.",
                                   BatchBuckets());
  Counter& prompt_tokens = MakeCounter(&registry, "osdn_prompt_tokens_total",
                                       "Prompt tokens that were read, cached ones not counted.");
  Counter& generation_tokens =
      MakeCounter(&registry, "osdn_generation_tokens_total", "Tokens that were generated.");
  Counter& nonfinite = MakeCounter(&registry, "osdn_nonfinite_total",
                                   "Sequences that ended because their logits were not finite.");
  Histogram& plan = steps.Add({{"phase", "plan"}}, StepBuckets());
  Histogram& admit = steps.Add({{"phase", "admit"}}, StepBuckets());
  Histogram& forward = steps.Add({{"phase", "forward"}}, StepBuckets());
  Histogram& results = steps.Add({{"phase", "results"}}, StepBuckets());
};

Metrics::Metrics() : series_(std::make_unique<Series>()) {}
Metrics::~Metrics() = default;

void Metrics::SetSource(std::function<std::optional<Reading>()> source) {
  series_->reader.SetSource(std::move(source));
}

void Metrics::CallDone(absl::string_view method, absl::string_view code, absl::Duration duration) {
  const std::string name(method);
  series_->requests.Add({{"method", name}, {"code", std::string(code)}}).Increment();
  series_->durations.Add({{"method", name}}, RequestBuckets())
      .Observe(absl::ToDoubleSeconds(duration));
}

void Metrics::Queued(std::chrono::nanoseconds time) { series_->queue.Observe(Seconds(time)); }

void Metrics::Rejected(absl::string_view reason) {
  series_->rejected.Add({{"reason", std::string(reason)}}).Increment();
}

void Metrics::OnStep(const StepReport& step) {
  series_->plan.Observe(Seconds(step.times.plan));
  series_->admit.Observe(Seconds(step.times.admit));
  series_->forward.Observe(Seconds(step.times.forward));
  series_->results.Observe(Seconds(step.times.results));
  if (step.decode_rows > 0) series_->batch.Observe(static_cast<double>(step.decode_rows));
  if (step.prefill_rows > 0) {
    series_->prompt_tokens.Increment(static_cast<double>(step.prefill_rows));
  }
}

void Metrics::OnToken(bool first, std::chrono::nanoseconds since) {
  series_->generation_tokens.Increment();
  (first ? series_->first_token : series_->inter_token).Observe(Seconds(since));
}

void Metrics::OnNonFinite() { series_->nonfinite.Increment(); }

std::string Metrics::Text() const {
  std::vector<MetricFamily> families = series_->registry.Collect();
  for (MetricFamily& family : series_->reader.Collect()) families.push_back(std::move(family));
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace osdn
