#include "tests/unit/engine/naive_model.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"

namespace osdn::testing_support {
namespace {

using Vec = std::vector<double>;
using kernels::Activation;
using kernels::QkNorm;

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double Silu(double x) { return x * Sigmoid(x); }

double Activate(Activation activation, double x) {
  switch (activation) {
    case Activation::kSilu:
      return Silu(x);
    case Activation::kRelu:
      return std::max(x, 0.0);
    case Activation::kEluPlusOne:
      return x > 0 ? x + 1 : std::exp(x);
    case Activation::kIdentity:
      return x;
  }
  return x;
}

Vec MatVec(const std::vector<float>& w, const Vec& x) {
  Vec y(w.size() / x.size());
  for (size_t i = 0; i < y.size(); ++i) {
    for (size_t j = 0; j < x.size(); ++j) y[i] += static_cast<double>(w[i * x.size() + j]) * x[j];
  }
  return y;
}

Vec RmsNorm(const Vec& x, const std::vector<float>& weight, double eps) {
  double sum = 0;
  for (const double v : x) sum += v * v;
  const double scale = 1 / std::sqrt(sum / static_cast<double>(x.size()) + eps);
  Vec y(x.size());
  for (size_t i = 0; i < x.size(); ++i) y[i] = x[i] * scale * static_cast<double>(weight[i]);
  return y;
}

struct Head {
  std::vector<Vec> s;  // [V][K]
  Vec d;               // [K]
};

struct Layer {
  std::vector<Head> heads;
  std::vector<Vec> q_past, k_past, v_past;  // every input so far
};

class Naive {
 public:
  Naive(const ArchitectureConfig& arch, const TensorMap& tensors) : arch_(arch), tensors_(tensors) {
    const auto k = static_cast<size_t>(arch.key_dim);
    const Head head = {std::vector<Vec>(static_cast<size_t>(arch.value_dim), Vec(k)), Vec(k, 1.0)};
    layers_.resize(static_cast<size_t>(arch.num_layers));
    for (Layer& layer : layers_) layer.heads.assign(static_cast<size_t>(arch.num_heads), head);
  }

  Vec Step(int32_t id) {
    const auto& table = tensors_.at("model.embeddings.weight");
    const auto hidden = static_cast<size_t>(arch_.hidden_size);
    const auto* row = table.data() + static_cast<size_t>(id) * hidden;
    Vec x(row, row + hidden);
    for (size_t i = 0; i < layers_.size(); ++i) {
      prefix_ = absl::StrCat("model.layers.", i, ".");
      const Vec a = Attention(&layers_[i], Norm(x, "attn_norm.weight"));
      for (size_t j = 0; j < hidden; ++j) x[j] += a[j];
      const Vec h = Norm(x, "mlp_norm.weight");
      Vec gate = MatVec(W("mlp.gate_proj.weight"), h);
      const Vec up = MatVec(W("mlp.up_proj.weight"), h);
      for (size_t j = 0; j < gate.size(); ++j) gate[j] = Silu(gate[j]) * up[j];
      const Vec down = MatVec(W("mlp.down_proj.weight"), gate);
      for (size_t j = 0; j < hidden; ++j) x[j] += down[j];
    }
    prefix_ = "";
    const char* head = arch_.tie_embeddings ? "model.embeddings.weight" : "lm_head.weight";
    return MatVec(W(head), Norm(x, "model.norm.weight"));
  }

 private:
  const std::vector<float>& W(const std::string& name) const { return tensors_.at(prefix_ + name); }
  Vec Norm(const Vec& x, const std::string& name) const {
    return RmsNorm(x, W(name), arch_.norm_eps);
  }

  Vec Convolve(const std::string& name, std::vector<Vec>* past, const Vec& x,
               Activation activation) const {
    past->push_back(x);
    Vec y(x.size());
    const auto size = static_cast<size_t>(arch_.conv_size);
    for (size_t c = 0; c < x.size(); ++c) {
      if (arch_.conv_bias) y[c] = static_cast<double>(W(name + ".bias")[c]);
      for (size_t back = 0; back < std::min(size, past->size()); ++back) {
        y[c] += static_cast<double>(W(name + ".weight")[c * size + size - 1 - back]) *
                (*past)[past->size() - 1 - back][c];
      }
      y[c] = Activate(activation, y[c]);
    }
    return y;
  }

  void NormaliseKey(double* x, double scale) const {
    double sum = 0;
    for (int64_t i = 0; i < arch_.key_dim; ++i) {
      sum += arch_.qk_norm == QkNorm::kL2 ? x[i] * x[i] : x[i];
    }
    const double factor = arch_.qk_norm == QkNorm::kL2 ? 1 / std::sqrt(sum + 1e-6) : 1 / sum;
    for (int64_t i = 0; i < arch_.key_dim; ++i) x[i] *= factor * scale;
  }

  Vec Attention(Layer* layer, const Vec& x) const {
    Vec q = MatVec(W("attn.q_proj.weight"), x);
    Vec k = MatVec(W("attn.k_proj.weight"), x);
    Vec v = MatVec(W("attn.v_proj.weight"), x);
    if (arch_.use_short_conv) {
      // The activation of q and k commutes with where it is applied: right after the convolution.
      q = Convolve("attn.q_conv1d", &layer->q_past, q, arch_.qk_activation);
      k = Convolve("attn.k_conv1d", &layer->k_past, k, arch_.qk_activation);
      v = Convolve("attn.v_conv1d", &layer->v_past, v, Activation::kSilu);
    } else {
      for (double& e : q) e = Activate(arch_.qk_activation, e);
      for (double& e : k) e = Activate(arch_.qk_activation, e);
      for (double& e : v) e = Silu(e);
    }
    Vec beta(layer->heads.size(), 1.0);
    Vec alpha(layer->heads.size(), 1.0);
    if (arch_.use_beta) {
      beta = MatVec(W("attn.b_proj.weight"), x);
      for (double& e : beta) e = Sigmoid(e);
    }
    if (arch_.allow_neg_eigval) {
      for (double& e : beta) e *= 2;
    }
    if (arch_.apf == Apf::kScalar) {
      alpha = MatVec(W("attn.a_proj.weight"), x);
      for (size_t h = 0; h < alpha.size(); ++h) {
        alpha[h] = Sigmoid(alpha[h] + static_cast<double>(W("attn.a_proj.bias")[h]));
      }
    }
    Vec out;
    for (size_t h = 0; h < layer->heads.size(); ++h) {
      double* qh = q.data() + h * static_cast<size_t>(arch_.key_dim);
      double* kh = k.data() + h * static_cast<size_t>(arch_.key_dim);
      NormaliseKey(qh, 1 / std::sqrt(static_cast<double>(arch_.key_dim)));
      NormaliseKey(kh, 1);
      const double* vh = v.data() + h * static_cast<size_t>(arch_.value_dim);
      const Vec o = RmsNorm(Mix(&layer->heads[h], qh, kh, vh, beta[h], alpha[h]),
                            W("attn.o_norm.weight"), arch_.norm_eps);
      out.insert(out.end(), o.begin(), o.end());
    }
    if (arch_.use_gate) {
      const Vec gate = MatVec(W("attn.g_proj.weight"), x);
      for (size_t i = 0; i < out.size(); ++i) out[i] *= Silu(gate[i]);
    }
    return MatVec(W("attn.o_proj.weight"), out);
  }

  // docs/model.md section 1, line by line.
  Vec Mix(Head* head, const double* q, const double* k, const double* v, double beta,
          double alpha) const {
    const auto key_dim = static_cast<size_t>(arch_.key_dim);
    Vec o(head->s.size());
    for (size_t i = 0; i < o.size(); ++i) {
      Vec& row = head->s[i];
      double read = 0;
      for (size_t j = 0; j < key_dim; ++j) read += row[j] * k[j];
      for (size_t j = 0; j < key_dim; ++j) row[j] += beta * (v[i] - read) * head->d[j] * k[j];
      for (size_t j = 0; j < key_dim; ++j) o[i] += row[j] * q[j];
    }
    double kk = 0;
    double dkk = 0;
    for (size_t j = 0; j < key_dim; ++j) {
      kk += k[j] * k[j];
      dkk += head->d[j] * k[j] * k[j];
    }
    const double step = arch_.eta * beta * (1 - beta * dkk) / std::max(kk, arch_.eps);
    for (size_t j = 0; j < key_dim; ++j) {
      const double a = arch_.apf_anchor;
      const double moved = a + alpha * (head->d[j] - a) + step * k[j] * k[j];
      head->d[j] = std::clamp(moved, arch_.d_min, arch_.d_max);
    }
    return o;
  }

  const ArchitectureConfig& arch_;
  const TensorMap& tensors_;
  std::vector<Layer> layers_;
  std::string prefix_;
};

}  // namespace

std::vector<double> NaiveLogits(const ArchitectureConfig& arch, const TensorMap& tensors,
                                const std::vector<int32_t>& ids) {
  Naive naive(arch, tensors);
  std::vector<double> logits;
  for (const int32_t id : ids) {
    const Vec row = naive.Step(id);
    logits.insert(logits.end(), row.begin(), row.end());
  }
  return logits;
}

}  // namespace osdn::testing_support
