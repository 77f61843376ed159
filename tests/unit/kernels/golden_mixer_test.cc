// Every form of the mixer against vectors of an independent float64 implementation, for every split
// of the prompt: within 1e-5 relative to the maximum of o, S and d (docs/model.md section 5).
#include <algorithm>
#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/reference/mixer.h"
#include "tests/unit/kernels/golden.h"
#include "tests/unit/kernels/test_backend.h"

namespace osdn::kernels {
namespace {

constexpr double kBar = 1e-5;

struct MixerResult {
  std::vector<float> o, s, d;
};

void ExpectGolden(const MixerResult& result, const GoldenMixer& golden) {
  const auto widen = [&golden](const char* name) {
    return std::vector<double>(golden[name].begin(), golden[name].end());
  };
  EXPECT_TRUE(CloseToMax(result.o, widen("o"), kBar)) << "o";
  EXPECT_TRUE(CloseToMax(result.s, widen("S"), kBar)) << "S";
  EXPECT_TRUE(CloseToMax(result.d, widen("d"), kBar)) << "d";
}

std::vector<float> LogAlpha(const GoldenMixer& golden) {
  std::vector<float> log_alpha;
  for (const float alpha : golden["alpha"]) {
    log_alpha.push_back(static_cast<float>(std::log(static_cast<double>(alpha))));
  }
  return log_alpha;
}

// (file, tokens a split; 0 = the whole prompt at once)
using GoldenParam = std::tuple<std::string, int64_t>;

std::string GoldenLabel(const ::testing::TestParamInfo<GoldenParam>& info) {
  const int64_t split = std::get<1>(info.param);
  return std::get<0>(info.param) + "_by_" + (split == 0 ? "all" : std::to_string(split));
}

class GoldenReferenceTest : public ::testing::TestWithParam<GoldenParam> {
 protected:
  // Runs `form(head, position)` over the golden prompt, split by split, in precision T.
  template <typename T, typename Form>
  void Check(const Form& form) {
    const GoldenMixer golden = ReadGoldenMixer(std::get<0>(GetParam()));
    const auto as = [](const std::vector<float>& values) {
      return std::vector<T>(values.begin(), values.end());
    };
    const int64_t step = std::get<1>(GetParam()) == 0 ? golden.tokens() : std::get<1>(GetParam());
    const std::vector<T> q = as(golden["q"]), k = as(golden["k"]), v = as(golden["v"]);
    const std::vector<T> beta = as(golden["beta"]), log_alpha = as(LogAlpha(golden));
    std::vector<T> s = as(golden["S0"]), d = as(golden["d0"]);
    std::vector<T> o(golden["o"].size());
    for (int64_t t = 0; t < golden.tokens(); t += step) {
      form(reference::MixerHead<T>{.tokens = std::min(step, golden.tokens() - t),
                                   .key_dim = golden.key_dim(),
                                   .value_dim = golden.value_dim(),
                                   .precond = golden.precond,
                                   .q = q.data() + t * golden.key_dim(),
                                   .k = k.data() + t * golden.key_dim(),
                                   .v = v.data() + t * golden.value_dim(),
                                   .beta = beta.data() + t,
                                   .log_alpha = log_alpha.data() + t,
                                   .s = s.data(),
                                   .d = d.data(),
                                   .o = o.data() + t * golden.value_dim()},
           t);
    }
    ExpectGolden({{o.begin(), o.end()}, {s.begin(), s.end()}, {d.begin(), d.end()}}, golden);
  }
};

template <typename T>
void TokenForm(const reference::MixerHead<T>& head, int64_t /*position*/) {
  reference::MixerTokens(head);
}

template <typename T>
void ChunkForm(const reference::MixerHead<T>& head, int64_t position) {
  reference::MixerChunks(head, position);
}

TEST_P(GoldenReferenceTest, TokenFormInFloat64) { Check<double>(TokenForm<double>); }
TEST_P(GoldenReferenceTest, TokenFormInFloat32) { Check<float>(TokenForm<float>); }
TEST_P(GoldenReferenceTest, ChunkFormInFloat64) { Check<double>(ChunkForm<double>); }
TEST_P(GoldenReferenceTest, ChunkFormInFloat32) { Check<float>(ChunkForm<float>); }

INSTANTIATE_TEST_SUITE_P(All, GoldenReferenceTest,
                         ::testing::Combine(::testing::ValuesIn(GoldenMixerNames()),
                                            ::testing::Values(1, 7, 64, 0)),
                         GoldenLabel);

class GoldenBackendTest : public BackendTest {
 protected:
  // `decode` sends each token as a decode row (split 1 only).
  void Check(const GoldenMixer& golden, int64_t split, bool decode) {
    DeviceFloats q(&backend(), golden["q"]), k(&backend(), golden["k"]), v(&backend(), golden["v"]);
    DeviceFloats beta(&backend(), golden["beta"]), log_alpha(&backend(), LogAlpha(golden));
    DeviceFloats s(&backend(), golden["S0"]), d(&backend(), golden["d0"]);
    DeviceFloats o(&backend(), std::vector<float>(golden["o"].size()));
    const int64_t step = split == 0 ? golden.tokens() : split;
    for (int64_t t = 0; t < golden.tokens(); t += step) {
      const SequenceSpan span = {
          .row = 0, .length = std::min(step, golden.tokens() - t), .position = t, .slot = 0};
      const MixerArgs args = {
          .batch = {.rows = span.length, .decode_rows = decode ? 1 : 0, .spans = {&span, 1}},
          .heads = 1,
          .key_dim = golden.key_dim(),
          .value_dim = golden.value_dim(),
          .precond = golden.precond,
          .q = q.data() + t * golden.key_dim(),
          .k = k.data() + t * golden.key_dim(),
          .v = v.data() + t * golden.value_dim(),
          .beta = beta.data() + t,
          .log_alpha = log_alpha.data() + t,
          .s = {.base = s.data(), .slot_stride = 0},
          .d = {.base = d.data(), .slot_stride = 0},
          .o = o.data() + t * golden.value_dim()};
      const absl::Status status = backend().Mixer(args);
      ASSERT_TRUE(status.ok()) << status;
      ASSERT_TRUE(backend().Synchronize().ok());  // before `span` goes
    }
    ExpectGolden({o.Read(), s.Read(), d.Read()}, golden);
  }
};

TEST_P(GoldenBackendTest, EverySplit) {
  for (const std::string& name : GoldenMixerNames()) {
    const GoldenMixer golden = ReadGoldenMixer(name);
    for (const int64_t split : {1, 7, 64, 0}) {
      SCOPED_TRACE(name + " by " + std::to_string(split));
      Check(golden, split, /*decode=*/false);
    }
    SCOPED_TRACE(name + " decoded");
    Check(golden, 1, /*decode=*/true);
  }
}

INSTANTIATE_TEST_SUITE_P(All, GoldenBackendTest, ::testing::ValuesIn(TestBackends()),
                         TestBackendLabel);

}  // namespace
}  // namespace osdn::kernels
