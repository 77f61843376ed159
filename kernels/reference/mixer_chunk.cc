#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/reference/mixer.h"
#include "kernels/reference/preconditioner.h"

namespace osdn::kernels::reference {
namespace {

// A dense row-major matrix that the formulas below index as they are written.
template <typename T>
class Dense {
 public:
  Dense(int64_t rows, int64_t cols) : cols_(cols), data_(rows * cols) {}
  T& operator()(int64_t r, int64_t c) { return data_[r * cols_ + c]; }
  const T& operator()(int64_t r, int64_t c) const { return data_[r * cols_ + c]; }
  T* row(int64_t r) { return data_.data() + r * cols_; }

 private:
  int64_t cols_;
  std::vector<T> data_;
};

// The part of `head` that starts at `first` and runs for `tokens`.
template <typename T>
MixerHead<T> Slice(const MixerHead<T>& head, int64_t first, int64_t tokens) {
  MixerHead<T> part = head;
  part.tokens = tokens;
  part.q += first * head.key_dim;
  part.k += first * head.key_dim;
  part.v += first * head.value_dim;
  part.beta += first;
  if (head.log_alpha != nullptr) part.log_alpha += first;
  part.o += first * head.value_dim;
  return part;
}

// ratio(t, j) = A_t / A_{j+1}, the product of alpha over the tokens strictly between j and t, and
// decay[t] = A_t, the product over the tokens before t; t runs to `tokens` inclusive (d_{C+1}).
// Each exponent is a sum of its own log alphas: nothing is divided by an underflown A, and no
// difference of large prefix sums loses the small ones.
template <typename T>
struct DecayRatios {
  explicit DecayRatios(const MixerHead<T>& head)
      : ratio(head.tokens + 1, head.tokens), decay(head.tokens + 1) {
    for (int64_t t = 0; t <= head.tokens; ++t) {
      T log_product = 0;
      for (int64_t j = t - 1; j >= 0; --j) {
        ratio(t, j) = std::exp(log_product);
        if (head.log_alpha != nullptr) log_product += head.log_alpha[j];
      }
      decay[t] = std::exp(log_product);
    }
  }

  Dense<T> ratio;
  std::vector<T> decay;
};

// Phase 1 without the clip: fills d rows 1..tokens from row 0 (rows 0-based: row t is d_{t+1}).
template <typename T>
void SolvePreconditioner(const MixerHead<T>& head, Dense<T>* d) {
  const int64_t n = head.tokens;
  const int64_t key_dim = head.key_dim;
  const T anchor = head.precond.anchor;
  Dense<T> kappa(n, key_dim);
  std::vector<T> c(n);
  std::vector<T> s(n);  // right-hand side, then the solution s_t = <d_t, kappa_t>
  const DecayRatios<T> decays(head);
  for (int64_t t = 0; t < n; ++t) {
    T k_norm = 0;
    T start = 0;
    for (int64_t i = 0; i < key_dim; ++i) {
      const T k = head.k[t * key_dim + i];
      kappa(t, i) = k * k;
      k_norm += kappa(t, i);
      start += kappa(t, i) * ((*d)(0, i) - anchor);
    }
    c[t] = T(head.precond.eta) * head.beta[t] / std::max(k_norm, T(head.precond.eps));
    s[t] = anchor * k_norm + decays.decay[t] * start;
  }
  // Forward substitution of (I + G diag(c beta)) s = rhs + G c.
  for (int64_t t = 0; t < n; ++t) {
    for (int64_t j = 0; j < t; ++j) {
      T gram = 0;
      for (int64_t i = 0; i < key_dim; ++i) gram += kappa(t, i) * kappa(j, i);
      s[t] += decays.ratio(t, j) * gram * c[j] * (T(1) - head.beta[j] * s[j]);
    }
  }
  for (int64_t t = 1; t <= n; ++t) {
    for (int64_t i = 0; i < key_dim; ++i) {
      T value = anchor + decays.decay[t] * ((*d)(0, i) - anchor);
      for (int64_t j = 0; j < t; ++j) {
        value += decays.ratio(t, j) * c[j] * (T(1) - head.beta[j] * s[j]) * kappa(j, i);
      }
      (*d)(t, i) = value;
    }
  }
}

// Whether every d after the first row is inside the box; a NaN is outside.
template <typename T>
bool InsideBox(const MixerHead<T>& head, const Dense<T>& d) {
  for (int64_t t = 1; t <= head.tokens; ++t) {
    for (int64_t i = 0; i < head.key_dim; ++i) {
      const bool inside = d(t, i) >= T(head.precond.d_min) && d(t, i) <= T(head.precond.d_max);
      if (!inside) return false;
    }
  }
  return true;
}

template <typename T>
void RedoTokenByToken(const MixerHead<T>& head, Dense<T>* d) {
  for (int64_t t = 0; t < head.tokens; ++t) {
    std::copy_n(d->row(t), head.key_dim, d->row(t + 1));
    AdvancePreconditioner(head, t, d->row(t + 1));
  }
}

// Phase 2: DeltaNet's chunk form with write keys kt [tokens, key_dim].
template <typename T>
void ApplyChunk(const MixerHead<T>& head, const Dense<T>& kt) {
  const int64_t n = head.tokens;
  const int64_t key_dim = head.key_dim;
  Dense<T> qk(n, n);  // Q Kt^T
  Dense<T> m(n, n);   // beta_t <k_t, kt_j>
  for (int64_t t = 0; t < n; ++t) {
    for (int64_t j = 0; j <= t; ++j) {
      for (int64_t i = 0; i < key_dim; ++i) {
        qk(t, j) += head.q[t * key_dim + i] * kt(j, i);
        m(t, j) += head.beta[t] * head.k[t * key_dim + i] * kt(j, i);
      }
    }
  }
  std::vector<T> u(n);  // one column of U: the rows of S are independent
  for (int64_t r = 0; r < head.value_dim; ++r) {
    T* s = head.s + r * key_dim;
    for (int64_t t = 0; t < n; ++t) {
      T read = 0;
      T out = 0;
      for (int64_t i = 0; i < key_dim; ++i) {
        read += s[i] * head.k[t * key_dim + i];
        out += s[i] * head.q[t * key_dim + i];
      }
      u[t] = head.beta[t] * (head.v[t * head.value_dim + r] - read);
      for (int64_t j = 0; j < t; ++j) u[t] -= m(t, j) * u[j];
      for (int64_t j = 0; j <= t; ++j) out += qk(t, j) * u[j];
      head.o[t * head.value_dim + r] = out;
    }
    for (int64_t t = 0; t < n; ++t) {
      for (int64_t i = 0; i < key_dim; ++i) s[i] += u[t] * kt(t, i);
    }
  }
}

// Returns whether the chunk had to be redone with the clip.
template <typename T>
bool MixerChunk(const MixerHead<T>& head) {
  const int64_t key_dim = head.key_dim;
  Dense<T> kt(head.tokens, key_dim);
  std::copy_n(head.k, head.tokens * key_dim, kt.row(0));
  bool clipped = false;
  if (head.precond.enabled) {
    Dense<T> d(head.tokens + 1, key_dim);
    std::copy_n(head.d, key_dim, d.row(0));
    SolvePreconditioner(head, &d);
    clipped = !InsideBox(head, d);
    if (clipped) RedoTokenByToken(head, &d);
    for (int64_t t = 0; t < head.tokens; ++t) {
      for (int64_t i = 0; i < key_dim; ++i) kt(t, i) *= d(t, i);
    }
    std::copy_n(d.row(head.tokens), key_dim, head.d);
  }
  ApplyChunk(head, kt);
  return clipped;
}

}  // namespace

template <typename T>
ChunkCounts MixerChunks(const MixerHead<T>& head, int64_t position, int64_t chunk) {
  ChunkCounts counts;
  for (int64_t first = 0; first < head.tokens;) {
    const int64_t to_border = chunk - (position + first) % chunk;
    const int64_t tokens = std::min(to_border, head.tokens - first);
    counts.clipped += MixerChunk(Slice(head, first, tokens)) ? 1 : 0;
    ++counts.chunks;
    first += tokens;
  }
  return counts;
}

template ChunkCounts MixerChunks(const MixerHead<float>&, int64_t, int64_t);
template ChunkCounts MixerChunks(const MixerHead<double>&, int64_t, int64_t);

}  // namespace osdn::kernels::reference
