#include "tools/generation_flags.h"

#include <CLI/CLI.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace osdn::tools {
namespace {

constexpr char kGroup[] = "Generation";

// ID=BIAS
std::pair<uint32_t, float> ParseLogitBias(const std::string& text) {
  const std::vector<std::string> parts = absl::StrSplit(text, '=');
  std::pair<uint32_t, float> bias;
  if (parts.size() != 2 || !absl::SimpleAtoi(parts[0], &bias.first) ||
      !absl::SimpleAtof(parts[1], &bias.second)) {
    throw CLI::ValidationError(
        "--logit-bias",
        absl::StrCat("\"", text, "\" is not ID=BIAS, for example 7=-100 or 7=-inf"));
  }
  return bias;
}

}  // namespace

void AddGenerationFlags(CLI::App* command, GenerationFlags* flags) {
  const auto add = [&](const char* name, auto* value, const char* help) {
    return command->add_option(name, *value, help)->group(kGroup);
  };
  add("--max-tokens", &flags->max_tokens, "Most new tokens (default: the server's)");
  add("--min-tokens", &flags->min_tokens, "Fewest new tokens before anything may end them");
  add("--temperature", &flags->temperature, "0 is greedy (default 1)");
  add("--top-k", &flags->top_k, "Sample from the k likeliest tokens; 0 is all of them (default)");
  add("--top-p", &flags->top_p, "Sample from the likeliest tokens of this total probability");
  add("--min-p", &flags->min_p, "Drop tokens less likely than this share of the likeliest one");
  add("--typical-p", &flags->typical_p,
      "Sample from the tokens of typical surprise, of this total probability");
  add("--repetition-penalty", &flags->repetition_penalty,
      "Above 1: tokens of prompt and completion become less likely");
  add("--presence-penalty", &flags->presence_penalty,
      "Above 0: tokens of the completion become less likely");
  add("--frequency-penalty", &flags->frequency_penalty, "The same, once for each time");
  add("--penalty-window", &flags->penalty_window, "Last tokens that penalties look at");
  const auto add_bias = [flags](const std::vector<std::string>& texts) {
    for (const std::string& text : texts) flags->logit_bias.push_back(ParseLogitBias(text));
  };
  command
      ->add_option_function<std::vector<std::string>>(
          "--logit-bias", add_bias, "ID=BIAS, added to the token's logit; may be given again")
      ->allow_extra_args(false)
      ->group(kGroup);
  add("--seed", &flags->seed, "Same seed, same tokens (default: drawn by the server)");
  add("--stop", &flags->stop, "End before this text; may be given again")->allow_extra_args(false);
  add("--stop-id", &flags->stop_ids, "End at this token; may be given again")
      ->allow_extra_args(false);
  command->add_flag("--ignore-eos", flags->ignore_eos, "Go on after an end-of-text token")
      ->group(kGroup);
}

void ApplyGenerationFlags(const GenerationFlags& flags, v1::GenerateRequest* request) {
  v1::SamplingParams* sampling = request->mutable_sampling();
  if (flags.temperature.has_value()) sampling->set_temperature(*flags.temperature);
  if (flags.top_k.has_value()) sampling->set_top_k(*flags.top_k);
  if (flags.top_p.has_value()) sampling->set_top_p(*flags.top_p);
  if (flags.min_p.has_value()) sampling->set_min_p(*flags.min_p);
  if (flags.typical_p.has_value()) sampling->set_typical_p(*flags.typical_p);
  if (flags.repetition_penalty.has_value()) {
    sampling->set_repetition_penalty(*flags.repetition_penalty);
  }
  if (flags.presence_penalty.has_value()) sampling->set_presence_penalty(*flags.presence_penalty);
  if (flags.frequency_penalty.has_value()) {
    sampling->set_frequency_penalty(*flags.frequency_penalty);
  }
  if (flags.penalty_window.has_value()) sampling->set_penalty_window(*flags.penalty_window);
  for (const auto& [token, value] : flags.logit_bias) {
    v1::LogitBias* bias = sampling->add_logit_bias();
    bias->set_token_id(token);
    bias->set_bias(value);
  }
  if (flags.seed.has_value()) sampling->set_seed(*flags.seed);
  v1::StopConditions* stop = request->mutable_stop();
  if (flags.max_tokens.has_value()) stop->set_max_tokens(*flags.max_tokens);
  if (flags.min_tokens.has_value()) stop->set_min_tokens(*flags.min_tokens);
  if (flags.ignore_eos) stop->set_ignore_eos(true);
  for (const std::string& text : flags.stop) stop->add_stop_strings(text);
  for (const uint32_t id : flags.stop_ids) stop->add_stop_token_ids(id);
}

void AddOutputFlags(CLI::App* command, OutputFlags* flags) {
  command->add_option("--n", flags->choices, "Completions of the one prompt (default 1)")
      ->group(kGroup);
  command
      ->add_flag("--logprobs", flags->logprobs,
                 "With --json: each token's logprob in the model's own distribution")
      ->group(kGroup);
  command->add_option("--top-logprobs", flags->top_logprobs, "And of so many likeliest tokens")
      ->needs("--logprobs")
      ->group(kGroup);
  command->add_flag("--echo", flags->echo, "The prompt comes before the completion")->group(kGroup);
}

void ApplyOutputFlags(const OutputFlags& flags, v1::GenerateRequest* request) {
  if (flags.choices.has_value()) request->mutable_sampling()->set_n(*flags.choices);
  v1::OutputOptions* output = request->mutable_output();
  output->set_logprobs(flags.logprobs);
  output->set_top_logprobs(flags.top_logprobs);
  output->set_echo(flags.echo);
}

std::string FinishReasonName(v1::FinishReason reason) {
  const std::string& name = v1::FinishReason_Name(reason);
  if (name.empty()) return absl::StrCat("reason ", static_cast<int>(reason));
  return absl::AsciiStrToLower(absl::StripPrefix(name, "FINISH_REASON_"));
}

double DecodeTokensPerSecond(const v1::Finished& finished) {
  const uint64_t tokens = finished.usage().completion_tokens();
  const double seconds = finished.timings().decode_ms() / 1000;
  return tokens < 2 || seconds <= 0 ? 0 : static_cast<double>(tokens - 1) / seconds;
}

std::string StatsLine(const v1::Finished& finished) {
  const v1::Usage& usage = finished.usage();
  std::string line = absl::StrFormat("%d prompt tokens", usage.prompt_tokens());
  if (usage.cached_tokens() > 0)
    absl::StrAppendFormat(&line, " (%d cached)", usage.cached_tokens());
  absl::StrAppendFormat(&line, ", %d new", usage.completion_tokens());
  if (const double rate = DecodeTokensPerSecond(finished); rate > 0) {
    absl::StrAppendFormat(&line, ", %.1f tokens/s", rate);
  }
  absl::StrAppendFormat(&line, ", first token after %.1f ms, finish: %s",
                        finished.timings().time_to_first_token_ms(),
                        FinishReasonName(finished.finish_reason()));
  if (!finished.stop_string().empty()) {
    absl::StrAppendFormat(&line, " \"%s\"", absl::CHexEscape(finished.stop_string()));
  }
  return line;
}

}  // namespace osdn::tools
