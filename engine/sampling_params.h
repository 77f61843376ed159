// How a request wants its tokens chosen, and what may be asked for.
#ifndef OSDN_ENGINE_SAMPLING_PARAMS_H_
#define OSDN_ENGINE_SAMPLING_PARAMS_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace osdn {

inline constexpr size_t kMaxLogitBiases = 1024;
inline constexpr int64_t kMaxPenaltyWindow = 8192;

struct LogitBias {
  int32_t token = 0;
  float bias = 0.0F;  // added to the logit: [-100, 100], or -inf, which rules the token out
};

// Neutral defaults: plain sampling from the model's distribution.
struct SamplingParams {
  float temperature = 1.0F;             // 0 = greedy; otherwise (0, 100]
  int32_t top_k = 0;                    // 0 = off
  float top_p = 1.0F;                   // (0, 1]; 1 = off
  float min_p = 0.0F;                   // [0, 1]; 0 = off
  float typical_p = 1.0F;               // (0, 1]; 1 = off
  float repetition_penalty = 1.0F;      // (0, 10]; 1 = off
  float presence_penalty = 0.0F;        // [-2, 2]
  float frequency_penalty = 0.0F;       // [-2, 2]
  int64_t penalty_window = 1024;        // last tokens that penalties look at: [1, 8192]
  std::vector<LogitBias> logit_bias{};  // at most kMaxLogitBiases, each token once
  uint64_t seed = 0;

  bool has_penalties() const {
    return repetition_penalty != 1.0F || presence_penalty != 0.0F || frequency_penalty != 0.0F;
  }
};

// One problem of a request, for google.rpc.BadRequest: `field` is the field's name in the API.
struct FieldViolation {
  std::string field;
  std::string description;  // the value and the range
};

// All violations at once; empty when valid. Of many bad biases the first 16 are told.
std::vector<FieldViolation> ValidateSampling(const SamplingParams& params, int64_t vocab_size);

}  // namespace osdn

#endif  // OSDN_ENGINE_SAMPLING_PARAMS_H_
