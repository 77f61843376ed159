// Lets tests/e2e/test_sampler_numpy.py look inside: reads one JSON request a line from standard
// input ({"logits": [...] or null for -inf, "params": {...}, "prompt": [...], "completion": [...],
// "draws": n, "choice": c}) and answers with a line of JSON: what the sampler draws from ("tokens",
// "weights") and the tokens of `draws` draws ("drawn").
#include <iostream>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>

#include "engine/logits.h"
#include "engine/sampler.h"

namespace osdn {
namespace {

using Json = nlohmann::json;

SamplingParams ReadParams(const Json& json) {
  SamplingParams params;
  params.temperature = json.value("temperature", 1.0F);
  params.top_k = json.value("top_k", 0);
  params.top_p = json.value("top_p", 1.0F);
  params.min_p = json.value("min_p", 0.0F);
  params.typical_p = json.value("typical_p", 1.0F);
  params.repetition_penalty = json.value("repetition_penalty", 1.0F);
  params.presence_penalty = json.value("presence_penalty", 0.0F);
  params.frequency_penalty = json.value("frequency_penalty", 0.0F);
  params.penalty_window = json.value("penalty_window", int64_t{1024});
  params.seed = json.value("seed", uint64_t{0});
  const Json biases = json.value("logit_bias", Json::object());
  for (const auto& item : biases.items()) {
    params.logit_bias.push_back({std::stoi(item.key()), item.value().get<float>()});
  }
  return params;
}

Json Answer(const Json& request) {
  const SamplingParams params = ReadParams(request.at("params"));
  std::vector<float> logits;
  for (const Json& logit : request.at("logits")) {
    logits.push_back(logit.is_null() ? -std::numeric_limits<float>::infinity()
                                     : logit.get<float>());
  }
  PenaltyWindow window(params.penalty_window,
                       request.value("prompt", Json::array()).get<std::vector<int32_t>>());
  for (const Json& token : request.value("completion", Json::array())) window.Add(token);
  window.Apply(params, absl::MakeSpan(logits));
  ApplyLogitBias(params.logit_bias, absl::MakeSpan(logits));

  Sampler sampler;
  Json answer;
  const auto distribution = sampler.Distribution(logits, params);
  if (!distribution.ok()) return {{"error", distribution.status().ToString()}};
  for (const Candidate& candidate : *distribution) {
    answer["tokens"].push_back(candidate.token);
    answer["weights"].push_back(candidate.weight);
  }
  answer["drawn"] = Json::array();
  const uint32_t choice = request.value("choice", uint32_t{0});
  for (uint64_t i = 0; i < request.value("draws", uint64_t{0}); ++i) {
    answer["drawn"].push_back(*sampler.Sample(logits, params, {.index = i, .choice = choice}));
  }
  return answer;
}

}  // namespace
}  // namespace osdn

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    std::cout << osdn::Answer(nlohmann::json::parse(line)) << std::endl;
  }
  return 0;
}
