// Reads a token stream to its end.
#ifndef OSDN_TESTS_UNIT_ENGINE_STREAM_READER_H_
#define OSDN_TESTS_UNIT_ENGINE_STREAM_READER_H_

#include <gtest/gtest.h>

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
    }
  }
}

}  // namespace osdn::testing_support

#endif  // OSDN_TESTS_UNIT_ENGINE_STREAM_READER_H_
