// Whole blocks and steps: a backend's layer runner, called as the engine calls it, against the
// composition of single ops on the reference backend. Steps of one shape are repeated, so that a
// backend that records them replays its record.
#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/include/layer.h"
#include "kernels/reference/reference_backend.h"
#include "tests/unit/kernels/host_weight.h"
#include "tests/unit/kernels/test_backend.h"

namespace osdn::kernels {
namespace {

constexpr int64_t kVocab = 40;
constexpr int64_t kSlots = 24;
constexpr int64_t kMaxRows = 300;
constexpr int64_t kMaxLogits = 24;

// Weights of one block on the host, the same for both backends.
struct HostLayer {
  HostLayer(const LayerSpec& spec, DType dtype, Random* random) {
    const int64_t key = spec.heads * spec.key_dim;
    const int64_t value = spec.heads * spec.value_dim;
    const std::array<std::pair<int64_t, int64_t>, 10> shapes = {
        {{key, spec.hidden_size},
         {key, spec.hidden_size},
         {value, spec.hidden_size},
         {spec.heads, spec.hidden_size},
         {spec.heads, spec.hidden_size},
         {value, spec.hidden_size},
         {spec.hidden_size, value},
         {spec.intermediate_size, spec.hidden_size},
         {spec.intermediate_size, spec.hidden_size},
         {spec.hidden_size, spec.intermediate_size}}};
    for (const auto& [out, in] : shapes) matrices.emplace_back(dtype, out, in, random);
    const int64_t taps = spec.conv_size;
    const std::array<int64_t, 10> sizes = {spec.hidden_size,
                                           spec.hidden_size,
                                           spec.heads,
                                           key * taps,
                                           key * taps,
                                           value * taps,
                                           key,
                                           key,
                                           value,
                                           spec.value_dim};
    for (const int64_t size : sizes) {
      vectors.push_back(random->Normals(std::max<int64_t>(size, 1), 0.3));
    }
    for (const size_t norm : {0, 1, 9}) {
      for (float& weight : vectors[norm]) weight += 1;
    }
  }

  std::vector<HostWeight> matrices;         // q k v b a g o gate up down
  std::vector<std::vector<float>> vectors;  // norms of mixer and mlp, a_bias, convs, biases, o_norm
};

// One block with an embedding before it and a head behind, on one backend.
class Network {
 public:
  Network(Backend* backend, const LayerSpec& spec, const HostLayer& host, const HostWeight& table)
      : backend_(backend), spec_(spec) {
    for (const HostWeight& matrix : host.matrices) matrices_.push_back(Prepare(matrix.tensor()));
    table_ = Prepare(table.tensor());
    for (const std::vector<float>& vector : host.vectors) {
      vectors_.push_back(Allocate(static_cast<int64_t>(vector.size())));
      Check(backend_->CopyFromHost(vectors_.back().data(), vector.data(),
                                   vector.size() * sizeof(float)));
    }
    const auto scale = static_cast<int64_t>(spec.conv_size > 0 ? spec.conv_size - 1 : 0);
    const int64_t key = spec.heads * spec.key_dim;
    const int64_t value = spec.heads * spec.value_dim;
    widths_ = {key * spec.value_dim, key, scale * key, scale * key, scale * value};
    for (const int64_t width : widths_) states_.push_back(Allocate(kSlots * width + 4));
    Check(backend_->Fill(states_[1].floats(), 1.0F, kSlots * key));
    x_ = Allocate(kMaxRows * spec.hidden_size);
    last_x_ = Allocate(kMaxLogits * spec.hidden_size);
    logits_ = Allocate(kMaxLogits * kVocab);
    SetWeights();
    auto runner = backend_->CreateLayerRunner(spec, kMaxRows);
    Check(runner.status());
    if (runner.ok()) runner_ = *std::move(runner);
  }

  // The logits of the rows asked for.
  std::vector<float> Run(const BatchView& batch, const std::vector<int32_t>& tokens,
                         const std::vector<int64_t>& logit_rows) {
    const StepInputs step = {this, nullptr, batch, tokens, logit_rows};
    Check(backend_->RunStep(step, [&](const BatchView& run) { return Body(run, step); }));
    std::vector<float> logits(logit_rows.size() * kVocab);
    Check(backend_->CopyToHost(logits.data(), logits_.data(), logits.size() * sizeof(float)));
    return logits;
  }

  std::vector<float> State(size_t which) {
    std::vector<float> state(kSlots * widths_[which]);
    Check(backend_->CopyToHost(state.data(), states_[which].data(), state.size() * sizeof(float)));
    return state;
  }
  size_t states() const { return widths_.size(); }

 private:
  static void Check(const absl::Status& status) { EXPECT_TRUE(status.ok()) << status; }

  std::unique_ptr<LinearWeight> Prepare(const HostTensor& tensor) {
    auto weight = backend_->PrepareLinear(tensor);
    Check(weight.status());
    return weight.ok() ? *std::move(weight) : nullptr;
  }
  Buffer Allocate(int64_t floats) {
    auto buffer = backend_->Allocate(static_cast<size_t>(floats) * sizeof(float));
    Check(buffer.status());
    return buffer.ok() ? *std::move(buffer) : Buffer();
  }
  SlotArray Slots(size_t which) const { return {states_[which].floats(), widths_[which]}; }

  void SetWeights() {
    mixer_.norm = vectors_[0].floats();
    mixer_.q_proj = matrices_[0].get();
    mixer_.k_proj = matrices_[1].get();
    mixer_.v_proj = matrices_[2].get();
    if (spec_.use_beta) mixer_.b_proj = matrices_[3].get();
    if (spec_.use_apf) mixer_.a_proj = matrices_[4].get();
    if (spec_.use_gate) mixer_.g_proj = matrices_[5].get();
    mixer_.a_bias = spec_.use_apf ? vectors_[2].floats() : nullptr;
    if (spec_.conv_size > 0) {
      mixer_.q_conv = vectors_[3].floats();
      mixer_.k_conv = vectors_[4].floats();
      mixer_.v_conv = vectors_[5].floats();
      mixer_.k_conv_bias = vectors_[7].floats();
      mixer_.v_conv_bias = vectors_[8].floats();
    }
    mixer_.o_norm = vectors_[9].floats();
    mixer_.o_proj = matrices_[6].get();
    mlp_.norm = vectors_[1].floats();
    mlp_.gate_proj = matrices_[7].get();
    mlp_.up_proj = matrices_[8].get();
    mlp_.down_proj = matrices_[9].get();
  }

  absl::Status Body(const BatchView& batch, const StepInputs& step) {
    if (absl::Status s = backend_->Embed(*table_, {step.tokens, x_.floats()}); !s.ok()) return s;
    const MixerLayerArgs mixer = {batch,    &mixer_,  Slots(0), Slots(1),
                                  Slots(2), Slots(3), Slots(4), x_.floats()};
    if (absl::Status s = runner_->Mixer(mixer); !s.ok()) return s;
    if (absl::Status s = runner_->Mlp({batch, &mlp_, x_.floats()}); !s.ok()) return s;
    if (step.logit_rows.empty()) return absl::OkStatus();
    if (absl::Status s = backend_->GatherRows(
            {step.logit_rows, spec_.hidden_size, x_.floats(), last_x_.floats()});
        !s.ok()) {
      return s;
    }
    const auto rows = static_cast<int64_t>(step.logit_rows.size());
    std::vector<SequenceSpan> spans;
    for (int64_t row = 0; row < rows; ++row) spans.push_back({row, 1, 0, 0});
    const LinearJob head = {table_.get(), logits_.floats()};
    return backend_->Linear({{rows, rows, spans}, last_x_.floats(), {&head, 1}});
  }

  Backend* backend_;
  LayerSpec spec_;
  std::vector<std::unique_ptr<LinearWeight>> matrices_;
  std::unique_ptr<LinearWeight> table_;
  std::vector<Buffer> vectors_;
  std::vector<Buffer> states_;  // s, d, conv_q, conv_k, conv_v
  std::vector<int64_t> widths_;
  Buffer x_, last_x_, logits_;
  MixerLayerWeights mixer_;
  MlpLayerWeights mlp_;
  std::unique_ptr<LayerRunner> runner_;
};

struct Case {
  std::string name;
  LayerSpec spec;
  DType dtype = DType::kF32;
  // Of max |expected|. Where weights are not float32, backends round the operands of products, and
  // what lies between them, to bf16 (8 bits), each at its own places.
  double tolerance = 2e-4;
};

LayerSpec Spec(int64_t heads, int64_t key_dim, int64_t value_dim) {
  LayerSpec spec;
  spec.hidden_size = 96;
  spec.heads = heads;
  spec.key_dim = key_dim;
  spec.value_dim = value_dim;
  spec.intermediate_size = 136;
  spec.conv_size = 4;
  spec.norm_eps = 1e-5F;
  spec.q_scale = 1 / std::sqrt(static_cast<float>(key_dim));
  return spec;
}

std::vector<Case> Cases() {
  constexpr double kHalves = 4e-2;
  std::vector<Case> cases;
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kI8, DType::kI4}) {
    const double tolerance = dtype == DType::kF32 ? 2e-4 : kHalves;
    cases.push_back(
        {absl::StrCat("plain ", std::string(DTypeName(dtype))), Spec(2, 64, 64), dtype, tolerance});
  }
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const double tolerance = dtype == DType::kF32 ? 2e-4 : kHalves;
    Case full = {absl::StrCat("gate, apf, beta below 2, ", std::string(DTypeName(dtype))),
                 Spec(2, 128, 128), dtype, tolerance};
    full.spec.use_gate = true;
    full.spec.use_apf = true;
    full.spec.beta_scale = 2;
    full.spec.precond.eta = 0.05F;
    cases.push_back(full);
    Case odd = {
        absl::StrCat("other sizes, no beta, relu, sum norm, ", std::string(DTypeName(dtype))),
        Spec(3, 24, 40), dtype, tolerance};
    odd.spec.use_beta = false;
    odd.spec.qk_activation = Activation::kEluPlusOne;
    odd.spec.qk_norm = QkNorm::kSum;
    cases.push_back(odd);
    Case bare = {absl::StrCat("no convolution, no preconditioner, ", std::string(DTypeName(dtype))),
                 Spec(2, 64, 128), dtype, tolerance};
    bare.spec.conv_size = 0;
    bare.spec.precond.enabled = false;
    cases.push_back(bare);
  }
  return cases;
}

class LayersTest : public BackendTest {
 protected:
  // One step on both networks; the spans' positions move on.
  void Step(Network* tested, Network* truth, std::vector<SequenceSpan> spans, int64_t decode_rows,
            double tolerance) {
    int64_t rows = 0;
    std::vector<int64_t> logit_rows;
    for (SequenceSpan& span : spans) {
      span.row = rows;
      rows += span.length;
      logit_rows.push_back(rows - 1);
    }
    std::vector<int32_t> tokens(rows);
    for (int32_t& token : tokens) token = static_cast<int32_t>(random().Integer(0, kVocab - 1));
    const BatchView batch = {rows, decode_rows, spans};
    const std::vector<float> expected = truth->Run(batch, tokens, logit_rows);
    const std::vector<double> wanted(expected.begin(), expected.end());
    EXPECT_TRUE(CloseToMax(tested->Run(batch, tokens, logit_rows), wanted, tolerance)) << "logits";
  }
};

TEST_P(LayersTest, SameAsTheReferencesOps) {
  for (const Case& c : Cases()) {
    SCOPED_TRACE(c.name);
    const HostLayer layer(c.spec, c.dtype, &random());
    const HostWeight table(c.dtype, kVocab, c.spec.hidden_size, &random());
    const std::unique_ptr<Backend> reference = CreateReferenceBackend();
    Network truth(reference.get(), c.spec, layer, table);
    Network tested(&backend(), c.spec, layer, table);
    // Prompts, cut off and on the chunk borders; then decoding: one shape several times, with fewer
    // rows in between, in company of a prompt, and with more rows than skinny products take.
    Step(&tested, &truth, {{0, 70, 0, 3}, {0, 5, 0, 0}, {0, 64, 0, 7}}, 0, c.tolerance);
    Step(&tested, &truth, {{0, 1, 70, 3}, {0, 31, 5, 0}, {0, 100, 64, 7}}, 1, c.tolerance);
    for (int64_t i = 0; i < 4; ++i) {
      SCOPED_TRACE(absl::StrCat("decode step ", i));
      Step(&tested, &truth, {{0, 1, 71 + i, 3}, {0, 1, 36 + i, 0}, {0, 1, 164 + i, 7}}, 3,
           c.tolerance);
    }
    Step(&tested, &truth, {{0, 1, 40, 0}}, 1, c.tolerance);
    std::vector<SequenceSpan> many(19, SequenceSpan{0, 1, 200, 0});
    for (size_t i = 0; i < many.size(); ++i) many[i].slot = static_cast<int32_t>(i);
    for (int i = 0; i < 3; ++i) Step(&tested, &truth, many, 19, c.tolerance);
    for (size_t i = 0; i < tested.states(); ++i) {
      const std::vector<float> expected = truth.State(i);
      EXPECT_TRUE(CloseToMax(tested.State(i), {expected.begin(), expected.end()}, c.tolerance))
          << "state " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, LayersTest, ::testing::ValuesIn(TestBackends()), TestBackendLabel);

}  // namespace
}  // namespace osdn::kernels
