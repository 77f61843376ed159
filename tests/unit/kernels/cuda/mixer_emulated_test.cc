// The CUDA mixer's kernel source, run thread by thread on the host (kernels/cuda/emulation),
// against the float64 token recurrence. What a GPU adds (real races, real memory) tests/device.sh
// checks.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "kernels/cuda/batch_plan.h"
#include "kernels/cuda/mixer_kernels.cuh"
#include "kernels/reference/mixer.h"
#include "kernels/reference/mixer_inputs.h"
#include "tests/unit/kernels/test_backend.h"
#include "tests/unit/kernels/test_random.h"

namespace osdn::kernels::cuda {
namespace {

struct EmulatedLauncher {
  template <class Kernel>
  bool Launch(Grid grid, const typename Kernel::Args& args) {
    emulation::Run({.grid = {grid.x, grid.y, grid.z},
                    .threads = Kernel::kThreads,
                    .shared_bytes = Kernel::kSharedBytes},
                   [&](unsigned char* shared) { Kernel::Run(args, shared); });
    return true;
  }
};

std::vector<Bf16> ToBf16s(const std::vector<float>& values) {
  std::vector<Bf16> result(values.size());
  for (size_t i = 0; i < values.size(); ++i) result[i].bits = ToBf16(values[i]);
  return result;
}

struct Case {
  std::string name;
  std::vector<SequenceSpan> spans;  // rows and slots are filled in
  PreconditionerParams precond;
  bool apf = false;
  float beta_max = 1;
  double d_start = 1;
  double tolerance = 0.02;  // of o and S, relative to their largest
  double d_tolerance = 2e-3;
  bool wants_redo = false;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

std::vector<SequenceSpan> Spans(const std::vector<std::pair<int64_t, int64_t>>& lengths) {
  std::vector<SequenceSpan> spans;
  int64_t row = 0;
  for (const auto& [length, position] : lengths) {
    spans.push_back({row, length, position, static_cast<int32_t>(lengths.size() - spans.size())});
    row += length;
  }
  return spans;
}

PreconditionerParams Precond(float eta, bool enabled = true) {
  PreconditionerParams params;
  params.eta = eta;
  params.enabled = enabled;
  return params;
}

// Random inputs of a batch and room for everything that the kernels write.
template <int kK, int kV>
class Problem {
 public:
  static constexpr int kHeads = 2;

  Problem(const Case& c, Random* random) : case_(c) {
    view_.spans = case_.spans;
    view_.rows = case_.spans.back().row + case_.spans.back().length;
    plan_ = PlanBatch(view_);
    const auto rows = static_cast<size_t>(view_.rows);
    q_ = ToBf16s(Keys(rows, std::sqrt(1.0 / kK), random));
    k_ = ToBf16s(Keys(rows, 1.0, random));
    v_ = ToBf16s(random->Normals(rows * kHeads * kV));
    beta_ = random->Uniforms(rows * kHeads, 0.0F, c.beta_max);
    if (c.apf) log_alpha_ = random->Uniforms(rows * kHeads, -0.2F, 0.0F);
    const size_t slots = case_.spans.size() + 1;
    s_ = random->Normals(slots * kHeads * kV * kK);
    d_ = random->Uniforms(slots * kHeads * kK, static_cast<float>(c.d_start) - 0.05F,
                          static_cast<float>(c.d_start) + 0.05F);
  }

  // `multiprocessors` decides between the forms of the state pass.
  void Run(int multiprocessors) {
    const size_t keys = k_.size();
    w_d_.resize(keys);
    kt_.resize(keys);
    w_.resize(keys);
    u_.resize(v_.size());
    o_.resize(v_.size());
    p_.resize(beta_.size() * kChunk);
    s0_.resize(beta_.size());
    c_.resize(beta_.size());
    solution_.resize(beta_.size());
    e_start_.resize(plan_.chunks.size() * kHeads * kK);
    redone_.resize(plan_.chunks.size() * kHeads);
    for (auto* buffer : {&w_d_, &kt_, &w_, &u_, &o_, &p_}) {
      for (Bf16& value : *buffer) value.bits = 0x7FC0;  // what is not written is not a number
    }
    ChunkArgs args;
    args.chunks = plan_.chunks.data();
    args.spans = plan_.spans.data();
    args.heads = kHeads;
    args.precond = case_.precond;
    args.q = q_.data();
    args.k = k_.data();
    args.v = v_.data();
    args.beta = beta_.data();
    args.log_alpha = log_alpha_.empty() ? nullptr : log_alpha_.data();
    args.s = {s_.data(), kHeads * kV * kK};
    args.d = {d_.data(), kHeads * kK};
    args.w_d = w_d_.data();
    args.s0 = s0_.data();
    args.c = c_.data();
    args.solution = solution_.data();
    args.e_start = e_start_.data();
    args.redone = redone_.data();
    args.kt = case_.precond.enabled ? kt_.data() : k_.data();
    args.w = w_.data();
    args.u = u_.data();
    args.p = p_.data();
    args.o = o_.data();
    DevicePlan plan;
    plan.rows = plan_.rows;
    plan.num_spans = static_cast<int32_t>(plan_.spans.size());
    plan.num_chunks = static_cast<int32_t>(plan_.chunks.size());
    plan.spans = plan_.spans.data();
    plan.chunks = plan_.chunks.data();
    EmulatedLauncher launcher;
    ASSERT_TRUE((LaunchChunks<kK, kV>(launcher, plan, multiprocessors, args)));
  }

  void Check(int multiprocessors = 132) {
    const std::vector<float> s_before = s_;
    const std::vector<float> d_before = d_;
    Run(multiprocessors);
    for (const SequenceSpan& span : case_.spans) {
      for (int h = 0; h < kHeads; ++h) {
        SCOPED_TRACE(testing::Message() << "span of slot " << span.slot << ", head " << h);
        CheckHead(span, h, s_before, d_before);
      }
    }
    bool redone = false;
    for (const int32_t flag : redone_) redone = redone || flag != 0;
    EXPECT_EQ(redone, case_.wants_redo);
  }

  const std::vector<float>& s() const { return s_; }
  const std::vector<float>& d() const { return d_; }
  const std::vector<Bf16>& o() const { return o_; }

 private:
  std::vector<float> Keys(size_t rows, double scale, Random* random) {
    std::vector<float> keys = random->Normals(rows * kHeads * kK);
    for (size_t i = 0; i < keys.size(); i += kK) {
      double sum = 0;
      for (size_t j = i; j < i + kK; ++j) sum += static_cast<double>(keys[j]) * keys[j];
      for (size_t j = i; j < i + kK; ++j) {
        keys[j] = static_cast<float>(keys[j] / std::sqrt(sum) * scale);
      }
    }
    return keys;
  }

  template <typename T>
  std::vector<double> Head(const std::vector<T>& x, const SequenceSpan& span, int h, int dim) {
    std::vector<double> result;
    for (int64_t t = 0; t < span.length; ++t) {
      for (int i = 0; i < dim; ++i) {
        const auto place = static_cast<size_t>(((span.row + t) * kHeads + h) * dim + i);
        if constexpr (std::is_same_v<T, Bf16>) {
          result.push_back(FromBf16(x[place].bits));
        } else {
          result.push_back(x[place]);
        }
      }
    }
    return result;
  }

  static std::vector<float> Part(const std::vector<float>& x, size_t first, size_t count) {
    return {x.begin() + static_cast<ptrdiff_t>(first),
            x.begin() + static_cast<ptrdiff_t>(first + count)};
  }

  void CheckHead(const SequenceSpan& span, int h, const std::vector<float>& s_before,
                 const std::vector<float>& d_before) {
    const auto q = Head(q_, span, h, kK);
    const auto k = Head(k_, span, h, kK);
    const auto v = Head(v_, span, h, kV);
    const auto beta = Head(beta_, span, h, 1);
    std::vector<double> log_alpha;
    if (!log_alpha_.empty()) log_alpha = Head(log_alpha_, span, h, 1);
    const size_t s_first = static_cast<size_t>(span.slot * kHeads + h) * kV * kK;
    const size_t d_first = static_cast<size_t>(span.slot * kHeads + h) * kK;
    const auto s_start = Part(s_before, s_first, kV * kK);
    const auto d_start = Part(d_before, d_first, kK);
    std::vector<double> s(s_start.begin(), s_start.end());
    std::vector<double> d(d_start.begin(), d_start.end());
    std::vector<double> o(v.size());
    reference::MixerTokens<double>({.tokens = span.length,
                                    .key_dim = kK,
                                    .value_dim = kV,
                                    .precond = case_.precond,
                                    .q = q.data(),
                                    .k = k.data(),
                                    .v = v.data(),
                                    .beta = beta.data(),
                                    .log_alpha = log_alpha.empty() ? nullptr : log_alpha.data(),
                                    .s = s.data(),
                                    .d = d.data(),
                                    .o = o.data()});
    const auto o_head = Head(o_, span, h, kV);
    EXPECT_TRUE(CloseToMax(std::vector<float>(o_head.begin(), o_head.end()), o, case_.tolerance));
    EXPECT_TRUE(CloseToMax(Part(s_, s_first, kV * kK), s, case_.tolerance));
    EXPECT_TRUE(CloseToMax(Part(d_, d_first, kK), d, case_.d_tolerance));
  }

  Case case_;
  BatchView view_;
  BatchPlan plan_;
  std::vector<Bf16> q_, k_, v_, w_d_, kt_, w_, u_, p_, o_;
  std::vector<float> beta_, log_alpha_, s_, d_, s0_, c_, solution_, e_start_;
  std::vector<int32_t> redone_;
};

class ChunkMixerTest : public testing::TestWithParam<Case> {};

TEST_P(ChunkMixerTest, MatchesTheTokenRecurrence) {
  Random random(TestSeed());
  for (const int multiprocessors : {1, 8, 132}) {
    SCOPED_TRACE(multiprocessors);
    Problem<64, 64>(GetParam(), &random).Check(multiprocessors);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Cases, ChunkMixerTest,
    testing::Values(
        Case{.name = "one_token", .spans = Spans({{1, 0}}), .precond = Precond(0.003F)},
        Case{.name = "odd_lengths",
             .spans = Spans({{63, 0}, {64, 0}, {65, 64}, {150, 40}}),
             .precond = Precond(0.1F)},
        Case{.name = "apf", .spans = Spans({{200, 7}}), .precond = Precond(0.1F), .apf = true},
        Case{.name = "plain",
             .spans = Spans({{130, 0}, {17, 3}}),
             .precond = Precond(0.0F, false),
             .d_tolerance = 0},
        Case{.name = "negative_eigenvalues",
             .spans = Spans({{128, 0}}),
             .precond = Precond(0.01F),
             .beta_max = 2},
        Case{.name = "box",
             .spans = Spans({{200, 0}}),
             .precond = Precond(1.0F),
             .d_start = 1.9,
             .wants_redo = true}),
    [](const testing::TestParamInfo<Case>& tested) { return tested.param.name; });

TEST(WideChunkMixerTest, MatchesTheTokenRecurrence) {
  Random random(TestSeed());
  const Case c{.name = "wide", .spans = Spans({{100, 0}}), .precond = Precond(0.01F), .apf = true};
  Problem<128, 128>(c, &random).Check();
  Problem<64, 128>(c, &random).Check();
}

}  // namespace
}  // namespace osdn::kernels::cuda
