// The engine as a whole on real backends: files in, token streams out.
#include "engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/model.h"
#include "engine/utf8_decoder.h"
#include "tests/unit/engine/stream_reader.h"
#include "tests/unit/engine/test_support.h"

namespace osdn {
namespace {

using ::testing::HasSubstr;
using testing_support::Outcome;
using testing_support::ReadAll;
using testing_support::TempDir;
using testing_support::TensorMap;

constexpr int64_t kTokenizerVocab = 512;
constexpr int64_t kVocab = 520;   // the rest is padding, as checkpoints have it
constexpr int32_t kPoison = 515;  // a padding row of the embedding that is NaN
constexpr auto kLong = std::chrono::hours(1);

ArchitectureConfig TestArchitecture() {
  ArchitectureConfig arch;
  arch.vocab_size = kVocab;
  arch.hidden_size = 48;
  arch.num_layers = 2;
  arch.num_heads = 3;
  arch.key_dim = 16;
  arch.value_dim = 24;
  arch.intermediate_size = 80;
  arch.use_gate = true;
  arch.eta = 0.05;
  arch.apf = Apf::kScalar;
  return arch;
}

// A model of random weights with the tests' tokenizer.
ModelConfig WriteTestModel(kernels::DType dtype, const std::string& dir) {
  std::filesystem::copy_file(testing_support::TestData("tokenizer/tiny.model"),
                             absl::StrCat(dir, "/", kTokenizerFileName));
  ModelConfig config;
  config.arch = TestArchitecture();
  config.dtype = dtype;
  config.has_tokenizer = true;
  config.bos_id = 1;
  config.eos_ids = {2};
  TensorMap tensors = testing_support::RandomTensors(config.arch, 20261123);
  std::vector<float>& embeddings = tensors.at("model.embeddings.weight");
  std::fill_n(embeddings.begin() + kPoison * config.arch.hidden_size, config.arch.hidden_size,
              std::numeric_limits<float>::quiet_NaN());
  return testing_support::WriteModel(config, tensors, dir);
}

// Requests of every kind: prompts from one token to several chunks, greedy and sampled.
std::vector<GenerationRequest> RandomRequests(int count, int64_t vocab, uint32_t seed) {
  std::mt19937 random(seed);
  const auto pick = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  std::vector<GenerationRequest> requests;
  for (int i = 0; i < count; ++i) {
    GenerationRequest request;
    request.prompt.resize(static_cast<size_t>(pick(0, 2) == 0 ? pick(60, 330) : pick(1, 40)));
    for (int32_t& id : request.prompt) id = static_cast<int32_t>(pick(0, vocab - 1));
    request.max_tokens = pick(1, 40);
    request.ignore_eos = pick(0, 1) == 0;
    request.sampling = {.temperature = i % 2 == 0 ? 0.0F : 0.9F,
                        .top_k = static_cast<int32_t>(pick(0, 1) * 50),
                        .top_p = pick(0, 1) == 0 ? 1.0F : 0.95F,
                        .min_p = pick(0, 1) == 0 ? 0.0F : 0.01F,
                        .seed = static_cast<uint64_t>(pick(0, 1 << 30))};
    requests.push_back(std::move(request));
  }
  return requests;
}

EngineOptions SmallOptions(const std::string& dir, const std::string& backend) {
  EngineOptions options;
  options.model_dir = dir;
  options.backend.name = backend;
  options.backend.threads = 1;
  options.max_slots = 8;
  options.max_prefill_tokens = 128;
  return options;
}

std::unique_ptr<Engine> MakeEngine(const EngineOptions& options) {
  auto engine = Engine::Create(options);
  EXPECT_TRUE(engine.ok()) << engine.status();
  return engine.ok() ? *std::move(engine) : nullptr;
}

std::shared_ptr<TokenStream> Submit(Engine* engine, const GenerationRequest& request) {
  auto stream = engine->Submit(request);
  EXPECT_TRUE(stream.ok()) << stream.status();
  return stream.ok() ? *stream : nullptr;
}

Outcome Generate(Engine* engine, const GenerationRequest& request) {
  return ReadAll(Submit(engine, request).get());
}

void ExpectIdle(const Engine& engine) {
  const EngineStats stats = engine.stats();
  EXPECT_EQ(stats.running, 0);
  EXPECT_EQ(stats.queued, 0);
  EXPECT_EQ(stats.queued_tokens, 0);
  EXPECT_EQ(stats.slots_used, 0);
}

// Submits everything at once, from several threads, and compares with one after another.
void ExpectTogetherEqualsAlone(Engine* engine, const std::vector<GenerationRequest>& requests) {
  constexpr size_t kClients = 4;
  std::vector<Outcome> alone;
  for (const GenerationRequest& request : requests) alone.push_back(Generate(engine, request));
  std::vector<Outcome> together(requests.size());
  const auto client = [&](size_t first) {
    std::vector<std::shared_ptr<TokenStream>> streams(requests.size());
    for (size_t i = first; i < requests.size(); i += kClients) {
      streams[i] = Submit(engine, requests[i]);
    }
    for (size_t i = first; i < requests.size(); i += kClients)
      together[i] = ReadAll(streams[i].get());
  };
  std::vector<std::thread> clients;
  for (size_t first = 0; first < kClients; ++first) clients.emplace_back(client, first);
  for (std::thread& thread : clients) thread.join();
  for (size_t i = 0; i < requests.size(); ++i) {
    SCOPED_TRACE(absl::StrCat("request ", i, ", prompt of ", requests[i].prompt.size()));
    EXPECT_EQ(together[i].ids, alone[i].ids);
    EXPECT_EQ(together[i].text, alone[i].text);
    EXPECT_EQ(together[i].finished.reason, alone[i].finished.reason);
    EXPECT_TRUE(together[i].finished.status.ok()) << together[i].finished.status;
  }
  ExpectIdle(*engine);
}

struct BackendCase {
  std::string backend;
  kernels::DType dtype;
};

class EngineOnBackendTest : public ::testing::TestWithParam<BackendCase> {
 protected:
  void SetUp() override {
    config_ = WriteTestModel(GetParam().dtype, dir_.path());
    engine_ = MakeEngine(Options());
    ASSERT_NE(engine_, nullptr);
  }

  EngineOptions Options() const { return SmallOptions(dir_.path(), GetParam().backend); }

  TempDir dir_;
  ModelConfig config_;
  std::unique_ptr<Engine> engine_;
};

std::vector<BackendCase> BackendCases() {
  std::vector<BackendCase> cases;
  for (const std::string& backend : testing_support::HostBackends()) {
    cases.push_back({backend, kernels::DType::kF32});
    cases.push_back({backend, kernels::DType::kBF16});
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(HostBackends, EngineOnBackendTest, ::testing::ValuesIn(BackendCases()),
                         [](const auto& param_info) {
                           return absl::StrCat(param_info.param.backend, "_",
                                               std::string(DTypeName(param_info.param.dtype)));
                         });

TEST_P(EngineOnBackendTest, TellsWhatItRunsOn) {
  EXPECT_EQ(engine_->info().backend, GetParam().backend);
  EXPECT_FALSE(engine_->info().backend_detail.empty());
  EXPECT_FALSE(engine_->info().backend_reason.empty());
  EXPECT_EQ(engine_->info().slots, 8);
  EXPECT_EQ(engine_->info().state_bytes_per_slot, StateLayout(config_.arch).slot_bytes());
  const auto file_bytes = static_cast<size_t>(config_.files.front().bytes);
  EXPECT_LE(engine_->info().weight_bytes, file_bytes);
  EXPECT_GT(engine_->info().weight_bytes, file_bytes / 2);
  EXPECT_EQ(engine_->tokenizer()->vocab_size(), kTokenizerVocab);
  EXPECT_TRUE(engine_->health().ok());
}

TEST_P(EngineOnBackendTest, GreedyTokensAreThoseOfThePlainForwardPass) {
  GenerationRequest request = RandomRequests(1, kTokenizerVocab, 3).front();
  request.prompt.resize(150, 77);
  request.max_tokens = 24;
  request.ignore_eos = true;
  request.sampling.temperature = 0.0F;

  auto backend = testing_support::MakeBackend(GetParam().backend);
  auto weights = Weights::Load(dir_.path(), config_, {});
  ASSERT_TRUE(weights.ok()) << weights.status();
  auto model = Model::Create(config_.arch, *weights, backend.get(), {});
  ASSERT_TRUE(model.ok()) << model.status();
  auto pool = StatePool::Create(backend.get(), StateLayout(config_.arch), 1);
  ASSERT_TRUE(pool.ok()) << pool.status();
  const int32_t slot = (*pool->Acquire()).value();

  std::vector<int32_t> expected;
  std::vector<int32_t> input = request.prompt;
  std::vector<float> logits(kVocab);
  for (int64_t position = 0; static_cast<int64_t>(expected.size()) < request.max_tokens;) {
    const auto rows = static_cast<int64_t>(input.size());
    const kernels::SequenceSpan span{0, rows, position, slot};
    const kernels::BatchView batch{rows, position == 0 ? 0 : 1, absl::MakeConstSpan(&span, 1)};
    const int64_t last_row = rows - 1;
    ASSERT_TRUE((*model)
                    ->Forward(batch, input, absl::MakeConstSpan(&last_row, 1), *pool,
                              absl::MakeSpan(logits))
                    .ok());
    const auto best = std::max_element(logits.begin(), logits.begin() + kTokenizerVocab);
    expected.push_back(static_cast<int32_t>(best - logits.begin()));
    position += rows;
    input = {expected.back()};
  }
  EXPECT_EQ(Generate(engine_.get(), request).ids, expected);
}

TEST_P(EngineOnBackendTest, ThirtyTwoTogetherGetWhatEachGetsAlone) {
  ExpectTogetherEqualsAlone(engine_.get(), RandomRequests(32, kTokenizerVocab, 5));
}

TEST_P(EngineOnBackendTest, NonFiniteSequenceHarmsNobody) {
  const std::vector<GenerationRequest> requests = RandomRequests(6, kTokenizerVocab, 7);
  std::vector<Outcome> alone;
  for (const auto& request : requests) alone.push_back(Generate(engine_.get(), request));
  // Poisoned and healthy ones side by side, more than slots, so that slots are used again.
  std::vector<std::shared_ptr<TokenStream>> poisoned;
  std::vector<std::shared_ptr<TokenStream>> healthy;
  for (const GenerationRequest& request : requests) {
    GenerationRequest bad = request;
    bad.prompt.push_back(kPoison);
    poisoned.push_back(Submit(engine_.get(), bad));
    healthy.push_back(Submit(engine_.get(), request));
  }
  for (size_t i = 0; i < requests.size(); ++i) {
    const Outcome bad = ReadAll(poisoned[i].get());
    EXPECT_EQ(bad.finished.reason, FinishReason::kError);
    EXPECT_EQ(bad.finished.status.code(), absl::StatusCode::kInternal);
    EXPECT_EQ(ReadAll(healthy[i].get()).ids, alone[i].ids);
  }
  EXPECT_TRUE(engine_->health().ok());
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_EQ(Generate(engine_.get(), requests[i]).ids, alone[i].ids);
  }
  ExpectIdle(*engine_);
}

TEST_P(EngineOnBackendTest, RandomArrivalsAndCancelsLeaveNothingBehind) {
  const auto client = [&](uint32_t seed) {
    std::mt19937 random(seed);
    for (const GenerationRequest& request : RandomRequests(12, kTokenizerVocab, seed)) {
      auto stream = Submit(engine_.get(), request);
      uint32_t reads_left = random() % 20;
      const bool cancels = random() % 2 == 0;
      for (;; --reads_left) {
        if (reads_left == 0 && cancels) stream->Cancel();
        if (std::holds_alternative<GenerationFinished>(stream->Next())) break;
      }
    }
  };
  std::vector<std::thread> clients;
  for (uint32_t seed = 1; seed <= 6; ++seed) clients.emplace_back(client, seed);
  for (std::thread& thread : clients) thread.join();
  ExpectIdle(*engine_);
  engine_->Drain(kLong);
}

// What a client sees that is not about numbers, on the faster backend.
class EngineTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    dir_ = new TempDir;
    WriteTestModel(kernels::DType::kF32, dir_->path());
  }
  static void TearDownTestSuite() {
    delete dir_;
    dir_ = nullptr;
  }

  static EngineOptions Options() { return SmallOptions(dir_->path(), "cpu"); }

  static GenerationRequest Endless() {
    GenerationRequest request;
    request.prompt = {1, 300, 301};
    request.max_tokens = std::numeric_limits<int64_t>::max();
    request.ignore_eos = true;
    return request;
  }

  static TempDir* dir_;
};

TempDir* EngineTest::dir_ = nullptr;

TEST_F(EngineTest, TextIsTheDecodedTokens) {
  auto engine = MakeEngine(Options());
  // Random weights love byte tokens: most of this is broken UTF-8.
  for (const GenerationRequest& request : RandomRequests(12, kTokenizerVocab, 9)) {
    const Outcome outcome = Generate(engine.get(), request);
    std::string bytes;
    for (const int32_t id : outcome.ids) bytes += engine->tokenizer()->TokenBytes(id);
    if (engine->tokenizer()->IsControl(request.prompt.back()) && bytes[0] == ' ') bytes.erase(0, 1);
    Utf8Decoder decoder;
    std::string text = decoder.Append(bytes);
    text += decoder.Flush();
    EXPECT_EQ(outcome.text, text);
  }
}

TEST_F(EngineTest, StopStringsCutTheText) {
  auto engine = MakeEngine(Options());
  int matched = 0;
  for (GenerationRequest& request : RandomRequests(12, kTokenizerVocab, 10)) {
    request.max_tokens = 40;
    request.ignore_eos = true;
    const Outcome whole = Generate(engine.get(), request);
    // Whole characters from the middle of the text.
    size_t begin = whole.text.size() / 2;
    size_t end = std::min(begin + 6, whole.text.size());
    const auto continues = [&](size_t i) {
      return i < whole.text.size() && (static_cast<uint8_t>(whole.text[i]) & 0xC0) == 0x80;
    };
    while (continues(begin)) ++begin;
    while (continues(end)) ++end;
    const std::string stop = whole.text.substr(begin, end - begin);
    if (stop.empty() || stop.find("\xEF\xBF\xBD") != std::string::npos) continue;
    ++matched;
    request.stop_strings = {stop, "never in there"};
    const Outcome cut = Generate(engine.get(), request);
    EXPECT_EQ(cut.finished.reason, FinishReason::kStopString);
    EXPECT_EQ(cut.finished.matched_stop_string, stop);
    EXPECT_EQ(cut.text, whole.text.substr(0, whole.text.find(stop)));
    EXPECT_LE(cut.ids.size(), whole.ids.size());
  }
  EXPECT_GT(matched, 0);
}

TEST_F(EngineTest, MinTokensAndStopTokens) {
  auto engine = MakeEngine(Options());
  GenerationRequest request;
  request.prompt = {1, 300, 301};
  request.max_tokens = 30;
  request.ignore_eos = true;
  const Outcome whole = Generate(engine.get(), request);
  ASSERT_EQ(whole.ids.size(), 30U);
  request.stop_token_ids = {whole.ids[3]};
  const Outcome stopped = Generate(engine.get(), request);
  EXPECT_EQ(stopped.finished.reason, FinishReason::kStop);
  EXPECT_LE(stopped.finished.completion_tokens, 4);
  EXPECT_EQ(stopped.ids.size() + 1, static_cast<size_t>(stopped.finished.completion_tokens));
  request.min_tokens = 20;
  const Outcome longer = Generate(engine.get(), request);
  EXPECT_GE(longer.ids.size(), 20U);
  for (size_t i = 0; i < longer.ids.size(); ++i) EXPECT_NE(longer.ids[i], whole.ids[3]) << i;
}

TEST_F(EngineTest, PaddingOfTheVocabularyIsNeverSampled) {
  auto engine = MakeEngine(Options());
  GenerationRequest request = Endless();
  request.max_tokens = 400;
  request.sampling.temperature = 100.0F;  // nearly uniform: 8 of 520 would come up
  for (const int32_t id : Generate(engine.get(), request).ids) EXPECT_LT(id, kTokenizerVocab);
}

TEST_F(EngineTest, RefusesBadRequestsNamingEverything) {
  auto engine = MakeEngine(Options());
  GenerationRequest request;
  request.prompt = {0, kVocab};
  request.sampling.top_p = 2.0F;
  std::vector<std::string> fields;
  for (const FieldViolation& violation : engine->Validate(request)) {
    fields.push_back(violation.field);
  }
  EXPECT_THAT(fields,
              ::testing::ElementsAre("prompt.tokens.ids[1]", "sampling.top_p", "stop.max_tokens"));
  const absl::Status status = engine->Submit(request).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  for (const std::string& field : fields) {
    EXPECT_THAT(std::string(status.message()), HasSubstr(field));
  }
  ExpectIdle(*engine);
}

TEST_F(EngineTest, QueueFullTellsTheLimitAndKeepsNothing) {
  EngineOptions options = Options();
  options.max_slots = 1;
  options.max_queued_requests = 3;
  auto engine = MakeEngine(options);
  std::vector<std::shared_ptr<TokenStream>> streams = {Submit(engine.get(), Endless())};
  streams[0]->Next();  // it runs
  for (int i = 0; i < 3; ++i) streams.push_back(Submit(engine.get(), Endless()));
  const absl::Status status = engine->Submit(Endless()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("at most 3"));
  EXPECT_EQ(engine->stats().queued, 3);
  for (auto& stream : streams) stream->Cancel();
  for (auto& stream : streams) {
    EXPECT_EQ(ReadAll(stream.get()).finished.reason, FinishReason::kCancelled);
  }
  ExpectIdle(*engine);
}

TEST_F(EngineTest, SlowReaderHarmsOnlyItself) {
  EngineOptions options = Options();
  options.max_slots = 2;
  options.stream_capacity = 4;
  auto engine = MakeEngine(options);
  auto slow = Submit(engine.get(), Endless());
  GenerationRequest request = Endless();
  request.max_tokens = 100;
  for (int i = 0; i < 3; ++i) EXPECT_EQ(Generate(engine.get(), request).ids.size(), 100U);
  EXPECT_TRUE(slow->full());
  slow->Cancel();
  EXPECT_EQ(ReadAll(slow.get()).ids.size(), 4U);
  ExpectIdle(*engine);
}

TEST_F(EngineTest, DrainAndDestructionEndEveryStream) {
  EngineOptions options = Options();
  options.max_slots = 2;
  options.stream_capacity = 8;
  auto engine = MakeEngine(options);
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (int i = 0; i < 5; ++i) streams.push_back(Submit(engine.get(), Endless()));
  engine->Drain(std::chrono::milliseconds(5));
  EXPECT_EQ(engine->Submit(Endless()).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(engine->health().ok());
  ExpectIdle(*engine);
  for (auto& stream : streams) {
    const auto outcome = ReadAll(stream.get());
    // What has begun to answer has left its state; the rest is told to try elsewhere.
    const bool begun = !outcome.ids.empty();
    EXPECT_EQ(outcome.finished.reason, begun ? FinishReason::kDrained : FinishReason::kError);
    EXPECT_EQ(outcome.finished.state != nullptr, begun);
    EXPECT_EQ(absl::IsUnavailable(outcome.finished.status), !begun);
  }

  engine = MakeEngine(options);
  streams.clear();
  for (int i = 0; i < 5; ++i) streams.push_back(Submit(engine.get(), Endless()));
  streams[0]->Next();
  engine.reset();
  for (auto& stream : streams) {
    EXPECT_EQ(ReadAll(stream.get()).finished.reason, FinishReason::kCancelled);
  }
}

TEST_F(EngineTest, TwoEnginesInOneProcess) {
  auto one = MakeEngine(Options());
  auto two = MakeEngine(Options());
  GenerationRequest request = Endless();
  request.max_tokens = 20;
  request.sampling.seed = 4;
  auto first = Submit(one.get(), request);
  auto second = Submit(two.get(), request);
  EXPECT_EQ(ReadAll(first.get()).ids, ReadAll(second.get()).ids);
}

TEST_F(EngineTest, CreateRefusesWhatCannotBe) {
  EngineOptions options = Options();
  options.model_dir = "/nonexistent/model";
  EXPECT_EQ(Engine::Create(options).status().code(), absl::StatusCode::kNotFound);

  options = Options();
  options.max_slots = 0;
  options.max_prefill_tokens = 63;
  absl::Status status = Engine::Create(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("max_slots: 0 is outside [1, 65536]"));
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("max_prefill_tokens: 63 is outside [64, 1048576]"));

  options = Options();
  options.backend.name = "abacus";
  EXPECT_EQ(Engine::Create(options).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(EngineTest, CreateRefusesATokenizerOfAnotherModel) {
  TempDir dir;
  std::filesystem::copy_file(testing_support::TestData("tokenizer/tiny.model"),
                             dir.File(kTokenizerFileName));
  ModelConfig config;
  config.arch = TestArchitecture();
  config.arch.vocab_size = 500;
  config.has_tokenizer = true;
  testing_support::WriteModel(config, testing_support::RandomTensors(config.arch, 1), dir.path());
  const absl::Status status = Engine::Create(SmallOptions(dir.path(), "cpu")).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("has 512 pieces, but vocab_size"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("is 500"));
}

TEST_F(EngineTest, ModelWithoutATokenizerTakesIds) {
  TempDir dir;
  testing_support::WriteGoldenModel("tiny_apf_gate", dir.path());
  auto engine = MakeEngine(SmallOptions(dir.path(), "cpu"));
  EXPECT_EQ(engine->tokenizer(), nullptr);
  GenerationRequest request;
  request.prompt = {5, 6, 7};
  request.max_tokens = 10;
  request.ignore_eos = true;
  const Outcome outcome = Generate(engine.get(), request);
  EXPECT_EQ(outcome.ids.size(), 10U);
  EXPECT_EQ(outcome.text, "");
  request.stop_strings = {"x"};
  EXPECT_EQ(engine->Submit(request).status().code(), absl::StatusCode::kInvalidArgument);
}

// The models of the repository: the same promise on trained weights.
TEST(BundledModelTest, ThirtyTwoTogetherGetWhatEachGetsAlone) {
  std::vector<std::string> dirs;
  if (std::filesystem::is_directory(OSDN_MODELS_DIR)) {
    for (const auto& entry : std::filesystem::directory_iterator(OSDN_MODELS_DIR)) {
      if (std::filesystem::exists(entry.path() / kModelFileName)) dirs.push_back(entry.path());
    }
  }
  if (dirs.empty()) GTEST_SKIP() << "no model in " << OSDN_MODELS_DIR;
  for (const std::string& dir : dirs) {
    SCOPED_TRACE(dir);
    auto engine = MakeEngine(SmallOptions(dir, "cpu"));
    ASSERT_NE(engine, nullptr);
    const int64_t vocab = engine->config().arch.vocab_size;
    ExpectTogetherEqualsAlone(engine.get(), RandomRequests(32, vocab, 13));
  }
}

}  // namespace
}  // namespace osdn
