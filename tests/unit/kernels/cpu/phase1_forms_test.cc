// The two forms of phase 1 against each other: the Gram form where the box is not touched, its
// fall-back to the token loop where it is.
#include <algorithm>
#include <cmath>
#include <iostream>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/mixer.h"
#include "tests/unit/kernels/test_backend.h"
#include "tests/unit/kernels/test_random.h"

namespace osdn::kernels::cpu {
namespace {

constexpr int64_t kHeads = 3;

// Whether some d of a chunk wants to leave the box.
enum class Clip { kNever, kSometimes, kInEveryChunk };

struct Scenario {
  std::string name;
  float eta = 0.003F;
  float anchor = 1;
  float log_alpha = 0;  // of most tokens; 0 = no APF
  float rare_log_alpha = 0;
  Clip clip = Clip::kNever;
};

std::vector<Scenario> Scenarios() {
  return {
      {.name = "without_apf", .eta = 0.05F},
      {.name = "apf", .eta = 0.05F, .log_alpha = -0.01F, .rare_log_alpha = -0.5F},
      {.name = "underflowing_alpha", .log_alpha = -0.01F, .rare_log_alpha = -100},
      {.name = "vanishing_alpha", .log_alpha = -0.01F, .rare_log_alpha = -1e6F},
      // Pulls d to 0, so to its lower bound, in every chunk.
      {.name = "decay",
       .anchor = 0,
       .log_alpha = -1,
       .rare_log_alpha = -1,
       .clip = Clip::kInEveryChunk},
      {.name = "large_eta", .eta = 20, .clip = Clip::kSometimes},
  };
}

struct Data {
  std::vector<float> q, k, v, beta, log_alpha, s, d, o;
};

void Normalise(int64_t dim, std::vector<float>* x) {
  for (size_t row = 0; row < x->size(); row += dim) {
    double squares = 0;
    for (int64_t i = 0; i < dim; ++i) squares += (*x)[row + i] * (*x)[row + i];
    for (int64_t i = 0; i < dim; ++i) (*x)[row + i] /= static_cast<float>(std::sqrt(squares));
  }
}

Data MakeData(const Scenario& scenario, int64_t rows, int64_t key_dim, int64_t value_dim,
              Random* random) {
  Data data;
  data.q = random->Normals(rows * kHeads * key_dim);
  data.k = random->Normals(rows * kHeads * key_dim);
  data.v = random->Normals(rows * kHeads * value_dim);
  Normalise(key_dim, &data.q);
  Normalise(key_dim, &data.k);
  for (int64_t i = 0; i < rows * kHeads; ++i) {
    data.beta.push_back(static_cast<float>(random->Uniform(0.1, 0.9)));
    if (scenario.log_alpha == 0) continue;
    data.log_alpha.push_back(i % 11 == 4 ? scenario.rare_log_alpha : scenario.log_alpha);
  }
  data.s = random->Normals(kHeads * value_dim * key_dim);
  data.d = std::vector<float>(kHeads * key_dim, 1.0F);
  data.o = std::vector<float>(rows * kHeads * value_dim);
  return data;
}

Data Mixed(const Scenario& scenario, Phase1Form form, const SequenceSpan& span, int64_t key_dim,
           int64_t value_dim, Data data) {
  MixerArgs args;
  args.batch = {span.length, 0, {&span, 1}};
  args.heads = kHeads;
  args.key_dim = key_dim;
  args.value_dim = value_dim;
  args.precond.eta = scenario.eta;
  args.precond.anchor = scenario.anchor;
  args.q = data.q.data();
  args.k = data.k.data();
  args.v = data.v.data();
  args.beta = data.beta.data();
  args.log_alpha = data.log_alpha.empty() ? nullptr : data.log_alpha.data();
  args.s = {data.s.data(), 0};
  args.d = {data.d.data(), 0};
  args.o = data.o.data();
  const Threads threads(2);
  ThreadScratch scratch(threads.count());
  const absl::Status status = Mix(args, form, threads, scratch);
  EXPECT_TRUE(status.ok()) << status;
  return data;
}

::testing::AssertionResult CloseFloats(const std::vector<float>& actual,
                                       const std::vector<float>& expected) {
  return CloseToMax(actual, {expected.begin(), expected.end()}, 1e-5);
}

class Phase1FormsTest : public ::testing::TestWithParam<Scenario> {
 protected:
  void TearDown() override {
    if (HasFailure()) std::cout << "Reproduce with OSDN_TEST_SEED=" << TestSeed() << "\n";
  }
  Random random_;
};

TEST_P(Phase1FormsTest, Agree) {
  const Scenario& scenario = GetParam();
  bool same_bits = true;
  for (const auto& [key_dim, value_dim] : {std::pair{16, 16}, {33, 7}, {64, 80}, {128, 128}}) {
    for (const SequenceSpan& span :
         {SequenceSpan{0, 16, 0, 0}, {0, 64, 64, 0}, {0, 49, 3, 0}, {0, 200, 37, 0}}) {
      SCOPED_TRACE("key " + std::to_string(key_dim) + ", tokens " + std::to_string(span.length));
      const Data start = MakeData(scenario, span.length, key_dim, value_dim, &random_);
      const Data loop = Mixed(scenario, Phase1Form::kTokenLoop, span, key_dim, value_dim, start);
      const Data gram = Mixed(scenario, Phase1Form::kGram, span, key_dim, value_dim, start);
      EXPECT_TRUE(CloseFloats(gram.o, loop.o));
      EXPECT_TRUE(CloseFloats(gram.s, loop.s));
      EXPECT_TRUE(CloseFloats(gram.d, loop.d));
      same_bits = same_bits && gram.o == loop.o && gram.s == loop.s && gram.d == loop.d;
    }
  }
  // Rounding tells which way was taken: the token loop always, or the Gram form at times.
  EXPECT_EQ(same_bits, scenario.clip == Clip::kInEveryChunk);
}

INSTANTIATE_TEST_SUITE_P(All, Phase1FormsTest, ::testing::ValuesIn(Scenarios()),
                         [](const auto& param_info) { return param_info.param.name; });

}  // namespace
}  // namespace osdn::kernels::cpu
