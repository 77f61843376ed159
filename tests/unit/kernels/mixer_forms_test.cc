// The mixer's chunk form against its token recurrence, and the properties both must have.
#include <algorithm>
#include <cmath>
#include <iostream>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/reference/mixer.h"
#include "tests/unit/kernels/test_backend.h"
#include "tests/unit/kernels/test_random.h"

namespace osdn::kernels {
namespace {

// One head's inputs, start state and results in precision T.
template <typename T>
struct Sequence {
  int64_t tokens = 0;
  int64_t key_dim = 0;
  int64_t value_dim = 0;
  PreconditionerParams precond = {};
  std::vector<T> q, k, v, beta, log_alpha, s, d, o;

  reference::MixerHead<T> Head() {
    return {.tokens = tokens,
            .key_dim = key_dim,
            .value_dim = value_dim,
            .precond = precond,
            .q = q.data(),
            .k = k.data(),
            .v = v.data(),
            .beta = beta.data(),
            .log_alpha = log_alpha.empty() ? nullptr : log_alpha.data(),
            .s = s.data(),
            .d = d.data(),
            .o = o.data()};
  }

  template <typename U>
  Sequence<U> As() const {
    const auto as = [](const std::vector<T>& x) { return std::vector<U>(x.begin(), x.end()); };
    return {tokens, key_dim,  value_dim,     precond, as(q), as(k),
            as(v),  as(beta), as(log_alpha), as(s),   as(d), as(o)};
  }
};

struct Scenario {
  std::string name;
  PreconditionerParams precond = {};
  double beta_min = 0;
  double beta_max = 1;
  double log_alpha_min = 0;  // 0: no APF
  bool zero_keys = false;
  bool expect_clip = false;
};

std::ostream& operator<<(std::ostream& out, const Scenario& scenario) {
  return out << scenario.name;
}

std::string ScenarioLabel(const ::testing::TestParamInfo<Scenario>& info) {
  return info.param.name;
}

PreconditionerParams With(float eta, float anchor = 1) {
  PreconditionerParams precond;
  precond.eta = eta;
  precond.anchor = anchor;
  return precond;
}

std::vector<Scenario> Scenarios() {
  return {
      {.name = "default", .precond = With(0.003F)},
      {.name = "apf", .precond = With(0.05F), .log_alpha_min = -0.5},
      {.name = "tiny_alpha", .precond = With(0.05F), .log_alpha_min = -69},  // down to 1e-30
      {.name = "vanishing_alpha", .precond = With(0.05F), .log_alpha_min = -1e6},
      {.name = "decay_to_zero",
       .precond = With(0.003F, 0),
       .log_alpha_min = -0.1,
       .expect_clip = true},
      {.name = "large_eta",  // beta <d, k^2> wants to be 1, so d wants to be above 2
       .precond = With(0.8F),
       .beta_max = 0.4,
       .expect_clip = true},
      {.name = "large_eta_apf", .precond = With(3), .log_alpha_min = -0.01, .expect_clip = true},
      {.name = "negative_eigenvalues", .precond = With(0.003F), .beta_max = 2},
      {.name = "beta_two",  // drives <d, k^2> to 1/2, so d to its lower bound
       .precond = With(0.003F),
       .beta_min = 2,
       .beta_max = 2,
       .expect_clip = true},
      {.name = "beta_zero", .precond = With(0.003F), .beta_min = 0, .beta_max = 0},
      {.name = "zero_keys", .precond = With(0.05F), .zero_keys = true},
  };
}

void FillKey(bool zero, double scale, Random* random, int64_t dim, double* key) {
  double squares = 0;
  for (int64_t i = 0; i < dim; ++i) {
    key[i] = random->Uniform(-1, 1);
    squares += key[i] * key[i];
  }
  for (int64_t i = 0; i < dim; ++i) key[i] *= zero ? 0 : scale / std::sqrt(squares);
}

// Values are exact in float32, so that both precisions start from the same numbers.
Sequence<double> MakeSequence(const Scenario& scenario, int64_t tokens, int64_t key_dim,
                              int64_t value_dim, Random* random) {
  Sequence<double> sequence = {.tokens = tokens,
                               .key_dim = key_dim,
                               .value_dim = value_dim,
                               .precond = scenario.precond,
                               .q = std::vector<double>(tokens * key_dim),
                               .k = std::vector<double>(tokens * key_dim),
                               .v = std::vector<double>(tokens * value_dim),
                               .beta = {},
                               .log_alpha = {},
                               .s = {},
                               .d = {},
                               .o = std::vector<double>(tokens * value_dim)};
  for (int64_t t = 0; t < tokens; ++t) {
    FillKey(false, 1 / std::sqrt(static_cast<double>(key_dim)), random, key_dim,
            sequence.q.data() + t * key_dim);
    FillKey(scenario.zero_keys && t % 3 != 1, 1, random, key_dim, sequence.k.data() + t * key_dim);
    sequence.beta.push_back(random->Uniform(scenario.beta_min, scenario.beta_max));
    // Mostly near 1, with single tokens of the smallest alpha.
    const double log_alpha = random->Uniform(-0.01, 0);
    if (scenario.log_alpha_min != 0) {
      sequence.log_alpha.push_back(t % 11 == 4 ? scenario.log_alpha_min : log_alpha);
    }
  }
  for (double& v : sequence.v) v = random->Uniform(-2, 2);
  for (int64_t i = 0; i < value_dim * key_dim; ++i) sequence.s.push_back(random->Uniform(-1, 1));
  for (int64_t i = 0; i < key_dim; ++i) sequence.d.push_back(random->Uniform(0.7, 1));
  return sequence.As<float>().As<double>();
}

double MaxError(const std::vector<double>& actual, const std::vector<double>& expected) {
  double error = 0;
  double max = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double difference = std::abs(actual[i] - expected[i]);
    error = std::isnan(difference) ? std::numeric_limits<double>::infinity()
                                   : std::max(error, difference);
    max = std::max(max, std::abs(expected[i]));
  }
  return max == 0 ? error : error / max;
}

// Relative to the maximum of o, S and d.
void ExpectClose(const Sequence<double>& actual, const Sequence<double>& expected, double bar) {
  EXPECT_LE(MaxError(actual.o, expected.o), bar) << "o";
  EXPECT_LE(MaxError(actual.s, expected.s), bar) << "S";
  EXPECT_LE(MaxError(actual.d, expected.d), bar) << "d";
}

template <typename T>
void ExpectInBox(const std::vector<T>& d, const PreconditionerParams& precond) {
  for (const T value : d) {
    ASSERT_GE(value, T(precond.d_min));
    ASSERT_LE(value, T(precond.d_max));
  }
}

class MixerFormsTest : public ::testing::TestWithParam<Scenario> {
 protected:
  void TearDown() override {
    if (HasFailure()) std::cout << "Reproduce with OSDN_TEST_SEED=" << TestSeed() << "\n";
  }
  Random random_;
};

TEST_P(MixerFormsTest, ChunkFormIsTheTokenForm) {
  for (const auto& [key_dim, value_dim] : {std::pair{8, 16}, {33, 7}, {64, 64}}) {
    for (const int64_t tokens : {1, 2, 17, 64, 65, 200}) {
      for (const int64_t position : {0, 37}) {
        for (const int64_t chunk : {1, 5, 64}) {
          SCOPED_TRACE("key " + std::to_string(key_dim) + ", tokens " + std::to_string(tokens) +
                       ", position " + std::to_string(position) + ", chunk " +
                       std::to_string(chunk));
          const Sequence<double> start =
              MakeSequence(GetParam(), tokens, key_dim, value_dim, &random_);
          Sequence<double> truth = start;
          reference::MixerTokens(truth.Head());
          Sequence<double> in_double = start;
          reference::MixerChunks(in_double.Head(), position, chunk);
          ExpectClose(in_double, truth, 1e-12);
          Sequence<float> in_float = start.As<float>();
          reference::MixerChunks(in_float.Head(), position, chunk);
          ExpectClose(in_float.As<double>(), truth, 1e-5);
        }
      }
    }
  }
}

TEST_P(MixerFormsTest, ClipsWhereItShouldAndOnlyThere) {
  Sequence<double> sequence = MakeSequence(GetParam(), 2000, 16, 4, &random_);
  const reference::ChunkCounts counts = reference::MixerChunks(sequence.Head(), 0);
  EXPECT_EQ(counts.chunks, 32);  // ceil(2000 / 64)
  EXPECT_EQ(counts.clipped > 0, GetParam().expect_clip) << counts.clipped << " chunks clipped";
}

// Token by token, so that every d_t is seen, for any beta, alpha and eta and both forms.
TEST_P(MixerFormsTest, PreconditionerStaysInItsBox) {
  for (const float eta : {0.0F, 0.003F, 0.8F, 20.0F}) {
    SCOPED_TRACE("eta " + std::to_string(eta));
    Sequence<float> tokens = MakeSequence(GetParam(), 300, 16, 2, &random_).As<float>();
    tokens.precond.eta = eta;
    Sequence<float> chunks = tokens;
    for (int64_t t = 0; t < tokens.tokens; ++t) {
      const auto step = [t](Sequence<float>* sequence) {
        reference::MixerHead<float> head = sequence->Head();
        head.tokens = 1;
        head.q += t * head.key_dim;
        head.k += t * head.key_dim;
        head.v += t * head.value_dim;
        head.beta += t;
        if (head.log_alpha != nullptr) head.log_alpha += t;
        return head;
      };
      reference::MixerTokens(step(&tokens));
      reference::MixerChunks(step(&chunks), t);
      ExpectInBox(tokens.d, tokens.precond);
      ExpectInBox(chunks.d, chunks.precond);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, MixerFormsTest, ::testing::ValuesIn(Scenarios()), ScenarioLabel);

// Off, and eta = 0 without APF from d = 1, are both exactly DeltaNet.
template <typename Form>
void ExpectDisabledIsEtaZero(const Form& form) {
  Random random;
  Sequence<float> zero_eta =
      MakeSequence({.name = "", .precond = With(0)}, 150, 48, 24, &random).As<float>();
  std::fill(zero_eta.d.begin(), zero_eta.d.end(), 1.0F);
  Sequence<float> disabled = zero_eta;
  disabled.precond.enabled = false;
  disabled.precond.eta = 0.5F;  // must not matter
  form(zero_eta.Head());
  reference::MixerHead<float> head = disabled.Head();
  head.d = nullptr;  // must not be touched
  form(head);
  EXPECT_EQ(disabled.o, zero_eta.o);
  EXPECT_EQ(disabled.s, zero_eta.s);
  EXPECT_EQ(zero_eta.d, std::vector<float>(48, 1.0F));
}

TEST(MixerReferenceTest, DisabledIsEtaZeroInTheTokenForm) {
  ExpectDisabledIsEtaZero([](const auto& head) { reference::MixerTokens(head); });
}

TEST(MixerReferenceTest, DisabledIsEtaZeroInTheChunkForm) {
  ExpectDisabledIsEtaZero([](const auto& head) { reference::MixerChunks(head, 37); });
}

// DeltaNet by hand: keys e_1, e_2, e_1 overwrite the columns of S, and o reads them.
TEST(MixerReferenceTest, DeltaRuleOverwritesWhatAKeyHolds) {
  Sequence<double> sequence = {.tokens = 3,
                               .key_dim = 2,
                               .value_dim = 1,
                               .precond = With(0),
                               .q = {1, 0, 1, 1, 1, 1},
                               .k = {1, 0, 0, 1, 1, 0},
                               .v = {5, 7, 3},
                               .beta = {1, 1, 0.5},
                               .log_alpha = {},
                               .s = {0, 0},
                               .d = {1, 1},
                               .o = {0, 0, 0}};
  reference::MixerTokens(sequence.Head());
  EXPECT_EQ(sequence.o, (std::vector<double>{5, 12, 11}));
  EXPECT_EQ(sequence.s, (std::vector<double>{4, 7}));
}

// One step of d by hand: k = e_1, d = (1, 1.5), beta 0.5, eta 0.2, alpha 0.5, a = 1:
// g = 1 - 0.5; d_1 = 1 + 0.5 * 0 + 0.2 * 0.5 * 0.5 = 1.05; d_2 = 1 + 0.5 * 0.5 = 1.25.
TEST(MixerReferenceTest, PreconditionerStepByHand) {
  Sequence<double> sequence = {.tokens = 1,
                               .key_dim = 2,
                               .value_dim = 1,
                               .precond = With(0.2F),
                               .q = {1, 1},
                               .k = {1, 0},
                               .v = {0},
                               .beta = {0.5},
                               .log_alpha = {std::log(0.5)},
                               .s = {0, 0},
                               .d = {1, 1.5},
                               .o = {0}};
  reference::MixerTokens(sequence.Head());
  EXPECT_NEAR(sequence.d[0], 1.05, 1e-8);
  EXPECT_NEAR(sequence.d[1], 1.25, 1e-15);
}

// float32 keeps to float64 over a long sequence: errors do not build up.
TEST(MixerReferenceTest, Float32DoesNotDrift) {
  Random random;
  for (const Scenario& scenario : Scenarios()) {
    SCOPED_TRACE(scenario.name);
    Sequence<double> truth = MakeSequence(scenario, 8192, 16, 8, &random);
    Sequence<float> in_float = truth.As<float>();
    reference::MixerTokens(truth.Head());
    reference::MixerTokens(in_float.Head());
    ExpectClose(in_float.As<double>(), truth, 1e-5);
  }
}

class BackendMixerTest : public BackendTest {
 protected:
  // Runs one prefill span in slot 0 and updates the sequence's s, d and o.
  void RunSpan(Sequence<float>* sequence, int64_t position) {
    DeviceFloats q(&backend(), sequence->q), k(&backend(), sequence->k), v(&backend(), sequence->v);
    DeviceFloats beta(&backend(), sequence->beta), log_alpha(&backend(), sequence->log_alpha);
    DeviceFloats s(&backend(), sequence->s), d(&backend(), sequence->d), o(&backend(), sequence->o);
    const SequenceSpan span = {0, sequence->tokens, position, 0};
    const bool with_d = sequence->precond.enabled;
    const absl::Status status =
        backend().Mixer({.batch = {.rows = span.length, .decode_rows = 0, .spans = {&span, 1}},
                         .heads = 1,
                         .key_dim = sequence->key_dim,
                         .value_dim = sequence->value_dim,
                         .precond = sequence->precond,
                         .q = q.data(),
                         .k = k.data(),
                         .v = v.data(),
                         .beta = beta.data(),
                         .log_alpha = sequence->log_alpha.empty() ? nullptr : log_alpha.data(),
                         .s = {.base = s.data(), .slot_stride = 0},
                         .d = {.base = with_d ? d.data() : nullptr, .slot_stride = 0},
                         .o = o.data()});
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_TRUE(backend().Synchronize().ok());
    sequence->s = s.Read();
    sequence->d = d.Read();
    sequence->o = o.Read();
  }
};

TEST_P(BackendMixerTest, EveryScenario) {
  for (const Scenario& scenario : Scenarios()) {
    for (const int64_t tokens : {1, 63, 200}) {
      SCOPED_TRACE(scenario.name + ", tokens " + std::to_string(tokens));
      Sequence<double> truth = MakeSequence(scenario, tokens, 32, 24, &random());
      Sequence<float> sequence = truth.As<float>();
      reference::MixerTokens(truth.Head());
      RunSpan(&sequence, 37);
      ExpectClose(sequence.As<double>(), truth, 1e-5);
    }
  }
}

TEST_P(BackendMixerTest, PreconditionerStaysInItsBox) {
  for (const Scenario& scenario : Scenarios()) {
    for (const float eta : {0.8F, 20.0F}) {
      for (const int64_t tokens : {1, 5, 64, 100}) {
        SCOPED_TRACE(scenario.name + ", eta " + std::to_string(eta) + ", tokens " +
                     std::to_string(tokens));
        Sequence<float> sequence = MakeSequence(scenario, tokens, 16, 8, &random()).As<float>();
        sequence.precond.eta = eta;
        RunSpan(&sequence, 0);
        ExpectInBox(sequence.d, sequence.precond);
      }
    }
  }
}

TEST_P(BackendMixerTest, DisabledIsEtaZero) {
  for (const int64_t tokens : {1, 150}) {
    Sequence<float> zero_eta =
        MakeSequence({.name = "", .precond = With(0)}, tokens, 48, 24, &random()).As<float>();
    std::fill(zero_eta.d.begin(), zero_eta.d.end(), 1.0F);
    Sequence<float> disabled = zero_eta;
    disabled.precond.enabled = false;
    RunSpan(&zero_eta, 0);
    RunSpan(&disabled, 0);
    EXPECT_EQ(zero_eta.d, std::vector<float>(48, 1.0F));
    ExpectClose(disabled.As<double>(), zero_eta.As<double>(), 1e-6);
  }
}

INSTANTIATE_TEST_SUITE_P(All, BackendMixerTest, ::testing::ValuesIn(TestBackends()),
                         TestBackendLabel);

}  // namespace
}  // namespace osdn::kernels
