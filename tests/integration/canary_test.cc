// Canaries: 64 clients with secrets of their own on a few slots of real memory, with everything
// going on that moves states about: cancels, swaps, prefix-cache hits, saved and resumed states,
// slots taken over from others. No secret may turn up anywhere but where it belongs.
//
// The network is a tape recorder: a slot's floats hold the tokens that were read into it, one after
// the other, and the next token is one of the secrets on the tape. Whatever is left of another
// sequence, anywhere in the slot, is therefore said aloud.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <iostream>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/engine_loop.h"
#include "engine/state.h"
#include "tests/unit/engine/stream_reader.h"
#include "tests/unit/engine/test_support.h"

namespace osdn {
namespace {

using testing_support::MakeBackend;
using testing_support::Outcome;
using testing_support::ReadAll;

constexpr int32_t kPublic = 50;  // tokens below are no secrets
constexpr int kClients = 64;
constexpr int kRounds = 6;
constexpr int64_t kVocab = kPublic + kClients * kRounds;
constexpr float kMark = 1000.0F;  // of a token on the tape; initial states have 0 and 1

ArchitectureConfig TapeArchitecture() {
  ArchitectureConfig arch = testing_support::SmallArchitecture();
  arch.num_heads = 4;
  arch.key_dim = arch.value_dim = 8;
  return arch;
}

class TapeExecutor final : public StepExecutor {
 public:
  TapeExecutor(kernels::Backend* backend, int32_t slots)
      : layout_(TapeArchitecture()), pool_(*StatePool::Create(backend, layout_, slots)) {
    // What a slot holds before anybody wrote to it.
    initial_.resize(static_cast<size_t>(layout_.slot_floats()), 0.0F);
    for (int64_t i = 0; i < layout_.num_layers(); ++i) {
      const auto d = initial_.begin() + layout_.layer(i).d;
      std::fill(d, d + layout_.d_floats(), 1.0F);
    }
  }

  int64_t tape_length() const { return layout_.slot_floats(); }
  std::vector<std::string> problems() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return problems_;
  }

  int64_t vocab_size() const override { return kVocab; }
  absl::StatusOr<std::optional<int32_t>> AcquireSlot() override { return pool_.Acquire(); }
  absl::Status ReleaseSlot(int32_t slot) override { return pool_.Release(slot); }
  int64_t slots_used() const override { return pool_.used(); }
  size_t slot_bytes() const override { return layout_.slot_bytes(); }
  absl::Status SaveSlot(int32_t slot, absl::Span<std::byte> out) override {
    return pool_.Save(slot, out);
  }
  absl::Status RestoreSlot(int32_t slot, absl::Span<const std::byte> in) override {
    return pool_.Restore(slot, in);
  }
  absl::Status CopySlot(int32_t from, int32_t to) override { return pool_.Copy(from, to); }

  absl::Status Forward(const kernels::BatchView& batch, absl::Span<const int32_t> tokens,
                       absl::Span<const int64_t> logit_rows, absl::Span<float> logits) override {
    size_t next = 0;
    for (const kernels::SequenceSpan& span : batch.spans) {
      // The cpu backend's memory is the host's.
      float* tape = pool_.At(0).at(span.slot);
      if (span.position + span.length > tape_length()) Problem("the tape is too short");
      CheckTape(tape, span.position);
      for (int64_t i = 0; i < span.length; ++i) {
        const int32_t token = tokens[static_cast<size_t>(span.row + i)];
        tape[Place(span.position + i)] = kMark + static_cast<float>(token);
      }
      if (next == logit_rows.size() || logit_rows[next] != span.row + span.length - 1) continue;
      Say(tape, span.position, logits.subspan(next * kVocab, kVocab));
      ++next;
    }
    if (next != logit_rows.size()) Problem("logits of a row that ends no span");
    return absl::OkStatus();
  }

 private:
  // Of a position on the tape: all over the slot, so that no part of it is never written to.
  int64_t Place(int64_t position) const {
    constexpr int64_t kStride = 5;  // has no divisor in common with the length
    return position * kStride % tape_length();
  }

  // Tokens up to the position, an initial state behind it.
  void CheckTape(const float* tape, int64_t position) {
    for (int64_t i = 0; i < tape_length(); ++i) {
      const int64_t place = Place(i);
      const bool fresh = tape[place] == initial_[static_cast<size_t>(place)];
      if (fresh == (i >= position)) continue;
      return Problem(absl::StrCat("position ", position, ", place of ", i, " holds ", tape[place],
                                  fresh ? ": nothing was read there" : ": left by another"));
    }
  }

  // The secrets on the tape in turn, surely; a public token where there is none.
  void Say(const float* tape, int64_t turn, absl::Span<float> logits) const {
    std::vector<int32_t> secrets;
    for (int64_t i = 0; i < tape_length(); ++i) {
      const auto token = static_cast<int32_t>(tape[i] - kMark);
      if (tape[i] >= kMark + kPublic && !std::count(secrets.begin(), secrets.end(), token)) {
        secrets.push_back(token);
      }
    }
    std::fill(logits.begin(), logits.end(), 0.0F);
    const size_t said =
        secrets.empty() ? 0
                        : static_cast<size_t>(secrets[static_cast<size_t>(turn) % secrets.size()]);
    logits[said] = 80.0F;
  }

  void Problem(std::string text) {
    std::lock_guard<std::mutex> lock(mutex_);
    problems_.push_back(std::move(text));
  }

  const StateLayout layout_;
  StatePool pool_;
  std::vector<float> initial_;
  mutable std::mutex mutex_;  // guards problems_; all else is the loop's
  std::vector<std::string> problems_;
};

class CanaryTest : public ::testing::Test {
 protected:
  CanaryTest()
      : seed_(std::random_device{}()),
        backend_(MakeBackend("cpu")),
        executor_(backend_.get(), /*slots=*/7) {
    EngineLoop::Options options;
    options.limits = {.max_slots = 7, .max_step_tokens = 300, .max_prefill_tokens = 128};
    options.queue = {.max_requests = 1000, .max_tokens = 1 << 20};
    options.stream_capacity = 2;
    options.max_swapped = 20;
    options.swap_after = std::chrono::milliseconds(1);
    options.prefix_cache = {.max_bytes = size_t{64} * executor_.slot_bytes(), .interval = 64};
    loop_ = std::make_unique<EngineLoop>(
        options,
        VocabularyView{
            .size = kVocab, .eos_ids = {}, .token_bytes = nullptr, .restarts_text = nullptr},
        &executor_);
    std::mt19937 random(seed_);
    for (std::vector<int32_t>& stem : stems_) {
      stem.resize(200);
      for (int32_t& token : stem) token = static_cast<int32_t>(random() % kPublic);
    }
  }

  // Public tokens that others' prompts begin with too, then the secret among public ones.
  GenerationRequest Ask(int32_t secret, std::mt19937* random) {
    GenerationRequest request;
    request.prompt = stems_[(*random)() % stems_.size()];
    request.prompt.resize((*random)() % request.prompt.size());
    request.prompt.push_back(secret);
    for (uint32_t more = (*random)() % 90; more > 0; --more) {
      request.prompt.push_back(static_cast<int32_t>((*random)() % kPublic));
    }
    request.max_tokens = 2 + (*random)() % 30;
    request.sampling.temperature = static_cast<float>((*random)() % 2);
    request.sampling.seed = (*random)();
    request.scheduling.client = absl::StrCat((*random)() % 5);
    if ((*random)() % 4 == 0) request.cache.salt = absl::StrCat((*random)() % 2);
    return request;
  }

  std::shared_ptr<TokenStream> Submit(const GenerationRequest& request) {
    auto stream = loop_->Submit(request);
    EXPECT_TRUE(stream.ok()) << stream.status();
    return *std::move(stream);
  }

  // Nothing but the secret is heard, and as often as was asked for.
  void ExpectOnly(int32_t secret, const Outcome& outcome, int64_t tokens) {
    EXPECT_TRUE(outcome.finished.status.ok()) << outcome.finished.status;
    EXPECT_EQ(outcome.ids, std::vector<int32_t>(static_cast<size_t>(tokens), secret));
  }

  // The same, of somebody who now and then does not read for a while.
  Outcome ReadSlowly(TokenStream* stream, std::mt19937* random) {
    Outcome outcome;
    while (true) {
      if ((*random)() % 16 == 0) {
        std::this_thread::sleep_for(std::chrono::milliseconds(3));
        swaps_seen_ += loop_->stats().swapped;
      }
      GenerationEvent event = stream->Next();
      if (auto* finished = std::get_if<GenerationFinished>(&event)) {
        outcome.finished = *finished;
        return outcome;
      }
      const auto& delta = std::get<TokenDelta>(event);
      outcome.ids.insert(outcome.ids.end(), delta.token_ids.begin(), delta.token_ids.end());
    }
  }

  void Round(int32_t secret, std::mt19937* random) {
    GenerationRequest request = Ask(secret, random);
    // Asked and dropped, in the queue, while it is read or while it speaks.
    if ((*random)() % 3 == 0) {
      const auto dropped = Submit(request);
      std::this_thread::sleep_for(std::chrono::microseconds((*random)() % 3000));
      dropped->Cancel();
      for (const int32_t heard : ReadAll(dropped.get()).ids) EXPECT_EQ(heard, secret);
    }
    request.state.want_state = true;
    const auto stream = Submit(request);
    const Outcome first = ReadSlowly(stream.get(), random);
    ExpectOnly(secret, first, request.max_tokens);
    // Once more: from the cache.
    request.state.want_state = false;
    ExpectOnly(secret, ReadAll(Submit(request).get()), request.max_tokens);
    // And on from where the first one ended.
    ASSERT_NE(first.finished.state, nullptr);
    GenerationRequest more = request;
    more.state.resume = first.finished.state;
    more.prompt.assign((*random)() % 40, 3);
    ExpectOnly(secret, ReadAll(Submit(more).get()), more.max_tokens);
  }

  const uint32_t seed_;
  std::unique_ptr<kernels::Backend> backend_;
  TapeExecutor executor_;
  std::array<std::vector<int32_t>, 3> stems_;
  std::atomic<int64_t> swaps_seen_{0};
  std::unique_ptr<EngineLoop> loop_;
};

TEST_F(CanaryTest, NoSecretIsHeardElsewhere) {
  std::cout << "seed " << seed_ << '\n';
  std::vector<std::thread> clients;
  for (int client = 0; client < kClients; ++client) {
    clients.emplace_back([this, client] {
      std::mt19937 random(seed_ + static_cast<uint32_t>(client));
      for (int round = 0; round < kRounds; ++round) {
        Round(kPublic + client * kRounds + round, &random);
        if (HasFatalFailure()) return;
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_THAT(executor_.problems(), ::testing::IsEmpty());
  const EngineStats stats = loop_->stats();
  EXPECT_EQ(stats.running + stats.queued + stats.swapped + stats.slots_used, 0);
  // All of it did go on.
  EXPECT_GT(swaps_seen_, 0) << "nobody was swapped out";
  EXPECT_GT(stats.prefix_cache.hits, kClients);
  EXPECT_GT(stats.prefix_cache.evictions, 0);
}

}  // namespace
}  // namespace osdn
