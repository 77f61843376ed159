// Reads a token stream to its end.
#ifndef OSDN_TESTS_UNIT_ENGINE_STREAM_READER_H_
#define OSDN_TESTS_UNIT_ENGINE_STREAM_READER_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/generation.h"
#include "engine/token_stream.h"

namespace osdn::testing_support {

// All deltas put together, and the end.
struct Outcome {
  std::string text;
  std::vector<int32_t> ids;
  std::vector<TokenLogprob> logprobs;
  std::vector<int64_t> progress;
  GenerationFinished finished;
};

inline Outcome ReadAll(TokenStream* stream) {
  Outcome outcome;
  while (true) {
    GenerationEvent event = stream->Next();
    if (auto* finished = std::get_if<GenerationFinished>(&event)) {
      outcome.finished = *finished;
      EXPECT_FALSE(stream->TryNext().has_value()) << "something after GenerationFinished";
      return outcome;
    }
    if (auto* progress = std::get_if<PrefillProgress>(&event)) {
      outcome.progress.push_back(progress->processed_tokens);
    } else {
      const auto& delta = std::get<TokenDelta>(event);
      outcome.text += delta.text;
      outcome.ids.insert(outcome.ids.end(), delta.token_ids.begin(), delta.token_ids.end());
      outcome.logprobs.insert(outcome.logprobs.end(), delta.logprobs.begin(), delta.logprobs.end());
    }
  }
}

// A request of several choices: what each of the `count` came to.
inline std::vector<Outcome> ReadChoices(TokenStream* stream, size_t count) {
  std::vector<Outcome> outcomes(count);
  std::vector<bool> finished(count);
  while (true) {
    GenerationEvent event = stream->Next();
    if (auto* end = std::get_if<GenerationFinished>(&event)) {
      const auto choice = static_cast<size_t>(end->choice);
      EXPECT_FALSE(finished.at(choice)) << "choice " << choice << " finished twice";
      finished.at(choice) = true;
      outcomes[choice].finished = *end;
      const bool all = std::find(finished.begin(), finished.end(), false) == finished.end();
      EXPECT_EQ(end->last, all);
      if (!end->last) continue;
      EXPECT_FALSE(stream->TryNext().has_value()) << "something after the last event";
      return outcomes;
    }
    if (auto* progress = std::get_if<PrefillProgress>(&event)) {
      outcomes[0].progress.push_back(progress->processed_tokens);
    } else {
      const auto& delta = std::get<TokenDelta>(event);
      const auto choice = static_cast<size_t>(delta.choice);
      EXPECT_FALSE(finished.at(choice)) << "choice " << choice << " goes on after its end";
      outcomes[choice].text += delta.text;
      outcomes[choice].ids.insert(outcomes[choice].ids.end(), delta.token_ids.begin(),
                                  delta.token_ids.end());
      outcomes[choice].logprobs.insert(outcomes[choice].logprobs.end(), delta.logprobs.begin(),
                                       delta.logprobs.end());
    }
  }
}

}  // namespace osdn::testing_support

#endif  // OSDN_TESTS_UNIT_ENGINE_STREAM_READER_H_
