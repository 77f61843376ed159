// From one row of logits to one token.
#ifndef OSDN_ENGINE_SAMPLER_H_
#define OSDN_ENGINE_SAMPLER_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/sampling_params.h"

namespace osdn {

// Which token of which choice is drawn: the counter of its random number.
struct DrawPlace {
  uint64_t index = 0;   // position in the completion
  uint32_t choice = 0;  // of the request's n
};

// Uniform in [0, 1) with 53 bits: Philox4x32-10 keyed by `seed`, counter `place`.
double UniformAt(uint64_t seed, const DrawPlace& place);

// A token that may be drawn; weights are not normalised.
struct Candidate {
  int32_t token;
  float weight;
};

// Reusable scratch; one a thread. The result depends on (logits, params, place) only, so batch
// composition and timing cannot matter.
//
// Order: temperature, top_k, typical_p, top_p, min_p, each on what the one before left; ties go to
// the lower id. Greedy takes the lowest id of the largest logit. Every step is linear in the
// vocabulary but for a sort of the few tokens beside a threshold. Penalties, biases and masks come
// before (engine/logits.h).
class Sampler {
 public:
  // -inf masks a token. INTERNAL when a logit is NaN or +inf; FAILED_PRECONDITION when every token
  // is masked. `params` must be valid.
  absl::StatusOr<int32_t> Sample(absl::Span<const float> logits, const SamplingParams& params,
                                 const DrawPlace& place);
  // What Sample draws from, by id: all that has a weight above 0.
  absl::StatusOr<std::vector<Candidate>> Distribution(absl::Span<const float> logits,
                                                      const SamplingParams& params);

  // Scratch for a processed copy of a row; valid until the next call.
  absl::Span<float> CopyRow(absl::Span<const float> logits) {
    row_.assign(logits.begin(), logits.end());
    return absl::MakeSpan(row_);
  }

 private:
  static constexpr int kBinShift = 20;
  static constexpr size_t kBins = size_t{1} << (32 - kBinShift);

  // The ids and weights that are left, by id, in ids_ and weights_.
  void Filter(absl::Span<const float> logits, float peak, const SamplingParams& params);
  void KeepTopK(absl::Span<const float> logits, size_t k);
  void KeepTypical(absl::Span<const float> logits, float peak, const SamplingParams& params);
  void KeepTopP(double top_p);
  void KeepMinP(float min_p);
  // Keeps the candidates of the largest keys_ (ties: the first) until their mass reaches `wanted`;
  // all where it never does. kCount: every candidate has mass 1; otherwise its weight.
  template <bool kCount>
  void KeepLargest(double wanted);
  double TotalWeight() const;

  std::vector<float> row_;
  std::vector<float> left_;
  std::vector<int32_t> ids_;
  std::vector<float> weights_;
  std::vector<double> block_sums_;
  std::vector<uint32_t> keys_;
  std::vector<double> bins_;
  std::vector<uint32_t> border_;
};

}  // namespace osdn

#endif  // OSDN_ENGINE_SAMPLER_H_
