#include "engine/model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "absl/strings/str_cat.h"
#include "tests/unit/engine/naive_model.h"
#include "tests/unit/engine/test_support.h"

namespace osdn {
namespace {

using kernels::BatchView;
using kernels::SequenceSpan;
using testing_support::GoldenArchitecture;
using testing_support::HostBackends;
using testing_support::MakeBackend;
using testing_support::NaiveLogits;
using testing_support::RandomTensors;
using testing_support::SmallArchitecture;
using testing_support::TempDir;
using testing_support::TensorMap;
using testing_support::TestData;

// A model on a backend with a pool, and a way to feed sequences.
class Harness {
 public:
  Harness(const std::string& backend, const std::string& dir, int32_t slots, int64_t max_rows = 256)
      : backend_(MakeBackend(backend)) {
    const auto config = LoadModelConfig(dir);
    EXPECT_TRUE(config.ok()) << config.status();
    auto weights = Weights::Load(dir, *config, {});
    EXPECT_TRUE(weights.ok()) << weights.status();
    weights_ = std::make_unique<Weights>(*std::move(weights));
    auto model = Model::Create(config->arch, *weights_, backend_.get(), {max_rows, max_rows});
    EXPECT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
    auto pool = StatePool::Create(backend_.get(), StateLayout(config->arch), slots);
    EXPECT_TRUE(pool.ok()) << pool.status();
    pool_ = std::make_unique<StatePool>(*std::move(pool));
  }

  struct Piece {
    int32_t slot;
    int64_t position;
    std::vector<int32_t> ids;
  };

  // One forward pass over pieces of different sequences; logits of every row, in row order. The
  // first `decode` pieces are decode rows.
  std::vector<float> Step(const std::vector<Piece>& pieces, int64_t decode = 0) {
    std::vector<int32_t> tokens;
    std::vector<SequenceSpan> spans;
    for (const Piece& piece : pieces) {
      spans.push_back({static_cast<int64_t>(tokens.size()), static_cast<int64_t>(piece.ids.size()),
                       piece.position, piece.slot});
      tokens.insert(tokens.end(), piece.ids.begin(), piece.ids.end());
    }
    std::vector<int64_t> rows(tokens.size());
    for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<int64_t>(i);
    std::vector<float> logits(tokens.size() * static_cast<size_t>(model_->arch().vocab_size));
    const BatchView batch = {static_cast<int64_t>(tokens.size()), decode, spans};
    const absl::Status status =
        model_->Forward(batch, tokens, rows, *pool_, absl::MakeSpan(logits));
    EXPECT_TRUE(status.ok()) << status;
    return logits;
  }

  // A whole sequence in pieces of `split` tokens, alone.
  std::vector<float> Run(int32_t slot, const std::vector<int32_t>& ids, size_t split) {
    std::vector<float> logits;
    for (size_t at = 0; at < ids.size(); at += split) {
      const size_t end = std::min(ids.size(), at + split);
      const std::vector<float> part = Step(
          {{slot,
            static_cast<int64_t>(at),
            {ids.begin() + static_cast<int64_t>(at), ids.begin() + static_cast<int64_t>(end)}}},
          split == 1 ? 1 : 0);
      logits.insert(logits.end(), part.begin(), part.end());
    }
    return logits;
  }

  int32_t Acquire() {
    const auto slot = pool_->Acquire();
    EXPECT_TRUE(slot.ok() && slot->has_value()) << slot.status();
    return **slot;
  }

  Model& model() { return *model_; }
  StatePool& pool() { return *pool_; }

 private:
  std::unique_ptr<kernels::Backend> backend_;
  std::unique_ptr<Weights> weights_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<StatePool> pool_;
};

template <typename A, typename B>
double MaxError(const std::vector<A>& got, const std::vector<B>& want) {
  EXPECT_EQ(got.size(), want.size());
  double worst = 0;
  for (size_t i = 0; i < std::min(got.size(), want.size()); ++i) {
    const double error = std::abs(static_cast<double>(got[i]) - static_cast<double>(want[i]));
    if (!(error <= worst)) worst = error;  // a NaN sticks
  }
  return worst;
}

std::vector<int32_t> RandomIds(size_t count, int64_t vocab, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<int32_t> ids(count);
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % static_cast<uint64_t>(vocab));
  return ids;
}

// --- Golden checkpoints ---

struct Golden {
  std::vector<int32_t> ids;
  std::vector<float> logits;
};

Golden LoadGolden(const std::string& name) {
  const auto file = SafetensorsFile::Open(TestData(absl::StrCat("golden/", name, "/expected.st")));
  EXPECT_TRUE(file.ok()) << file.status();
  const SafetensorsEntry* ids = file->Find("ids");
  const SafetensorsEntry* logits = file->Find("logits");
  Golden golden;
  golden.logits.resize(logits->data.size() / sizeof(float));
  std::memcpy(golden.logits.data(), logits->data.data(), logits->data.size());
  for (size_t i = 0; i < static_cast<size_t>(ids->shape[0]); ++i) {
    int64_t id = 0;  // I32 or I64, little-endian
    const size_t width = SafetensorsDTypeSize(ids->dtype);
    std::memcpy(&id, ids->data.data() + i * width, width);
    golden.ids.push_back(static_cast<int32_t>(id));
  }
  return golden;
}

constexpr double kGoldenTolerance = 1e-4;  // the bar is 1e-3

class GoldenTest : public testing::TestWithParam<std::tuple<std::string, std::string>> {
 protected:
  GoldenTest() {
    testing_support::WriteGoldenModel(std::get<1>(GetParam()), dir_.path());
    golden_ = LoadGolden(std::get<1>(GetParam()));
  }

  TempDir dir_;
  Golden golden_;
};

TEST_P(GoldenTest, EverySplitOfThePrompt) {
  Harness harness(std::get<0>(GetParam()), dir_.path(), 1);
  for (const size_t split : {size_t{1}, size_t{7}, size_t{64}, golden_.ids.size()}) {
    const int32_t slot = harness.Acquire();
    const double error = MaxError(harness.Run(slot, golden_.ids, split), golden_.logits);
    EXPECT_LE(error, kGoldenTolerance) << "split " << split;
    RecordProperty(absl::StrCat("error_split_", split), absl::StrCat(error));
    ASSERT_TRUE(harness.pool().Release(slot).ok());
  }
}

// Three sequences at different places: one decodes, two prefill, in every step of the run.
TEST_P(GoldenTest, MixedBatchesEqualEachAlone) {
  Harness harness(std::get<0>(GetParam()), dir_.path(), 3);
  const auto vocab = static_cast<size_t>(harness.model().arch().vocab_size);
  const std::vector<size_t> lengths = {1, 13, 64};
  std::vector<int32_t> slots;
  for (size_t i = 0; i < lengths.size(); ++i) slots.push_back(harness.Acquire());
  std::vector<size_t> positions(lengths.size(), 0);
  while (positions[0] < golden_.ids.size()) {
    std::vector<Harness::Piece> pieces;
    std::vector<size_t> owners;
    for (size_t i = 0; i < lengths.size(); ++i) {
      const size_t end = std::min(positions[i] + lengths[i], golden_.ids.size());
      if (positions[i] == end) continue;
      owners.push_back(i);
      pieces.push_back({slots[i],
                        static_cast<int64_t>(positions[i]),
                        {golden_.ids.begin() + static_cast<int64_t>(positions[i]),
                         golden_.ids.begin() + static_cast<int64_t>(end)}});
    }
    const std::vector<float> logits = harness.Step(pieces, 1);
    size_t row = 0;
    for (size_t p = 0; p < pieces.size(); ++p) {
      const size_t count = pieces[p].ids.size();
      const auto got = logits.begin() + static_cast<int64_t>(row * vocab);
      const auto want = golden_.logits.begin() + static_cast<int64_t>(positions[owners[p]] * vocab);
      const auto values = static_cast<int64_t>(count * vocab);
      ASSERT_LE(
          MaxError(std::vector<float>(got, got + values), std::vector<float>(want, want + values)),
          kGoldenTolerance)
          << "sequence " << owners[p] << " at " << positions[owners[p]];
      row += count;
      positions[owners[p]] += count;
    }
  }
}

// What is in the batch beside a sequence must not change one bit of its logits.
TEST_P(GoldenTest, BatchInvarianceBitForBit) {
  Harness harness(std::get<0>(GetParam()), dir_.path(), 4);
  const auto vocab = static_cast<size_t>(harness.model().arch().vocab_size);
  const std::vector<int32_t> prompt(golden_.ids.begin(), golden_.ids.begin() + 40);
  const int32_t alone = harness.Acquire();
  const int32_t among = harness.Acquire();
  const int32_t other = harness.Acquire();
  const int32_t third = harness.Acquire();

  const std::vector<float> prefill_alone = harness.Step({{alone, 0, prompt}});
  const std::vector<float> prefill_among =
      harness.Step({{third, 0, {5}}, {other, 0, RandomIds(23, 97, 1)}, {among, 0, prompt}}, 1);
  EXPECT_EQ(prefill_alone,
            std::vector<float>(prefill_among.begin() + static_cast<int64_t>(24 * vocab),
                               prefill_among.end()));

  const std::vector<float> decode_alone = harness.Step({{alone, 40, {7}}}, 1);
  const std::vector<float> decode_among =
      harness.Step({{third, 1, {9}}, {among, 40, {7}}, {other, 23, RandomIds(30, 97, 2)}}, 2);
  EXPECT_EQ(decode_alone,
            std::vector<float>(decode_among.begin() + static_cast<int64_t>(vocab),
                               decode_among.begin() + static_cast<int64_t>(2 * vocab)));
}

TEST_P(GoldenTest, ReusedSlotKnowsNothingOfItsPast) {
  Harness harness(std::get<0>(GetParam()), dir_.path(), 1);
  int32_t slot = harness.Acquire();
  const std::vector<float> first = harness.Run(slot, golden_.ids, 64);
  ASSERT_TRUE(harness.pool().Release(slot).ok());
  slot = harness.Acquire();
  harness.Run(slot, RandomIds(77, 97, 3), 77);
  ASSERT_TRUE(harness.pool().Release(slot).ok());
  slot = harness.Acquire();
  EXPECT_EQ(harness.Run(slot, golden_.ids, 64), first);
}

TEST_P(GoldenTest, SavedStateContinuesBitForBit) {
  Harness harness(std::get<0>(GetParam()), dir_.path(), 2);
  const int32_t slot = harness.Acquire();
  const int32_t copy = harness.Acquire();
  const std::vector<int32_t> head(golden_.ids.begin(), golden_.ids.begin() + 70);
  const std::vector<int32_t> rest(golden_.ids.begin() + 70, golden_.ids.end());
  harness.Step({{slot, 0, head}});
  std::vector<std::byte> snapshot(harness.pool().layout().slot_bytes());
  ASSERT_TRUE(harness.pool().Save(slot, absl::MakeSpan(snapshot)).ok());
  const std::vector<float> straight = harness.Step({{slot, 70, rest}});
  ASSERT_TRUE(harness.pool().Restore(copy, snapshot).ok());
  EXPECT_EQ(harness.Step({{copy, 70, rest}}), straight);
}

INSTANTIATE_TEST_SUITE_P(All, GoldenTest,
                         testing::Combine(testing::ValuesIn(HostBackends()),
                                          testing::Values("tiny", "tiny_apf_gate")),
                         [](const auto& param_info) {
                           return absl::StrCat(std::get<0>(param_info.param), "_",
                                               std::get<1>(param_info.param));
                         });

// --- Every switch of the architecture, against the naive network ---

struct Variant {
  std::string name;
  void (*change)(ArchitectureConfig* arch);
};

std::vector<Variant> Variants() {
  using kernels::Activation;
  using kernels::QkNorm;
  return {
      {"plain", [](ArchitectureConfig*) {}},
      {"delta_net", [](ArchitectureConfig* a) { a->eta = 0; }},
      {"apf", [](ArchitectureConfig* a) { a->apf = Apf::kScalar; }},
      {"apf_without_eta",
       [](ArchitectureConfig* a) {
         a->apf = Apf::kScalar;
         a->eta = 0;
         a->apf_anchor = 0.75;
       }},
      {"apf_plain_decay",
       [](ArchitectureConfig* a) {
         a->apf = Apf::kScalar;
         a->apf_anchor = 0;
       }},
      {"narrow_box",
       [](ArchitectureConfig* a) {
         a->eta = 3;
         a->d_min = 0.9;
         a->d_max = 1.05;
       }},
      {"gate", [](ArchitectureConfig* a) { a->use_gate = true; }},
      {"tied", [](ArchitectureConfig* a) { a->tie_embeddings = true; }},
      {"no_beta", [](ArchitectureConfig* a) { a->use_beta = false; }},
      {"no_beta_apf_neg_eigval",
       [](ArchitectureConfig* a) {
         a->use_beta = false;
         a->apf = Apf::kScalar;
         a->allow_neg_eigval = true;
       }},
      {"neg_eigval", [](ArchitectureConfig* a) { a->allow_neg_eigval = true; }},
      {"no_conv", [](ArchitectureConfig* a) { a->use_short_conv = false; }},
      {"no_conv_identity",
       [](ArchitectureConfig* a) {
         a->use_short_conv = false;
         a->qk_activation = Activation::kIdentity;
       }},
      {"conv_bias", [](ArchitectureConfig* a) { a->conv_bias = true; }},
      {"conv_size_1", [](ArchitectureConfig* a) { a->conv_size = 1; }},
      {"conv_size_2", [](ArchitectureConfig* a) { a->conv_size = 2; }},
      {"relu", [](ArchitectureConfig* a) { a->qk_activation = Activation::kRelu; }},
      {"identity", [](ArchitectureConfig* a) { a->qk_activation = Activation::kIdentity; }},
      {"elu_sum",
       [](ArchitectureConfig* a) {
         a->qk_activation = Activation::kEluPlusOne;
         a->qk_norm = QkNorm::kSum;
       }},
      {"no_conv_elu_sum",
       [](ArchitectureConfig* a) {
         a->use_short_conv = false;
         a->qk_activation = Activation::kEluPlusOne;
         a->qk_norm = QkNorm::kSum;
       }},
      {"key_wider_than_value",
       [](ArchitectureConfig* a) {
         a->key_dim = 12;
         a->value_dim = 3;
       }},
  };
}

class VariantTest : public testing::TestWithParam<std::tuple<std::string, Variant>> {};

TEST_P(VariantTest, MatchesTheNaiveNetwork) {
  constexpr uint64_t kSeed = 7;
  constexpr size_t kTokens = 83;
  ModelConfig config;
  config.arch = SmallArchitecture();
  std::get<1>(GetParam()).change(&config.arch);
  const TensorMap tensors = RandomTensors(config.arch, kSeed);
  const TempDir dir;
  testing_support::WriteModel(config, tensors, dir.path());
  const std::vector<int32_t> ids = RandomIds(kTokens, config.arch.vocab_size, kSeed);
  const std::vector<double> want = NaiveLogits(config.arch, tensors, ids);
  double scale = 0;
  for (const double logit : want) scale = std::max(scale, std::abs(logit));

  Harness harness(std::get<0>(GetParam()), dir.path(), 1);
  for (const size_t split : {size_t{1}, size_t{5}, kTokens}) {
    const int32_t slot = harness.Acquire();
    // Of the largest logit. Without beta and with reflections nothing damps the rounding of
    // float32, which instruction sets order differently: 2.1e-5 was seen with AVX2.
    EXPECT_LE(MaxError(harness.Run(slot, ids, split), want), 4e-5 * scale)
        << "split " << split << ", seed " << kSeed << ", largest logit " << scale;
    ASSERT_TRUE(harness.pool().Release(slot).ok());
  }
}

INSTANTIATE_TEST_SUITE_P(All, VariantTest,
                         testing::Combine(testing::ValuesIn(HostBackends()),
                                          testing::ValuesIn(Variants())),
                         [](const auto& param_info) {
                           return absl::StrCat(std::get<0>(param_info.param), "_",
                                               std::get<1>(param_info.param).name);
                         });

// --- bf16 and misuse ---

class ModelTest : public testing::TestWithParam<std::string> {};

TEST_P(ModelTest, Bf16WeightsStayCloseToFloat32) {
  constexpr uint64_t kSeed = 11;
  ModelConfig config;
  config.arch = SmallArchitecture();
  config.dtype = kernels::DType::kBF16;
  const TensorMap tensors = RandomTensors(config.arch, kSeed);
  const TempDir dir;
  testing_support::WriteModel(config, tensors, dir.path());
  const std::vector<int32_t> ids = RandomIds(50, config.arch.vocab_size, kSeed);
  Harness harness(GetParam(), dir.path(), 1);
  const double error =
      MaxError(harness.Run(harness.Acquire(), ids, 50), NaiveLogits(config.arch, tensors, ids));
  EXPECT_LE(error, 0.15) << "bf16 has 8 bits: far more is a wrong reading, not rounding";
  EXPECT_GT(error, 1e-5) << "no rounding at all: these are not bf16 weights";
}

TEST_P(ModelTest, RefusesContradictoryBatches) {
  const TempDir dir;
  testing_support::WriteGoldenModel("tiny", dir.path());
  Harness harness(GetParam(), dir.path(), 2, 8);
  const int32_t slot = harness.Acquire();
  std::vector<float> logits(97);
  const std::vector<int64_t> last = {1};
  const std::vector<int32_t> two = {1, 2};
  const auto forward = [&](const BatchView& batch, const std::vector<int32_t>& tokens,
                           const std::vector<int64_t>& rows) {
    return harness.model().Forward(batch, tokens, rows, harness.pool(), absl::MakeSpan(logits));
  };
  const std::vector<SequenceSpan> good = {{0, 2, 0, slot}};
  ASSERT_TRUE(forward({2, 0, good}, two, last).ok());

  const auto code = absl::StatusCode::kInvalidArgument;
  EXPECT_EQ(forward({2, 0, good}, {1}, last).code(), code) << "tokens do not fill the rows";
  EXPECT_EQ(forward({2, 0, good}, {1, 97}, last).code(), code) << "id beyond the vocabulary";
  EXPECT_EQ(forward({2, 0, good}, {1, -1}, last).code(), code) << "negative id";
  EXPECT_EQ(forward({2, 0, good}, two, {2}).code(), code) << "logit row beyond the batch";
  EXPECT_EQ(forward({2, 0, good}, two, {0, 1}).code(), code) << "too little room for logits";
  EXPECT_EQ(forward({2, 1, good}, two, last).code(), code) << "a decode row of length 2";
  EXPECT_EQ(forward({0, 0, {}}, {}, {}).code(), code) << "empty";
  EXPECT_EQ(forward({9, 0, good}, std::vector<int32_t>(9, 1), last).code(), code)
      << "over max_rows";
  const std::vector<SequenceSpan> bad_slot = {{0, 2, 0, 2}};
  EXPECT_EQ(forward({2, 0, bad_slot}, two, last).code(), code);
  const std::vector<SequenceSpan> gap = {{0, 1, 0, slot}};
  EXPECT_EQ(forward({2, 0, gap}, two, last).code(), code) << "spans do not cover the rows";
  const std::vector<SequenceSpan> negative = {{0, 2, -1, slot}};
  EXPECT_EQ(forward({2, 0, negative}, two, last).code(), code);

  const auto backend = MakeBackend(GetParam());
  auto foreign = StatePool::Create(backend.get(), StateLayout(SmallArchitecture()), 1);
  ASSERT_TRUE(foreign.ok());
  EXPECT_EQ(
      harness.model().Forward({2, 0, good}, two, last, *foreign, absl::MakeSpan(logits)).code(),
      code)
      << "a pool of another model";
}

TEST_P(ModelTest, RefusesWeightsOfAnotherArchitecture) {
  const TempDir dir;
  testing_support::WriteGoldenModel("tiny", dir.path());
  const auto config = LoadModelConfig(dir.path());
  ASSERT_TRUE(config.ok()) << config.status();
  const auto weights = Weights::Load(dir.path(), *config, {});
  ASSERT_TRUE(weights.ok()) << weights.status();
  const auto backend = MakeBackend(GetParam());
  for (const ArchitectureConfig& arch :
       {GoldenArchitecture("tiny_apf_gate"), SmallArchitecture()}) {
    const auto model = Model::Create(arch, *weights, backend.get(), {});
    EXPECT_EQ(model.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(model.status().message()), testing::HasSubstr("another architecture"));
  }
}

TEST_P(ModelTest, RefusesSenselessLimits) {
  const TempDir dir;
  testing_support::WriteGoldenModel("tiny", dir.path());
  const auto config = LoadModelConfig(dir.path());
  ASSERT_TRUE(config.ok()) << config.status();
  const auto weights = Weights::Load(dir.path(), *config, {});
  ASSERT_TRUE(weights.ok()) << weights.status();
  const auto backend = MakeBackend(GetParam());
  const auto create = [&](int64_t rows, int64_t logit_rows) {
    return Model::Create(config->arch, *weights, backend.get(), {rows, logit_rows}).status();
  };
  EXPECT_EQ(create(0, 1).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(create(1, 0).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(create(int64_t{1} << 40, 1).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(create(1, 1).ok());
}

INSTANTIATE_TEST_SUITE_P(All, ModelTest, testing::ValuesIn(HostBackends()),
                         [](const auto& param_info) { return param_info.param; });

}  // namespace
}  // namespace osdn
