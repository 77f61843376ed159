// Flags of a generation: sampling and stops, the same for generate and chat, and the line that sums
// a generation up.
#ifndef OSDN_TOOLS_GENERATION_FLAGS_H_
#define OSDN_TOOLS_GENERATION_FLAGS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "osdn/v1/inference.pb.h"

namespace CLI {
class App;
}  // namespace CLI

namespace osdn::tools {

// What is not given is left to the server, which also checks the ranges.
struct GenerationFlags {
  std::optional<uint32_t> max_tokens;
  std::optional<uint32_t> min_tokens;
  std::optional<float> temperature;
  std::optional<uint32_t> top_k;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<float> typical_p;
  std::optional<float> repetition_penalty;
  std::optional<float> presence_penalty;
  std::optional<float> frequency_penalty;
  std::optional<uint32_t> penalty_window;
  std::vector<std::pair<uint32_t, float>> logit_bias;
  std::optional<uint64_t> seed;
  std::vector<std::string> stop;
  std::vector<uint32_t> stop_ids;
  bool ignore_eos = false;
};

// `flags` must outlive the parse.
void AddGenerationFlags(CLI::App* command, GenerationFlags* flags);

// What only a single completion can ask for.
struct OutputFlags {
  std::optional<uint32_t> choices;
  bool logprobs = false;
  uint32_t top_logprobs = 0;
  bool echo = false;
};
void AddOutputFlags(CLI::App* command, OutputFlags* flags);
void ApplyOutputFlags(const OutputFlags& flags, v1::GenerateRequest* request);

// Fills request->sampling and request->stop.
void ApplyGenerationFlags(const GenerationFlags& flags, v1::GenerateRequest* request);

// "stop", "stop_string", "length", ...
std::string FinishReasonName(v1::FinishReason reason);
// New tokens a second after the first; 0 when there were fewer than two.
double DecodeTokensPerSecond(const v1::Finished& finished);
// One line, without a newline.
std::string StatsLine(const v1::Finished& finished);

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_GENERATION_FLAGS_H_
