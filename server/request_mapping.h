// osdn.v1 messages to and from the engine's types.
#ifndef OSDN_SERVER_REQUEST_MAPPING_H_
#define OSDN_SERVER_REQUEST_MAPPING_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/types/span.h"
#include "engine/generation.h"
#include "engine/model_config.h"
#include "engine/tokenizer.h"
#include "osdn/v1/inference.pb.h"

namespace osdn {

// What a request is read against.
struct RequestContext {
  const ModelConfig* config = nullptr;
  const Tokenizer* tokenizer = nullptr;  // null where the model has none
  int64_t max_tokens_default = 0;
  int64_t max_tokens_limit = 0;
  uint64_t drawn_seed = 0;                           // for a request without one
  std::shared_ptr<const SequenceSnapshot> resume{};  // what request.state.from is
  bool prompt_only = false;  // read the prompt, generate nothing, leave a state
};

// The request in the engine's terms, defaults filled in. What has no meaning there (no prompt, text
// without a tokenizer, an unknown role, numbers that do not fit, more tokens than the server
// allows) is added to `violations`; the rest is for Engine::Validate.
GenerationRequest ToGenerationRequest(const v1::GenerateRequest& request,
                                      const RequestContext& context,
                                      std::vector<FieldViolation>* violations);

// Adds those of `more` that speak of fields which `violations` does not speak of: a field that
// could not be converted has no meaning to the engine.
void MergeViolations(std::vector<FieldViolation> more, std::vector<FieldViolation>* violations);

// Ids from the wire: all in the vocabulary, else violations of "<field>[i]" (the first 16).
std::vector<int32_t> ToTokenIds(absl::Span<const uint32_t> ids, absl::string_view field,
                                int64_t vocab_size, std::vector<FieldViolation>* violations);

v1::FinishReason ToProto(FinishReason reason);
// `tokenizer` (may be null) tells the tokens' bytes.
v1::TokenLogprob ToProto(const TokenLogprob& logprob, const Tokenizer* tokenizer);
v1::Usage ToUsage(const GenerationFinished& finished);
v1::Timings ToTimings(const GenerationTimings& timings);
// What is in force, every field set.
v1::ResolvedParams ToResolvedParams(const GenerationRequest& request);

}  // namespace osdn

#endif  // OSDN_SERVER_REQUEST_MAPPING_H_
