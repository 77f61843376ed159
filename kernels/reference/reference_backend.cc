#include "kernels/reference/reference_backend.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/host_buffer.h"
#include "kernels/reference/linear.h"
#include "kernels/reference/mixer.h"
#include "kernels/reference/mixer_inputs.h"
#include "kernels/reference/norm.h"
#include "kernels/reference/short_conv.h"

namespace osdn::kernels {
namespace {

std::vector<double> Widen(const float* data, int64_t count) {
  return std::vector<double>(data, data + count);
}

void Narrow(const std::vector<double>& values, float* out) {
  std::transform(values.begin(), values.end(), out,
                 [](double value) { return static_cast<float>(value); });
}

double FromBf16(uint16_t half) { return std::bit_cast<float>(static_cast<uint32_t>(half) << 16); }

std::vector<double> WidenInt8(const HostTensor& tensor) {
  std::vector<double> values(tensor.elements());
  const auto* q = static_cast<const int8_t*>(tensor.data);
  const auto* scales = static_cast<const float*>(tensor.scales);
  const int64_t columns = tensor.shape[1];
  for (int64_t i = 0; i < tensor.elements(); ++i) values[i] = double{scales[i / columns]} * q[i];
  return values;
}

std::vector<double> WidenInt4(const HostTensor& tensor) {
  std::vector<double> values(tensor.elements());
  const int64_t columns = tensor.shape[1];
  const int64_t groups = Int4Groups(columns);
  for (int64_t row = 0; row < tensor.shape[0]; ++row) {
    const auto* bytes =
        static_cast<const uint8_t*>(tensor.data) + row * RowBytes(DType::kI4, columns);
    const auto* scales = static_cast<const uint16_t*>(tensor.scales) + row * groups;
    for (int64_t i = 0; i < columns; ++i) {
      const int q = (bytes[i / 2] >> (i % 2 * 4)) & 0xF;
      values[row * columns + i] = FromBf16(scales[i / kInt4Group]) * (q - 8);
    }
  }
  return values;
}

std::vector<double> Widen(const HostTensor& tensor) {
  switch (tensor.dtype) {
    case DType::kI8:
      return WidenInt8(tensor);
    case DType::kI4:
      return WidenInt4(tensor);
    case DType::kBF16: {
      std::vector<double> values(tensor.elements());
      const auto* bits = static_cast<const uint16_t*>(tensor.data);
      std::transform(bits, bits + values.size(), values.begin(), FromBf16);
      return values;
    }
    case DType::kF32:
      break;
  }
  return Widen(static_cast<const float*>(tensor.data), tensor.elements());
}

class ReferenceWeight : public LinearWeight {
 public:
  explicit ReferenceWeight(const HostTensor& tensor)
      : LinearWeight(tensor.shape[0], tensor.shape[1], tensor.dtype), values_(Widen(tensor)) {}

  size_t extra_bytes() const override { return values_.size() * sizeof(double); }
  const double* values() const { return values_.data(); }
  reference::Matrix<double> matrix() const {
    return {out_features(), in_features(), values_.data()};
  }

 private:
  std::vector<double> values_;
};

// Weights are only usable with the backend that made them (kernels/include/linear.h).
const ReferenceWeight& AsReference(const LinearWeight& weight) {
  return static_cast<const ReferenceWeight&>(weight);
}

// Copies columns [head * dim, (head + 1) * dim) of a span's rows of x [rows, heads * dim].
std::vector<double> HeadColumns(const float* x, const SequenceSpan& span, int64_t heads,
                                int64_t head, int64_t dim) {
  std::vector<double> columns;
  columns.reserve(span.length * dim);
  for (int64_t t = 0; t < span.length; ++t) {
    const float* row = x + ((span.row + t) * heads + head) * dim;
    columns.insert(columns.end(), row, row + dim);
  }
  return columns;
}

void MixHead(const MixerArgs& args, const SequenceSpan& span, int64_t h) {
  const auto columns = [&](const float* x, int64_t dim) {
    return HeadColumns(x, span, args.heads, h, dim);
  };
  const std::vector<double> q = columns(args.q, args.key_dim);
  const std::vector<double> k = columns(args.k, args.key_dim);
  const std::vector<double> v = columns(args.v, args.value_dim);
  const std::vector<double> beta = columns(args.beta, 1);
  std::vector<double> log_alpha;
  if (args.log_alpha != nullptr) log_alpha = columns(args.log_alpha, 1);
  float* slot_s = args.s.at(span.slot) + h * args.value_dim * args.key_dim;
  std::vector<double> s = Widen(slot_s, args.value_dim * args.key_dim);
  float* slot_d = nullptr;
  std::vector<double> d;
  if (args.precond.enabled) {
    slot_d = args.d.at(span.slot) + h * args.key_dim;
    d = Widen(slot_d, args.key_dim);
  }
  std::vector<double> o(span.length * args.value_dim);

  reference::MixerTokens<double>({.tokens = span.length,
                                  .key_dim = args.key_dim,
                                  .value_dim = args.value_dim,
                                  .precond = args.precond,
                                  .q = q.data(),
                                  .k = k.data(),
                                  .v = v.data(),
                                  .beta = beta.data(),
                                  .log_alpha = log_alpha.empty() ? nullptr : log_alpha.data(),
                                  .s = s.data(),
                                  .d = d.data(),
                                  .o = o.data()});

  Narrow(s, slot_s);
  if (args.precond.enabled) Narrow(d, slot_d);
  for (int64_t t = 0; t < span.length; ++t) {
    float* row = args.o + ((span.row + t) * args.heads + h) * args.value_dim;
    for (int64_t i = 0; i < args.value_dim; ++i) {
      row[i] = static_cast<float>(o[t * args.value_dim + i]);
    }
  }
}

class ReferenceBackend : public Backend {
 public:
  std::string_view name() const override { return "reference"; }
  std::string Describe() const override { return "reference: plain C++ in float64, 1 thread"; }

  absl::StatusOr<Buffer> Allocate(size_t bytes) override { return AllocateHostBuffer(bytes); }

  absl::Status CopyFromHost(void* dst, const void* src, size_t bytes) override {
    if (bytes != 0) std::memcpy(dst, src, bytes);
    return absl::OkStatus();
  }

  absl::Status CopyToHost(void* dst, const void* src, size_t bytes) override {
    return CopyFromHost(dst, src, bytes);
  }

  absl::Status Fill(float* dst, float value, int64_t count) override {
    std::fill_n(dst, count, value);
    return absl::OkStatus();
  }

  absl::Status Synchronize() override { return absl::OkStatus(); }

  absl::StatusOr<std::unique_ptr<LinearWeight>> PrepareLinear(const HostTensor& weight) override {
    if (weight.shape.size() != 2) {
      return absl::InvalidArgumentError(absl::StrCat("linear weight: shape [",
                                                     absl::StrJoin(weight.shape, ","),
                                                     "], PrepareLinear wants [out, in]"));
    }
    return std::make_unique<ReferenceWeight>(weight);
  }

  absl::Status Embed(const LinearWeight& table, const EmbeddingArgs& args) override {
    std::vector<double> y(args.ids.size() * table.in_features());
    reference::GatherRows(args.ids, table.in_features(), AsReference(table).values(), y.data());
    Narrow(y, args.y);
    return absl::OkStatus();
  }

  absl::Status GatherRows(const GatherRowsArgs& args) override {
    reference::GatherRows(args.indices, args.dim, args.x, args.y);
    return absl::OkStatus();
  }

  absl::Status Linear(const LinearArgs& args) override {
    for (const LinearJob& job : args.jobs) {
      const reference::Matrix<double> w = AsReference(*job.weight).matrix();
      const std::vector<double> x = Widen(args.x, args.batch.rows * w.in_features);
      std::vector<double> y = Widen(job.y, args.batch.rows * w.out_features);
      reference::Linear(w, args.batch.rows, x.data(), job.accumulate, y.data());
      Narrow(y, job.y);
    }
    return absl::OkStatus();
  }

  absl::Status RmsNorm(const RmsNormArgs& args) override {
    const std::vector<double> weight = Widen(args.weight, args.dim);
    for (int64_t r = 0; r < args.rows; ++r) {
      std::vector<double> row = Widen(args.x + r * args.dim, args.dim);
      reference::RmsNormRow<double>(args.dim, args.eps, weight.data(), row.data(), row.data());
      Narrow(row, args.y + r * args.dim);
    }
    return absl::OkStatus();
  }

  absl::Status OutputNorm(const OutputNormArgs& args) override {
    const std::vector<double> weight = Widen(args.weight, args.value_dim);
    const int64_t dim = args.heads * args.value_dim;
    for (int64_t r = 0; r < args.rows; ++r) {
      std::vector<double> o = Widen(args.o + r * dim, dim);
      std::vector<double> gate;
      if (args.gate != nullptr) gate = Widen(args.gate + r * dim, dim);
      reference::OutputNormRow<double>({.heads = args.heads,
                                        .value_dim = args.value_dim,
                                        .eps = args.eps,
                                        .weight = weight.data(),
                                        .gate = gate.empty() ? nullptr : gate.data(),
                                        .o = o.data()});
      Narrow(o, args.o + r * dim);
    }
    return absl::OkStatus();
  }

  absl::Status SwiGlu(const SwiGluArgs& args) override {
    const int64_t count = args.rows * args.dim;
    std::vector<double> y = Widen(args.gate, count);
    reference::SwiGlu<double>(count, y.data(), Widen(args.up, count).data(), y.data());
    Narrow(y, args.y);
    return absl::OkStatus();
  }

  absl::Status ShortConv(const ShortConvArgs& args) override {
    const std::vector<double> weight = Widen(args.weight, args.dim * args.size);
    std::vector<double> bias;
    if (args.bias != nullptr) bias = Widen(args.bias, args.dim);
    for (const SequenceSpan& span : args.batch.spans) {
      const std::vector<double> x = Widen(args.x + span.row * args.dim, span.length * args.dim);
      std::vector<double> tail;
      if (args.size > 1) tail = Widen(args.tail.at(span.slot), (args.size - 1) * args.dim);
      std::vector<double> y(x.size());
      reference::ShortConvSpan<double>({.tokens = span.length,
                                        .dim = args.dim,
                                        .size = args.size,
                                        .activation = args.activation,
                                        .weight = weight.data(),
                                        .bias = bias.empty() ? nullptr : bias.data(),
                                        .x = x.data(),
                                        .tail = tail.data(),
                                        .y = y.data()});
      if (args.size > 1) Narrow(tail, args.tail.at(span.slot));
      Narrow(y, args.y + span.row * args.dim);
    }
    return absl::OkStatus();
  }

  absl::Status QkPrepare(const QkPrepareArgs& args) override {
    const auto prepare = [&args](double scale, float* x) {
      std::vector<double> head = Widen(x, args.key_dim);
      reference::PrepareQkHead(args.activation, args.norm, scale, absl::MakeSpan(head));
      Narrow(head, x);
    };
    for (int64_t i = 0; i < args.rows * args.heads; ++i) {
      prepare(args.q_scale, args.q + i * args.key_dim);
      prepare(1, args.k + i * args.key_dim);
    }
    return absl::OkStatus();
  }

  absl::Status Gates(const GateArgs& args) override {
    for (int64_t i = 0; i < args.rows * args.heads; ++i) {
      args.beta[i] = static_cast<float>(reference::BetaGate<double>(args.beta[i], args.beta_scale));
      if (args.log_alpha == nullptr) continue;
      const double bias = args.alpha_bias == nullptr ? 0 : args.alpha_bias[i % args.heads];
      args.log_alpha[i] =
          static_cast<float>(reference::LogAlphaGate<double>(args.log_alpha[i], bias));
    }
    return absl::OkStatus();
  }

  // In pieces cut at chunk borders: the state is rounded to float32 at the end of each, so that a
  // prompt gives the same bits however it is cut there.
  absl::Status Mixer(const MixerArgs& args) override {
    for (SequenceSpan rest : args.batch.spans) {
      while (rest.length > 0) {
        SequenceSpan piece = rest;
        piece.length = std::min(rest.length, kChunk - rest.position % kChunk);
        for (int64_t h = 0; h < args.heads; ++h) MixHead(args, piece, h);
        rest.row += piece.length;
        rest.position += piece.length;
        rest.length -= piece.length;
      }
    }
    return absl::OkStatus();
  }
};

}  // namespace

std::unique_ptr<Backend> CreateReferenceBackend() { return std::make_unique<ReferenceBackend>(); }

}  // namespace osdn::kernels
