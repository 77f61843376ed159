#include "server/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <string>

namespace osdn {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;
using testing::Not;

TEST(MetricsTest, HasEveryMetricOfTheContract) {
  Metrics metrics;
  metrics.SetSource([] { return Metrics::Reading{.model = "tiny", .backend = "cpu"}; });
  metrics.CallDone("/osdn.v1.InferenceService/Generate", "OK", absl::Milliseconds(20));
  metrics.Rejected("queue_full");
  const std::string text = metrics.Text();
  for (const char* name : {"osdn_requests_total{",
                           "osdn_requests_running ",
                           "osdn_requests_queued ",
                           "osdn_time_to_first_token_seconds_bucket",
                           "osdn_inter_token_latency_seconds_bucket",
                           "osdn_request_queue_seconds_bucket",
                           "osdn_request_duration_seconds_bucket",
                           "osdn_prompt_tokens_total ",
                           "osdn_generation_tokens_total ",
                           "osdn_prefix_cache_queries_total ",
                           "osdn_prefix_cache_hits_total ",
                           "osdn_prefix_cache_cached_tokens_total ",
                           "osdn_state_slots_used ",
                           "osdn_state_slots_total ",
                           "osdn_state_bytes{tier=\"slots\"}",
                           "osdn_state_evictions_total{tier=\"store\",reason=\"expired\"}",
                           "osdn_batch_size_bucket",
                           "osdn_step_seconds_bucket{phase=\"forward\"",
                           "osdn_nonfinite_total ",
                           "osdn_rejected_total{reason=\"queue_full\"} 1",
                           "osdn_build_info{"}) {
    EXPECT_THAT(text, HasSubstr(name));
  }
}

TEST(MetricsTest, CountsWhatItIsTold) {
  Metrics metrics;
  metrics.OnToken(true, milliseconds(80));
  metrics.OnToken(false, milliseconds(3));
  metrics.OnToken(false, milliseconds(4));
  metrics.OnStep({.decode_rows = 3, .prefill_rows = 64, .times = {.forward = milliseconds(2)}});
  metrics.OnStep({.decode_rows = 0, .prefill_rows = 10, .times = {.forward = milliseconds(2)}});
  metrics.OnNonFinite();
  for (int i = 0; i < 2; ++i) metrics.CallDone("m", "CANCELLED", absl::Seconds(1));
  const std::string text = metrics.Text();
  EXPECT_THAT(text, HasSubstr("osdn_generation_tokens_total 3\n"));
  EXPECT_THAT(text, HasSubstr("osdn_prompt_tokens_total 74\n"));
  EXPECT_THAT(text, HasSubstr("osdn_time_to_first_token_seconds_count 1\n"));
  EXPECT_THAT(text, HasSubstr("osdn_inter_token_latency_seconds_count 2\n"));
  EXPECT_THAT(text, HasSubstr("osdn_batch_size_sum 3\n"));
  EXPECT_THAT(text, HasSubstr("osdn_step_seconds_count{phase=\"forward\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("osdn_nonfinite_total 1\n"));
  EXPECT_THAT(text, HasSubstr("osdn_requests_total{code=\"CANCELLED\",method=\"m\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("osdn_request_duration_seconds_count{method=\"m\"} 2\n"));
}

TEST(MetricsTest, ReadsGaugesWhenAsked) {
  Metrics metrics;
  EXPECT_THAT(metrics.Text(), Not(HasSubstr("osdn_state_slots_total")));  // no model yet
  Metrics::Reading reading{.slots = 4, .slot_bytes = 1000};
  metrics.SetSource([&] { return reading; });
  reading.engine.running = 2;
  reading.store.expired = 5;
  const std::string text = metrics.Text();
  EXPECT_THAT(text, HasSubstr("osdn_requests_running 2\n"));
  EXPECT_THAT(text, HasSubstr("osdn_state_bytes{tier=\"slots\"} 4000\n"));
  EXPECT_THAT(text, HasSubstr("osdn_state_evictions_total{tier=\"store\",reason=\"expired\"} 5\n"));
}

}  // namespace
}  // namespace osdn
