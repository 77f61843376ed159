// RmsNorm, OutputNorm, SwiGlu, QkPrepare and Gates: ops without state.
#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/reference/mixer_inputs.h"
#include "kernels/reference/norm.h"
#include "tests/unit/kernels/ops_under_test.h"
#include "tests/unit/kernels/test_backend.h"

namespace osdn::kernels {
namespace {

constexpr double kUnit = 0x1p-24;    // unit roundoff of float32
constexpr double kSmallest = 1e-30;  // below this, vector exp may flush to zero
// sigmoid = exp, add, divide, with a vector exp good to a few units.
constexpr double kSigmoidUnits = 64;

std::vector<double> Widen(const std::vector<float>& values) {
  return {values.begin(), values.end()};
}

void RelativeTolerance(const Rows<double>& values, double units, Rows<double>* tolerance) {
  std::transform(values.values.begin(), values.values.end(), tolerance->values.begin(),
                 [units](double y) { return units * kUnit * std::abs(y) + kSmallest; });
}

absl::Status Finish(Backend* backend, const absl::Status& status) {
  return status.ok() ? backend->Synchronize() : status;
}

// Gates and similar inputs, with the ends of exp's range among them.
std::vector<float> GateValues(int64_t count, Random* random) {
  std::vector<float> values = random->Normals(count, 4);
  constexpr float kExtremes[] = {0.0F, -0.0F, 30.0F, -30.0F, 90.0F, -90.0F, 500.0F, -500.0F};
  for (int64_t i = 0; i < count; i += 11) values[i] = kExtremes[i / 11 % 8];
  return values;
}

class RmsNormOp : public Op {
 public:
  RmsNormOp(int64_t dim, bool in_place, Random* random)
      : dim_(dim), in_place_(in_place), weight_(random->Normals(dim)) {}

  std::string Describe() const override {
    return absl::StrCat("rms norm of ", dim_, in_place_ ? " in place" : "");
  }

  OpData<float> MakeData(int64_t rows, int64_t /*slots*/, Random* random) const override {
    std::vector<float> x = random->Normals(rows * dim_);
    for (int64_t i = 0; i < rows * dim_; ++i) {
      x[i] *= std::pow(10.0F, static_cast<float>(i / dim_ % 6 - 3));  // rows of 1e-3 to 100
    }
    OpData<float> data;
    if (in_place_) {
      data.outputs.push_back({dim_, std::move(x)});
    } else {
      data.inputs.push_back({dim_, std::move(x)});
      data.outputs.push_back({dim_, random->Normals(rows * dim_)});
    }
    return data;
  }

  absl::Status Run(Backend* backend, const BatchView& batch,
                   const OpPointers& data) const override {
    DeviceFloats weight(backend, weight_);
    return Finish(backend, backend->RmsNorm({.rows = batch.rows,
                                             .dim = dim_,
                                             .eps = kEps,
                                             .x = (in_place_ ? data.outputs : data.inputs)[0],
                                             .weight = weight.data(),
                                             .y = data.outputs[0]}));
  }

  void Truth(int64_t tokens, OpData<double>* data, OpData<double>* tolerance) const override {
    const std::vector<double>& x = (in_place_ ? data->outputs : data->inputs)[0].values;
    double* y = data->outputs[0].values.data();
    const std::vector<double> weight = Widen(weight_);
    for (int64_t t = 0; t < tokens; ++t) {
      reference::RmsNormRow<double>(dim_, kEps, weight.data(), x.data() + t * dim_, y + t * dim_);
    }
    RelativeTolerance(data->outputs[0], static_cast<double>(dim_ + 16), &tolerance->outputs[0]);
  }

 private:
  static constexpr float kEps = 1e-5F;
  int64_t dim_;
  bool in_place_;
  std::vector<float> weight_;
};

class OutputNormOp : public Op {
 public:
  OutputNormOp(int64_t heads, int64_t value_dim, bool gated, Random* random)
      : heads_(heads), value_dim_(value_dim), gated_(gated), weight_(random->Normals(value_dim)) {}

  std::string Describe() const override {
    return absl::StrCat("output norm of ", heads_, " x ", value_dim_, gated_ ? " gated" : "");
  }

  OpData<float> MakeData(int64_t rows, int64_t /*slots*/, Random* random) const override {
    const int64_t dim = heads_ * value_dim_;
    OpData<float> data;
    if (gated_) data.inputs.push_back({dim, GateValues(rows * dim, random)});
    data.outputs.push_back({dim, random->Normals(rows * dim, 0.05)});
    return data;
  }

  absl::Status Run(Backend* backend, const BatchView& batch,
                   const OpPointers& data) const override {
    DeviceFloats weight(backend, weight_);
    return Finish(backend, backend->OutputNorm({.rows = batch.rows,
                                                .heads = heads_,
                                                .value_dim = value_dim_,
                                                .eps = kEps,
                                                .weight = weight.data(),
                                                .gate = gated_ ? data.inputs[0] : nullptr,
                                                .o = data.outputs[0]}));
  }

  void Truth(int64_t tokens, OpData<double>* data, OpData<double>* tolerance) const override {
    const std::vector<double> weight = Widen(weight_);
    const int64_t dim = heads_ * value_dim_;
    for (int64_t t = 0; t < tokens; ++t) {
      reference::OutputNormRow<double>(
          {.heads = heads_,
           .value_dim = value_dim_,
           .eps = kEps,
           .weight = weight.data(),
           .gate = gated_ ? data->inputs[0].values.data() + t * dim : nullptr,
           .o = data->outputs[0].values.data() + t * dim});
    }
    RelativeTolerance(data->outputs[0], static_cast<double>(value_dim_) + 16 + kSigmoidUnits,
                      &tolerance->outputs[0]);
  }

 private:
  static constexpr float kEps = 1e-5F;
  int64_t heads_;
  int64_t value_dim_;
  bool gated_;
  std::vector<float> weight_;
};

enum class SwiGluOutput { kApart, kGate, kUp };

class SwiGluOp : public Op {
 public:
  SwiGluOp(int64_t dim, SwiGluOutput output) : dim_(dim), output_(output) {}

  std::string Describe() const override {
    constexpr const char* kNames[] = {"", " into gate", " into up"};
    return absl::StrCat("swiglu of ", dim_, kNames[static_cast<int>(output_)]);
  }

  OpData<float> MakeData(int64_t rows, int64_t /*slots*/, Random* random) const override {
    Rows<float> gate = {dim_, GateValues(rows * dim_, random)};
    Rows<float> up = {dim_, random->Normals(rows * dim_)};
    if (output_ == SwiGluOutput::kGate) return {{up}, {gate}, {}};
    if (output_ == SwiGluOutput::kUp) return {{gate}, {up}, {}};
    return {{gate, up}, {{dim_, random->Normals(rows * dim_)}}, {}};
  }

  absl::Status Run(Backend* backend, const BatchView& batch,
                   const OpPointers& data) const override {
    const auto [gate, up] = Operands(data.inputs, data.outputs[0]);
    return Finish(backend, backend->SwiGlu({batch.rows, dim_, gate, up, data.outputs[0]}));
  }

  void Truth(int64_t tokens, OpData<double>* data, OpData<double>* tolerance) const override {
    std::vector<double*> inputs;
    for (Rows<double>& rows : data->inputs) inputs.push_back(rows.values.data());
    double* y = data->outputs[0].values.data();
    const auto [gate, up] = Operands(inputs, y);
    reference::SwiGlu(tokens * dim_, gate, up, y);
    RelativeTolerance(data->outputs[0], kSigmoidUnits, &tolerance->outputs[0]);
  }

 private:
  template <typename T>
  std::pair<const T*, const T*> Operands(const std::vector<T*>& inputs, const T* output) const {
    if (output_ == SwiGluOutput::kGate) return {output, inputs[0]};
    if (output_ == SwiGluOutput::kUp) return {inputs[0], output};
    return {inputs[0], inputs[1]};
  }

  int64_t dim_;
  SwiGluOutput output_;
};

class QkPrepareOp : public Op {
 public:
  QkPrepareOp(int64_t heads, int64_t key_dim, Activation activation, QkNorm norm)
      : heads_(heads), key_dim_(key_dim), activation_(activation), norm_(norm) {}

  std::string Describe() const override {
    return absl::StrCat("qk prepare of ", heads_, " x ", key_dim_, ", activation ",
                        static_cast<int>(activation_), ", norm ", static_cast<int>(norm_));
  }

  OpData<float> MakeData(int64_t rows, int64_t /*slots*/, Random* random) const override {
    const int64_t dim = heads_ * key_dim_;
    OpData<float> data;
    for (int i = 0; i < 2; ++i) {
      // The sum norm divides by the sum of the activations: keep it away from zero.
      data.outputs.push_back({dim, norm_ == QkNorm::kSum ? random->Uniforms(rows * dim, -0.5, 2)
                                                         : random->Normals(rows * dim)});
      if (norm_ == QkNorm::kSum) {
        for (int64_t head = 0; head < rows * heads_; ++head) {
          data.outputs[i].values[head * key_dim_] = 3;
        }
      } else {
        std::fill_n(data.outputs[i].values.begin(), key_dim_, 0.0F);  // a degenerate head
      }
    }
    return data;
  }

  absl::Status Run(Backend* backend, const BatchView& batch,
                   const OpPointers& data) const override {
    return Finish(backend, backend->QkPrepare({.rows = batch.rows,
                                               .heads = heads_,
                                               .key_dim = key_dim_,
                                               .activation = activation_,
                                               .norm = norm_,
                                               .q_scale = Scale(),
                                               .q = data.outputs[0],
                                               .k = data.outputs[1]}));
  }

  void Truth(int64_t tokens, OpData<double>* data, OpData<double>* tolerance) const override {
    for (int i = 0; i < 2; ++i) {
      std::vector<double>& values = data->outputs[i].values;
      for (int64_t head = 0; head < tokens * heads_; ++head) {
        const absl::Span<double> x(values.data() + head * key_dim_, key_dim_);
        const double condition = SumCondition(x);
        reference::PrepareQkHead<double>(activation_, norm_, i == 0 ? Scale() : 1.0F, x);
        for (int64_t j = 0; j < key_dim_; ++j) {
          tolerance->outputs[i].values[head * key_dim_ + j] =
              kUnit * std::abs(x[j]) *
                  (kSigmoidUnits + 16 + condition * static_cast<double>(key_dim_)) +
              kSmallest;
        }
      }
    }
  }

 private:
  float Scale() const { return 1 / std::sqrt(static_cast<float>(key_dim_)); }

  // How much the norm's sum magnifies relative errors of its terms.
  double SumCondition(absl::Span<const double> x) const {
    if (norm_ == QkNorm::kL2) return 1;
    double sum = 0;
    double magnitudes = 0;
    for (const double value : x) {
      sum += reference::Activate(activation_, value);
      magnitudes += std::abs(reference::Activate(activation_, value));
    }
    return kSigmoidUnits * magnitudes / std::abs(sum);
  }

  int64_t heads_;
  int64_t key_dim_;
  Activation activation_;
  QkNorm norm_;
};

class GateOp : public Op {
 public:
  GateOp(int64_t heads, float beta_scale, bool apf, std::vector<float> bias)
      : heads_(heads), beta_scale_(beta_scale), apf_(apf), bias_(std::move(bias)) {}

  std::string Describe() const override {
    return absl::StrCat("gates of ", heads_, " heads, beta scale ", beta_scale_,
                        apf_ ? ", apf" : "", bias_.empty() ? "" : " with bias");
  }

  OpData<float> MakeData(int64_t rows, int64_t /*slots*/, Random* random) const override {
    OpData<float> data;
    for (int i = 0; i < (apf_ ? 2 : 1); ++i) {
      data.outputs.push_back({heads_, GateValues(rows * heads_, random)});
    }
    return data;
  }

  absl::Status Run(Backend* backend, const BatchView& batch,
                   const OpPointers& data) const override {
    DeviceFloats bias(backend, bias_);
    return Finish(backend, backend->Gates({.rows = batch.rows,
                                           .heads = heads_,
                                           .beta_scale = beta_scale_,
                                           .beta = data.outputs[0],
                                           .alpha_bias = bias_.empty() ? nullptr : bias.data(),
                                           .log_alpha = apf_ ? data.outputs[1] : nullptr}));
  }

  void Truth(int64_t tokens, OpData<double>* data, OpData<double>* tolerance) const override {
    for (int64_t i = 0; i < tokens * heads_; ++i) {
      double& beta = data->outputs[0].values[i];
      beta = reference::BetaGate<double>(beta, beta_scale_);
      if (!apf_) continue;
      // alpha = exp(log_alpha) is what counts: an absolute error of a few units will do, and the
      // sum with the bias has one of its own size.
      double& log_alpha = data->outputs[1].values[i];
      const double bias = bias_.empty() ? 0 : bias_[i % heads_];
      const double magnitude = std::abs(log_alpha) + std::abs(bias);
      log_alpha = reference::LogAlphaGate<double>(log_alpha, bias);
      tolerance->outputs[1].values[i] =
          kUnit * (8 + 2 * magnitude + kSigmoidUnits * std::abs(log_alpha));
    }
    RelativeTolerance(data->outputs[0], kSigmoidUnits, &tolerance->outputs[0]);
  }

 private:
  int64_t heads_;
  float beta_scale_;
  bool apf_;
  std::vector<float> bias_;
};

}  // namespace

OpList RmsNormOps(Random* random) {
  OpList ops;
  for (const int64_t dim : {1, 3, 16, 33, 100, 257, 1024}) {
    ops.push_back(std::make_unique<RmsNormOp>(dim, dim % 2 == 0, random));
  }
  ops.push_back(std::make_unique<RmsNormOp>(33, true, random));
  return ops;
}

OpList OutputNormOps(Random* random) {
  OpList ops;
  for (const int64_t value_dim : {1, 8, 16, 31, 48, 64, 96, 128, 256}) {
    ops.push_back(std::make_unique<OutputNormOp>(1 + value_dim % 3, value_dim, false, random));
    ops.push_back(std::make_unique<OutputNormOp>(3, value_dim, true, random));
  }
  return ops;
}

OpList SwiGluOps() {
  OpList ops;
  for (const int64_t dim : {1, 7, 16, 33, 130, 257}) {
    for (const auto output : {SwiGluOutput::kApart, SwiGluOutput::kGate, SwiGluOutput::kUp}) {
      ops.push_back(std::make_unique<SwiGluOp>(dim, output));
    }
  }
  return ops;
}

OpList QkPrepareOps() {
  OpList ops;
  for (const int64_t key_dim : {8, 16, 48, 64, 96, 128, 256}) {
    ops.push_back(std::make_unique<QkPrepareOp>(3, key_dim, Activation::kIdentity, QkNorm::kL2));
  }
  for (const Activation activation :
       {Activation::kIdentity, Activation::kSilu, Activation::kRelu, Activation::kEluPlusOne}) {
    ops.push_back(std::make_unique<QkPrepareOp>(2, 24, activation, QkNorm::kL2));
    ops.push_back(std::make_unique<QkPrepareOp>(2, 24, activation, QkNorm::kSum));
  }
  return ops;
}

OpList GateOps(Random* random) {
  OpList ops;
  for (const int64_t heads : {1, 3, 8, 17}) {
    ops.push_back(std::make_unique<GateOp>(heads, 1.0F, false, std::vector<float>()));
    ops.push_back(std::make_unique<GateOp>(heads, 2.0F, true, std::vector<float>()));
    ops.push_back(std::make_unique<GateOp>(heads, 1.0F, true, random->Normals(heads, 3)));
  }
  return ops;
}

}  // namespace osdn::kernels
