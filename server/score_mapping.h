// Score requests in terms of Generate's, and what they have beyond those.
#ifndef OSDN_SERVER_SCORE_MAPPING_H_
#define OSDN_SERVER_SCORE_MAPPING_H_

#include <cstddef>
#include <vector>

#include "engine/generation.h"
#include "osdn/v1/inference.pb.h"
#include "server/request_mapping.h"

namespace osdn {

// Text that one request may have tokenized: a prompt is tokenized with each of its continuations.
inline constexpr size_t kMaxScoredBytes = size_t{16} << 20;

// The prompt of a Score, as Generate takes it.
v1::GenerateRequest ToGenerateRequest(const v1::ScoreRequest& score);

// Adds the continuations to `request`, which is the mapped ToGenerateRequest(score). Violations as
// ToGenerationRequest's.
void ReadContinuations(const v1::ScoreRequest& score, const RequestContext& context,
                       GenerationRequest* request, std::vector<FieldViolation>* violations);

// Adds tokens of a continuation to its score.
void AddToScore(const TokenDelta& delta, const Tokenizer* tokenizer, v1::ContinuationScore* score);

}  // namespace osdn

#endif  // OSDN_SERVER_SCORE_MAPPING_H_
