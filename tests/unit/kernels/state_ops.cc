// ShortConv and Mixer: ops with a state in every slot.
#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/reference/mixer.h"
#include "kernels/reference/short_conv.h"
#include "tests/unit/kernels/ops_under_test.h"
#include "tests/unit/kernels/test_backend.h"

namespace osdn::kernels {
namespace {

constexpr double kUnit = 0x1p-24;     // unit roundoff of float32
constexpr double kMixerBar = 1e-5;    // docs/model.md section 5
constexpr int64_t kBehindState = 16;  // columns of each slot that belong to somebody else

// [slots, width + kBehindState], each slot's state by `make`.
template <typename Make>
Rows<float> StateRows(int64_t slots, int64_t width, const Make& make) {
  Rows<float> rows = {width + kBehindState, {}};
  for (int64_t slot = 0; slot < slots; ++slot) {
    const std::vector<float> state = make();
    rows.values.insert(rows.values.end(), state.begin(), state.end());
    rows.values.insert(rows.values.end(), kBehindState, 1234.5F);
  }
  return rows;
}

class ShortConvOp : public Op {
 public:
  ShortConvOp(int64_t dim, int64_t size, Activation activation, bool biased, Random* random)
      : dim_(dim), size_(size), activation_(activation), weight_(random->Normals(dim * size)) {
    if (biased) bias_ = random->Normals(dim);
  }

  std::string Describe() const override {
    return absl::StrCat("short conv of ", dim_, " x ", size_, ", activation ",
                        static_cast<int>(activation_), bias_.empty() ? "" : ", biased");
  }

  OpData<float> MakeData(int64_t rows, int64_t slots, Random* random) const override {
    const int64_t tail = (size_ - 1) * dim_;
    return {{{dim_, random->Normals(rows * dim_)}},
            {{dim_, random->Normals(rows * dim_)}},
            {StateRows(slots, tail, [&] { return random->Normals(tail); })}};
  }

  absl::Status Run(Backend* backend, const BatchView& batch,
                   const OpPointers& data) const override {
    DeviceFloats weight(backend, weight_);
    DeviceFloats bias(backend, bias_);
    const absl::Status status =
        backend->ShortConv({.batch = batch,
                            .dim = dim_,
                            .size = size_,
                            .activation = activation_,
                            .weight = weight.data(),
                            .bias = bias_.empty() ? nullptr : bias.data(),
                            .x = data.inputs[0],
                            .tail = size_ > 1 ? data.states[0] : SlotArray(),
                            .y = data.outputs[0]});
    return status.ok() ? backend->Synchronize() : status;
  }

  void Truth(int64_t tokens, OpData<double>* data, OpData<double>* tolerance) const override {
    const std::vector<double> weight(weight_.begin(), weight_.end());
    const std::vector<double> bias(bias_.begin(), bias_.end());
    std::vector<double> magnitude = Magnitudes(tokens, *data);
    reference::ShortConvSpan<double>({.tokens = tokens,
                                      .dim = dim_,
                                      .size = size_,
                                      .activation = activation_,
                                      .weight = weight.data(),
                                      .bias = bias.empty() ? nullptr : bias.data(),
                                      .x = data->inputs[0].values.data(),
                                      .tail = data->states[0].values.data(),
                                      .y = data->outputs[0].values.data()});
    // The sum's rounding, through an activation of slope below 1.1, and the activation's own (as in
    // row_ops.cc). Tails are copies: no tolerance.
    for (size_t i = 0; i < magnitude.size(); ++i) {
      tolerance->outputs[0].values[i] =
          kUnit * (1.1 * static_cast<double>(size_ + 2) * magnitude[i] +
                   64 * std::abs(data->outputs[0].values[i])) +
          1e-30;
    }
  }

 private:
  // sum |weight x| + |bias|: the same convolution of absolute values.
  std::vector<double> Magnitudes(int64_t tokens, const OpData<double>& data) const {
    const auto absolute = [](const auto& values) {
      std::vector<double> out;
      for (const auto value : values) out.push_back(std::abs(static_cast<double>(value)));
      return out;
    };
    const std::vector<double> weight = absolute(weight_), bias = absolute(bias_);
    const std::vector<double> x = absolute(data.inputs[0].values);
    std::vector<double> tail = absolute(data.states[0].values);
    std::vector<double> y(x.size());
    reference::ShortConvSpan<double>({.tokens = tokens,
                                      .dim = dim_,
                                      .size = size_,
                                      .activation = Activation::kIdentity,
                                      .weight = weight.data(),
                                      .bias = bias.empty() ? nullptr : bias.data(),
                                      .x = x.data(),
                                      .tail = tail.data(),
                                      .y = y.data()});
    return y;
  }

  int64_t dim_;
  int64_t size_;
  Activation activation_;
  std::vector<float> weight_;
  std::vector<float> bias_;
};

struct MixerShape {
  int64_t heads = 1;
  int64_t key_dim = 0;
  int64_t value_dim = 0;
  bool apf = false;
  double beta_max = 1;
  double d_start_max = 1.9;
  PreconditionerParams precond = {};
};

class MixerOp : public Op {
 public:
  explicit MixerOp(const MixerShape& shape) : shape_(shape) {}

  std::string Describe() const override {
    return absl::StrCat("mixer of ", shape_.heads, " heads, key ", shape_.key_dim, ", value ",
                        shape_.value_dim, shape_.apf ? ", apf" : "", ", beta below ",
                        shape_.beta_max, ", eta ", shape_.precond.eta,
                        shape_.precond.enabled ? "" : ", no preconditioner");
  }

  // Inputs: q, k, v, beta, log alpha; states: S, d.
  OpData<float> MakeData(int64_t rows, int64_t slots, Random* random) const override {
    const int64_t heads = shape_.heads, key_dim = shape_.key_dim, value_dim = shape_.value_dim;
    OpData<float> data;
    data.inputs.push_back({heads * key_dim, UnitKeys(rows, random)});
    for (float& q : data.inputs[0].values) q /= std::sqrt(static_cast<float>(key_dim));
    data.inputs.push_back({heads * key_dim, UnitKeys(rows, random)});
    data.inputs.push_back({heads * value_dim, random->Normals(rows * heads * value_dim)});
    data.inputs.push_back({heads, random->Uniforms(rows * heads, 0, shape_.beta_max)});
    if (shape_.apf) data.inputs.push_back({heads, LogAlphas(rows * heads, random)});
    data.outputs.push_back({heads * value_dim, random->Normals(rows * heads * value_dim)});
    const int64_t s_width = heads * value_dim * key_dim;
    data.states.push_back(StateRows(slots, s_width, [&] {
      return random->Normals(s_width, 1 / std::sqrt(static_cast<double>(key_dim)));
    }));
    data.states.push_back(StateRows(slots, heads * key_dim, [&] {
      return random->Uniforms(heads * key_dim, 0.6, shape_.d_start_max);
    }));
    return data;
  }

  absl::Status Run(Backend* backend, const BatchView& batch,
                   const OpPointers& data) const override {
    const absl::Status status =
        backend->Mixer({.batch = batch,
                        .heads = shape_.heads,
                        .key_dim = shape_.key_dim,
                        .value_dim = shape_.value_dim,
                        .precond = shape_.precond,
                        .q = data.inputs[0],
                        .k = data.inputs[1],
                        .v = data.inputs[2],
                        .beta = data.inputs[3],
                        .log_alpha = shape_.apf ? data.inputs[4] : nullptr,
                        .s = data.states[0],
                        .d = shape_.precond.enabled ? data.states[1] : SlotArray(),
                        .o = data.outputs[0]});
    return status.ok() ? backend->Synchronize() : status;
  }

  void Truth(int64_t tokens, OpData<double>* data, OpData<double>* tolerance) const override {
    for (int64_t h = 0; h < shape_.heads; ++h) {
      const auto column = [&](int input, int64_t dim) {
        return HeadColumns(data->inputs[input], h, dim);
      };
      const std::vector<double> q = column(0, shape_.key_dim), k = column(1, shape_.key_dim);
      const std::vector<double> v = column(2, shape_.value_dim), beta = column(3, 1);
      const std::vector<double> log_alpha = shape_.apf ? column(4, 1) : std::vector<double>();
      const int64_t s_size = shape_.value_dim * shape_.key_dim;
      double* s = data->states[0].values.data() + h * s_size;
      double* d = data->states[1].values.data() + h * shape_.key_dim;
      std::vector<double> o(tokens * shape_.value_dim);
      reference::MixerTokens<double>({.tokens = tokens,
                                      .key_dim = shape_.key_dim,
                                      .value_dim = shape_.value_dim,
                                      .precond = shape_.precond,
                                      .q = q.data(),
                                      .k = k.data(),
                                      .v = v.data(),
                                      .beta = beta.data(),
                                      .log_alpha = shape_.apf ? log_alpha.data() : nullptr,
                                      .s = s,
                                      .d = d,
                                      .o = o.data()});
      for (int64_t t = 0; t < tokens; ++t) {
        std::copy_n(o.begin() + t * shape_.value_dim, shape_.value_dim,
                    data->outputs[0].values.begin() + (t * shape_.heads + h) * shape_.value_dim);
      }
    }
    SetTolerance(0, &data->outputs[0], &tolerance->outputs[0]);
    SetTolerance(kBehindState, &data->states[0], &tolerance->states[0]);
    if (shape_.precond.enabled) SetTolerance(kBehindState, &data->states[1], &tolerance->states[1]);
  }

 private:
  // kMixerBar x the maximum, over all but the last `behind` columns, which must not change at all.
  static void SetTolerance(int64_t behind, Rows<double>* values, Rows<double>* tolerance) {
    const auto end = values->values.end() - behind;
    double max = 0;
    for (auto it = values->values.begin(); it != end; ++it) max = std::max(max, std::abs(*it));
    std::fill(tolerance->values.begin(), tolerance->values.end() - behind, kMixerBar * max);
  }

  static std::vector<double> HeadColumns(const Rows<double>& rows, int64_t head, int64_t dim) {
    std::vector<double> columns;
    for (auto row = rows.values.begin(); row != rows.values.end(); row += rows.width) {
      columns.insert(columns.end(), row + head * dim, row + (head + 1) * dim);
    }
    return columns;
  }

  std::vector<float> UnitKeys(int64_t rows, Random* random) const {
    std::vector<float> keys = random->Normals(rows * shape_.heads * shape_.key_dim);
    for (int64_t i = 0; i < rows * shape_.heads; ++i) {
      float* key = keys.data() + i * shape_.key_dim;
      double squares = 0;
      for (int64_t j = 0; j < shape_.key_dim; ++j) squares += key[j] * key[j];
      const double scale = i % 13 == 12 ? 0 : 1 / std::sqrt(squares);  // some keys are zero
      for (int64_t j = 0; j < shape_.key_dim; ++j) key[j] *= static_cast<float>(scale);
    }
    return keys;
  }

  static std::vector<float> LogAlphas(int64_t count, Random* random) {
    std::vector<float> values;
    for (int64_t i = 0; i < count; ++i) {
      values.push_back(-static_cast<float>(std::exp(random->Uniform(-9, 0))));
      if (i % 29 == 7) values.back() = 0;
      if (i % 31 == 5) values.back() = -69;     // alpha 1e-30
      if (i % 37 == 11) values.back() = -5000;  // alpha 0 in any arithmetic
    }
    return values;
  }

  MixerShape shape_;
};

}  // namespace

OpList ShortConvOps(Random* random) {
  OpList ops;
  for (const int64_t size : {1, 2, 3, 4, 5}) {
    for (const int64_t dim : {1, 19, 64, 130}) {
      ops.push_back(std::make_unique<ShortConvOp>(dim, size, Activation::kSilu,
                                                  (size + dim) % 2 == 0, random));
    }
  }
  for (const Activation activation :
       {Activation::kIdentity, Activation::kRelu, Activation::kEluPlusOne}) {
    ops.push_back(std::make_unique<ShortConvOp>(37, 4, activation, true, random));
  }
  return ops;
}

OpList MixerOps() {
  PreconditionerParams plain;
  plain.enabled = false;
  PreconditionerParams clipping;
  clipping.eta = 0.8F;
  PreconditionerParams decaying;
  decaying.anchor = 0;
  const MixerShape shapes[] = {
      {.heads = 3, .key_dim = 8, .value_dim = 16},
      {.heads = 2, .key_dim = 16, .value_dim = 48, .apf = true},
      {.heads = 2, .key_dim = 48, .value_dim = 8, .beta_max = 0.4, .precond = clipping},
      {.heads = 2,
       .key_dim = 64,
       .value_dim = 64,
       .apf = true,
       .beta_max = 0.4,
       .precond = clipping},
      {.heads = 2, .key_dim = 64, .value_dim = 64, .beta_max = 2, .d_start_max = 1},
      {.heads = 1, .key_dim = 96, .value_dim = 128, .apf = true, .precond = decaying},
      {.heads = 2, .key_dim = 128, .value_dim = 128},
      {.heads = 1, .key_dim = 128, .value_dim = 256, .apf = true},
      {.heads = 1, .key_dim = 256, .value_dim = 96},
      {.heads = 5, .key_dim = 24, .value_dim = 31, .precond = plain},
      {.heads = 1, .key_dim = 64, .value_dim = 64, .beta_max = 2, .precond = plain},
  };
  OpList ops;
  for (const MixerShape& shape : shapes) ops.push_back(std::make_unique<MixerOp>(shape));
  return ops;
}

}  // namespace osdn::kernels
