// From one row of logits to one token.
#ifndef OSDN_ENGINE_SAMPLER_H_
#define OSDN_ENGINE_SAMPLER_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace osdn {

// Neutral defaults: plain sampling from the model's distribution.
struct SamplingParams {
  float temperature = 1.0F;  // 0 = greedy; otherwise (0, 100]
  int32_t top_k = 0;         // 0 = off
  float top_p = 1.0F;        // (0, 1]; 1 = off
  float min_p = 0.0F;        // [0, 1]; 0 = off
  uint64_t seed = 0;
};

// One problem of a request, for google.rpc.BadRequest: `field` is the field's name in the API.
struct FieldViolation {
  std::string field;
  std::string description;  // the value and the range
};

// All violations at once; empty when valid.
std::vector<FieldViolation> ValidateSampling(const SamplingParams& params);

// Uniform in [0, 1) with 53 bits: Philox4x32-10 keyed by `seed`, counter `index`.
double UniformAt(uint64_t seed, uint64_t index);

// Reusable scratch; one a thread. The result depends on (logits, params, index) only: random
// numbers are Philox4x32-10 keyed by params.seed with `index` (position of the token in the
// completion) as counter, so batch composition and timing cannot matter.
class Sampler {
 public:
  // Order: temperature, top_k, top_p, min_p (each on what the one before left); ties go to the
  // lower id. Greedy takes the lowest id of the largest logit. -inf masks a token. INTERNAL when no
  // logit is finite or any is NaN or +inf. `params` must be valid.
  absl::StatusOr<int32_t> Sample(absl::Span<const float> logits, const SamplingParams& params,
                                 uint64_t index);

 private:
  // Unnormalised: the likeliest token has weight 1.
  struct Candidate {
    float weight;
    int32_t id;
  };
  static bool Before(const Candidate& a, const Candidate& b);

  void KeepTopK(size_t k);
  void KeepTopP(double top_p);
  void KeepMinP(float min_p);
  int32_t Draw(double uniform) const;

  std::vector<Candidate> candidates_;
};

}  // namespace osdn

#endif  // OSDN_ENGINE_SAMPLER_H_
