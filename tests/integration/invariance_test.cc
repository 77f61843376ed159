// One property: a request's tokens and logprobs, to the bit, depend on the request alone. Not on
// who else is in the batch, how prompts are cut, what the prefix cache has, whether the sequence
// gave up its slot, or whether it was saved and resumed by another process.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/engine.h"
#include "engine/snapshot.h"
#include "tests/unit/engine/test_support.h"

namespace osdn {
namespace {

using testing_support::TempDir;

constexpr int64_t kVocab = 300;

// What a request came to: ids, and every logprob's bits.
struct Answer {
  std::vector<int32_t> ids;
  std::vector<uint32_t> bits;
  FinishReason reason = FinishReason::kError;
  GenerationFinished finished;

  void Add(const TokenDelta& delta) {
    ids.insert(ids.end(), delta.token_ids.begin(), delta.token_ids.end());
    for (const TokenLogprob& logprob : delta.logprobs) {
      AddBits(logprob.logprob);
      for (const auto& top : logprob.top) AddBits(top.logprob);
    }
  }
  void Append(const Answer& more) {
    ids.insert(ids.end(), more.ids.begin(), more.ids.end());
    bits.insert(bits.end(), more.bits.begin(), more.bits.end());
    reason = more.reason;
    finished = more.finished;
  }

 private:
  void AddBits(float value) {
    uint32_t word = 0;
    std::memcpy(&word, &value, sizeof word);
    bits.push_back(word);
  }
};

// Reads all choices to the end, sleeping once for `nap` after the first events.
std::vector<Answer> ReadChoices(TokenStream* stream, std::chrono::milliseconds nap = {}) {
  std::vector<Answer> answers;
  const auto at = [&answers](int32_t choice) -> Answer& {
    answers.resize(std::max(answers.size(), static_cast<size_t>(choice) + 1));
    return answers[static_cast<size_t>(choice)];
  };
  for (int events = 0;; ++events) {
    if (events == 1 && nap.count() > 0) std::this_thread::sleep_for(nap);
    GenerationEvent event = stream->Next();
    if (auto* delta = std::get_if<TokenDelta>(&event)) at(delta->choice).Add(*delta);
    if (auto* finished = std::get_if<GenerationFinished>(&event)) {
      Answer& answer = at(finished->choice);
      answer.finished = *finished;
      answer.reason = finished->reason;
      if (finished->last) return answers;
    }
  }
}

// The last choice's.
Answer Read(TokenStream* stream, std::chrono::milliseconds nap = {}) {
  return ReadChoices(stream, nap).back();
}

void ExpectSame(const Answer& got, const Answer& want) {
  EXPECT_EQ(got.ids, want.ids);
  EXPECT_EQ(got.bits, want.bits) << "logprobs differ in their bits";
  EXPECT_EQ(got.reason, want.reason);
}

class InvarianceTest : public ::testing::TestWithParam<kernels::DType> {
 protected:
  InvarianceTest() : seed_(std::random_device{}()), random_(seed_) {
    ModelConfig config;
    config.arch = testing_support::SmallArchitecture();
    config.arch.vocab_size = kVocab;
    config.dtype = GetParam();
    testing_support::WriteModel(config, testing_support::RandomTensors(config.arch, 5),
                                dir_.path());
  }

  int64_t Pick(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random_);
  }

  // One at a time, nothing kept, prompts in the largest pieces.
  EngineOptions Plain() {
    EngineOptions options;
    options.model_dir = dir_.path();
    options.backend.name = testing_support::HostBackends().back();
    options.backend.threads = 2;
    options.max_slots = 1;
    options.prefix_cache_bytes = 0;
    return options;
  }
  EngineOptions Random() {
    EngineOptions options = Plain();
    options.backend.threads = static_cast<int>(Pick(1, 2));
    options.max_slots = Pick(0, 1) == 0 ? 64 : static_cast<int32_t>(Pick(2, 20));
    options.max_prefill_tokens = Pick(1, 8) * 64;
    options.stream_capacity = Pick(1, 6);
    options.prefix_cache_bytes = Pick(0, 2) == 0 ? 0 : static_cast<size_t>(Pick(1, 40)) << 18;
    options.prefix_cache_interval = Pick(1, 4) * 64;
    return options;
  }
  static std::unique_ptr<Engine> Make(const EngineOptions& options) {
    auto engine = Engine::Create(options);
    EXPECT_TRUE(engine.ok()) << engine.status();
    return *std::move(engine);
  }
  static std::shared_ptr<TokenStream> Submit(Engine* engine, const GenerationRequest& request) {
    auto stream = engine->Submit(request);
    EXPECT_TRUE(stream.ok()) << stream.status();
    return *std::move(stream);
  }

  // Prompts over a few stems, so that the cache has something to say.
  std::vector<GenerationRequest> Requests(int count) {
    std::vector<std::vector<int32_t>> stems(3);
    for (auto& stem : stems) {
      stem.resize(400);
      for (int32_t& id : stem) id = static_cast<int32_t>(Pick(0, kVocab - 1));
    }
    std::vector<GenerationRequest> requests(static_cast<size_t>(count));
    for (GenerationRequest& request : requests) {
      request.prompt = stems[static_cast<size_t>(Pick(0, 2))];
      request.prompt.resize(static_cast<size_t>(Pick(0, 2) == 0 ? Pick(1, 10) : Pick(1, 400)));
      for (int64_t more = Pick(0, 70); more > 0; --more) {
        request.prompt.push_back(static_cast<int32_t>(Pick(0, kVocab - 1)));
      }
      request.max_tokens = Pick(2, 40);
      request.choices = Pick(0, 3) == 0 ? Pick(2, 5) : 1;
      request.ignore_eos = true;
      request.logprobs = true;
      request.top_logprobs = static_cast<int32_t>(Pick(0, 5));
      request.sampling.temperature = Pick(0, 1) == 0 ? 0.0F : 1.0F;
      request.sampling.top_k = static_cast<int32_t>(Pick(0, 1) * 20);
      request.sampling.top_p = Pick(0, 1) == 0 ? 1.0F : 0.9F;
      request.sampling.presence_penalty = Pick(0, 2) == 0 ? 0.5F : 0.0F;
      request.sampling.seed = random_();
      request.scheduling.priority = static_cast<Priority>(Pick(0, 2));
      request.scheduling.client = absl::StrCat(Pick(0, 4));
    }
    return requests;
  }

  std::vector<Answer> Alone(const std::vector<GenerationRequest>& requests) {
    const auto engine = Make(Plain());
    std::vector<Answer> answers;
    for (const GenerationRequest& request : requests) {
      answers.push_back(Read(Submit(engine.get(), request).get()));
    }
    return answers;
  }

  // A blob and back, as a file between two processes.
  static std::shared_ptr<const SequenceSnapshot> Shipped(const SequenceSnapshot& snapshot,
                                                         const Engine& engine) {
    const StateIdentity identity = IdentityOf(engine.config());
    auto back = DecodeSnapshot(EncodeSnapshot(snapshot, identity, "key"), identity, "key");
    EXPECT_TRUE(back.ok()) << back.status();
    return std::make_shared<const SequenceSnapshot>(*std::move(back));
  }

  TempDir dir_;
  const uint32_t seed_;
  std::mt19937 random_;
};

INSTANTIATE_TEST_SUITE_P(DTypes, InvarianceTest,
                         ::testing::Values(kernels::DType::kF32, kernels::DType::kBF16),
                         [](const auto& param_info) {
                           return std::string(kernels::DTypeName(param_info.param));
                         });

// Everything at once: all requests together under random limits, with slow readers (who lose their
// slots) and clients who hang up in between; twice, so that the second time the cache is warm.
TEST_P(InvarianceTest, NothingElseMatters) {
  SCOPED_TRACE(seed_);
  const std::vector<GenerationRequest> requests = Requests(64);
  const std::vector<Answer> alone = Alone(requests);
  for (int schedule = 0; schedule < 3; ++schedule) {
    SCOPED_TRACE(absl::StrCat("schedule ", schedule));
    const auto engine = Make(Random());
    for (int round = 0; round < 2; ++round) {
      std::vector<std::thread> clients;
      for (size_t i = 0; i < requests.size(); ++i) {
        const bool slow = Pick(0, 15) == 0;
        const bool hangs_up = Pick(0, 3) == 0;
        clients.emplace_back([&, i, slow, hangs_up] {
          if (hangs_up) {
            const auto stream = Submit(engine.get(), requests[i]);
            stream->Cancel();
            Read(stream.get());
          }
          const auto stream = Submit(engine.get(), requests[i]);
          SCOPED_TRACE(absl::StrCat("request ", i));
          ExpectSame(Read(stream.get(), std::chrono::milliseconds(slow ? 250 : 0)), alone[i]);
        });
      }
      for (std::thread& client : clients) client.join();
    }
    const EngineStats stats = engine->stats();
    EXPECT_EQ(stats.running + stats.queued + stats.queued_tokens + stats.slots_used + stats.swapped,
              0);
  }
}

// Choices of one prompt, and the same tokens scored: however few slots there are and however many
// choices, alone or among others.
TEST_P(InvarianceTest, ChoicesAndScores) {
  SCOPED_TRACE(seed_);
  std::vector<GenerationRequest> requests = Requests(12);
  std::vector<std::vector<Answer>> alone;
  {
    const auto engine = Make(Plain());
    for (size_t i = 0; i < 12; ++i) {
      requests[i].choices = 7;
      alone.push_back(ReadChoices(Submit(engine.get(), requests[i]).get()));
      // One of them by itself, and what was sampled as a request of its own to be scored.
      GenerationRequest scoring = requests[i];
      requests[i].choices = 1;
      ExpectSame(Read(Submit(engine.get(), requests[i]).get()), alone[i][0]);
      requests[i].choices = Pick(1, 7);
      scoring.sampling = {};
      for (const Answer& answer : alone[i]) scoring.continuations.push_back(answer.ids);
      requests.push_back(scoring);
    }
    for (size_t i = 0; i < 12; ++i) alone.push_back(alone[i]);
    for (size_t i = 12; i < requests.size(); ++i) {
      const std::vector<Answer> scored = ReadChoices(Submit(engine.get(), requests[i]).get());
      ASSERT_EQ(scored.size(), 7U);
      for (size_t c = 0; c < scored.size(); ++c) ExpectSame(scored[c], alone[i][c]);
    }
  }
  for (int schedule = 0; schedule < 3; ++schedule) {
    SCOPED_TRACE(absl::StrCat("schedule ", schedule));
    EngineOptions options = Random();
    if (schedule == 0) options.max_slots = 2;
    const auto engine = Make(options);
    std::vector<std::thread> clients;
    for (size_t i = 0; i < requests.size(); ++i) {
      const bool slow = Pick(0, 7) == 0;
      const bool hangs_up = Pick(0, 3) == 0;
      clients.emplace_back([&, i, slow, hangs_up] {
        if (hangs_up) {
          const auto stream = Submit(engine.get(), requests[i]);
          stream->Next();
          stream->Cancel();
          ReadChoices(stream.get());
        }
        const auto stream = Submit(engine.get(), requests[i]);
        SCOPED_TRACE(absl::StrCat("request ", i));
        const std::vector<Answer> answers =
            ReadChoices(stream.get(), std::chrono::milliseconds(slow ? 250 : 0));
        ASSERT_EQ(answers.size(), static_cast<size_t>(requests[i].choice_count()));
        for (size_t c = 0; c < answers.size(); ++c) ExpectSame(answers[c], alone[i][c]);
      });
    }
    for (std::thread& client : clients) client.join();
    const EngineStats stats = engine->stats();
    EXPECT_EQ(stats.running + stats.queued + stats.queued_tokens + stats.slots_used + stats.swapped,
              0);
  }
}

// Cut into parts at random places, each part on another engine, among others.
TEST_P(InvarianceTest, SavedAndResumedElsewhere) {
  SCOPED_TRACE(seed_);
  const std::vector<GenerationRequest> requests = Requests(24);
  const std::vector<Answer> alone = Alone(requests);
  std::vector<Answer> parts(requests.size());
  std::vector<std::shared_ptr<const SequenceSnapshot>> states(requests.size());
  for (int process = 0; process < 3; ++process) {
    const auto engine = Make(Random());
    std::vector<std::shared_ptr<TokenStream>> streams(requests.size());
    for (size_t i = 0; i < requests.size(); ++i) {
      GenerationRequest request = requests[i];
      const int64_t left = request.max_tokens - static_cast<int64_t>(parts[i].ids.size());
      if (left == 0) continue;
      request.max_tokens = process == 2 ? left : Pick(1, left);
      request.state.want_state = true;
      if (states[i] != nullptr) {
        request.state.resume = Shipped(*states[i], *engine);
        request.prompt.clear();
        request.choices = 1;  // the state's
      }
      streams[i] = Submit(engine.get(), request);
    }
    for (size_t i = 0; i < requests.size(); ++i) {
      if (streams[i] == nullptr) continue;
      parts[i].Append(Read(streams[i].get()));
      states[i] = parts[i].finished.state;
    }
  }
  for (size_t i = 0; i < requests.size(); ++i) {
    SCOPED_TRACE(absl::StrCat("request ", i));
    ExpectSame(parts[i], alone[i]);
  }
}

}  // namespace
}  // namespace osdn
