#include "kernels/cuda/linear.h"

#include <algorithm>
#include <array>
#include <utility>

#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/weight_kernels.h"

namespace osdn::kernels::cuda {
namespace {

// Rows up to which the skinny kernels are used.
constexpr int64_t kSkinnyRows = 16;
static_assert(kSkinnyRows <= kMaxGemvSwiGluRows && kSkinnyRows <= kMaxGemvRows);
// Outputs up to which RunNarrow is used.
constexpr int64_t kNarrowOutputs = kMaxGemvRows;
// Of a quantized weight widened at a time: what stays in the L2 cache until it is read.
constexpr int64_t kWideBytes = int64_t{24} << 20;

constexpr int64_t RoundUp(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Rows [first, first + count) of a weight.
WeightView SliceOutputs(const WeightView& weight, int64_t first, int64_t count) {
  WeightView slice = weight;
  slice.out = count;
  slice.data =
      static_cast<const std::byte*>(weight.data) + first * RowBytes(weight.dtype, weight.stride);
  if (weight.dtype == DType::kI8) {
    slice.scales = static_cast<const float*>(weight.scales) + first;
  } else if (weight.dtype == DType::kI4) {
    slice.scales =
        static_cast<const uint16_t*>(weight.scales) + first * (weight.stride / kInt4Group);
  }
  return slice;
}

// `count` elements of `type` from `data` on.
void* Offset(void* data, ActivationType type, int64_t count) {
  return static_cast<std::byte*>(data) + count * static_cast<int64_t>(ActivationBytes(type));
}

int64_t ElementsBetween(const void* from, const void* to, ActivationType type) {
  return (static_cast<const std::byte*>(to) - static_cast<const std::byte*>(from)) /
         static_cast<int64_t>(ActivationBytes(type));
}

GemmArgs ArgsOf(int64_t rows, const RowsView& x, const WeightView& weight, const Product& product) {
  GemmArgs args;
  args.m = rows;
  args.n = weight.out;
  // Padding is zero on both sides, and aligned sizes are faster.
  args.k = x.stride == weight.stride ? weight.stride : weight.in;
  args.x = x.data;
  args.x_stride = x.stride;
  args.w = weight.data;
  args.w_stride = weight.stride;
  args.y = product.y;
  args.y_stride = weight.out;
  args.type = x.type;
  args.y_type = product.y_type;
  args.accumulate = product.accumulate;
  return args;
}

}  // namespace

Linear::Linear(Device* device, std::unique_ptr<Gemm> gemm)
    : device_(device), gemm_(std::move(gemm)), operand_(device), wide_(device), gate_up_(device) {}

absl::StatusOr<std::unique_ptr<Linear>> Linear::Create(Device* device) {
  if (absl::Status s = PrepareGemv(device); !s.ok()) return s;
  absl::StatusOr<std::unique_ptr<Gemm>> gemm = Gemm::Create(device);
  if (!gemm.ok()) return gemm.status();
  return std::unique_ptr<Linear>(new Linear(device, *std::move(gemm)));
}

absl::Status Linear::Reserve(ActivationType type, int64_t rows, int64_t in, int64_t intermediate) {
  const auto element = static_cast<int64_t>(ActivationBytes(type));
  const int64_t operand = rows * RoundUp(in, StrideStep(DType::kI4)) * element;
  if (absl::Status s = operand_.Reserve(operand); !s.ok()) return s;
  return gate_up_.Reserve(2 * rows * intermediate * element);
}

bool Linear::IsSkinny(int64_t rows, DType dtype, int64_t in) const {
  return rows <= kSkinnyRows && rows <= GemvRows(*device_, dtype, in);
}

absl::Status Linear::Run(int64_t rows, const RowsView& x, const InputNorm& norm,
                         absl::Span<const Product> products) {
  if (rows < 1) return absl::OkStatus();
  // Products whose weights have one type go together.
  while (!products.empty()) {
    const DType dtype = products.front().weight->dtype();
    size_t count = 1;
    while (count < products.size() && products[count].weight->dtype() == dtype) ++count;
    const absl::Span<const Product> group = products.first(count);
    absl::Status status = IsSkinny(rows, dtype, group.front().weight->in_features())
                              ? RunSkinny(rows, x, norm, group)
                              : RunLarge(rows, x, norm, group);
    if (!status.ok()) return status;
    products.remove_prefix(count);
  }
  return absl::OkStatus();
}

absl::Status Linear::RunSkinny(int64_t rows, const RowsView& x, const InputNorm& norm,
                               absl::Span<const Product> products) {
  while (!products.empty()) {
    const size_t count = std::min<size_t>(products.size(), kMaxGemvJobs);
    std::array<GemvJob, kMaxGemvJobs> jobs;
    for (size_t i = 0; i < count; ++i) {
      const Product& product = products[i];
      jobs[i].weight = ViewOf(*product.weight);
      jobs[i].y = product.y;
      jobs[i].y_type = product.y_type;
      jobs[i].row_stride = product.weight->out_features();
      jobs[i].accumulate = product.accumulate;
    }
    GemvArgs args;
    args.rows = rows;
    args.x = x;
    args.norm = norm.weight;
    args.norm_eps = norm.eps;
    args.jobs = absl::MakeConstSpan(jobs.data(), count);
    if (absl::Status s = LaunchGemv(device_, args); !s.ok()) return s;
    products.remove_prefix(count);
  }
  return absl::OkStatus();
}

absl::StatusOr<RowsView> Linear::Operand(int64_t rows, const RowsView& x, const InputNorm& norm,
                                         const WeightView& weight) {
  const ActivationType type = OperandType(weight.dtype);
  if (norm.weight == nullptr && x.type == type) return x;
  if (x.type != ActivationType::kF32) {
    return absl::InternalError("CUDA: bf16 activations with float32 weights");
  }
  if (absl::Status s =
          operand_.Reserve(static_cast<size_t>(rows * weight.stride) * ActivationBytes(type));
      !s.ok()) {
    return s;
  }
  RowNormArgs args;
  args.rows = rows;
  args.dim = weight.in;
  args.eps = norm.eps;
  args.x = static_cast<const float*>(x.data);
  args.weight = norm.weight;
  args.y = operand_.data();
  args.y_type = type;
  args.y_stride = weight.stride;
  if (absl::Status s = device_->Check(LaunchRowNorm(args, device_->stream()), "row norm");
      !s.ok()) {
    return s;
  }
  return RowsView{operand_.data(), type, weight.stride};
}

absl::Status Linear::RunLarge(int64_t rows, const RowsView& x, const InputNorm& norm,
                              absl::Span<const Product> products) {
  const WeightView& first = ViewOf(*products.front().weight);
  const absl::StatusOr<RowsView> operand = Operand(rows, x, norm, first);
  if (!operand.ok()) return operand.status();
  while (!products.empty()) {
    const Product& product = products.front();
    size_t done = 1;
    absl::Status status;
    if (IsQuantized(first.dtype)) {
      status = RunQuantized(rows, *operand, product);
    } else if (product.weight->out_features() <= kNarrowOutputs &&
               product.weight->out_features() <= GemvRows(*device_, first.dtype, first.in) &&
               operand->stride == first.stride) {
      status = RunNarrow(rows, *operand, product);
    } else {
      const absl::StatusOr<size_t> batch = RunBatch(rows, *operand, products);
      status = batch.status();
      if (batch.ok()) done = *batch;
    }
    if (!status.ok()) return status;
    products.remove_prefix(done);
  }
  return absl::OkStatus();
}

absl::StatusOr<size_t> Linear::RunBatch(int64_t rows, const RowsView& x,
                                        absl::Span<const Product> products) {
  const Product& first = products.front();
  const WeightView& weight = ViewOf(*first.weight);
  GemmArgs args = ArgsOf(rows, x, weight, first);
  while (static_cast<size_t>(args.batch) < products.size()) {
    const Product& next = products[args.batch];
    const WeightView& next_weight = ViewOf(*next.weight);
    if (next_weight.out != weight.out || next.y_type != first.y_type ||
        next.accumulate != first.accumulate) {
      break;
    }
    const int64_t w_distance = ElementsBetween(weight.data, next_weight.data, x.type);
    const int64_t y_distance = ElementsBetween(first.y, next.y, first.y_type);
    if (args.batch == 1) {
      if (w_distance <= 0 || y_distance < rows * weight.out) break;
      args.w_batch_stride = w_distance;
      args.y_batch_stride = y_distance;
    } else if (w_distance != args.batch * args.w_batch_stride ||
               y_distance != args.batch * args.y_batch_stride) {
      break;
    }
    ++args.batch;
  }
  if (args.batch == 1) args.w_batch_stride = args.y_batch_stride = 0;
  if (absl::Status s = gemm_->Run(args); !s.ok()) return s;
  return static_cast<size_t>(args.batch);
}

absl::Status Linear::RunNarrow(int64_t rows, const RowsView& x, const Product& product) {
  const WeightView& weight = ViewOf(*product.weight);
  GemvJob job;
  job.weight.data = x.data;
  job.weight.dtype = weight.dtype;
  job.weight.out = rows;
  job.weight.in = weight.in;
  job.weight.stride = x.stride;
  job.y = product.y;
  job.y_type = product.y_type;
  job.row_stride = 1;
  job.feature_stride = weight.out;
  job.accumulate = product.accumulate;
  GemvArgs args;
  args.rows = weight.out;
  args.x = {weight.data, x.type, weight.stride};
  args.jobs = absl::MakeConstSpan(&job, 1);
  args.read_ahead = false;  // the "weights" are what the kernel in front computes
  return LaunchGemv(device_, args);
}

absl::Status Linear::RunQuantized(int64_t rows, const RowsView& x, const Product& product) {
  const WeightView& weight = ViewOf(*product.weight);
  const int64_t row_bytes = weight.stride * 2;
  const int64_t outputs_a_part = std::clamp<int64_t>(kWideBytes / row_bytes, 1, weight.out);
  if (absl::Status s = wide_.Reserve(outputs_a_part * row_bytes); !s.ok()) return s;
  for (int64_t first = 0; first < weight.out; first += outputs_a_part) {
    const WeightView part =
        SliceOutputs(weight, first, std::min(outputs_a_part, weight.out - first));
    if (absl::Status s = device_->Check(LaunchWidenToBf16(part, wide_.data(), device_->stream()),
                                        "widening a quantized weight");
        !s.ok()) {
      return s;
    }
    GemmArgs args = ArgsOf(rows, x, part, product);
    args.w = wide_.data();
    args.y = Offset(product.y, product.y_type, first);
    args.y_stride = weight.out;
    if (absl::Status s = gemm_->Run(args); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status Linear::RunSwiGlu(int64_t rows, const RowsView& x, const InputNorm& norm,
                               const SwiGluProduct& product) {
  const WeightView& gate = ViewOf(*product.gate);
  const WeightView& up = ViewOf(*product.up);
  if (gate.dtype == up.dtype && IsSkinny(rows, gate.dtype, gate.in)) {
    std::array<GemvJob, 2> jobs;
    jobs[0].weight = gate;
    jobs[1].weight = up;
    for (GemvJob& job : jobs) {
      job.y = product.y;
      job.y_type = product.y_type;
      job.row_stride = gate.out;
    }
    GemvArgs args;
    args.rows = rows;
    args.x = x;
    args.norm = norm.weight;
    args.norm_eps = norm.eps;
    args.jobs = jobs;
    args.swiglu = true;
    return LaunchGemv(device_, args);
  }
  const int64_t count = rows * gate.out;
  const size_t bytes = static_cast<size_t>(count) * ActivationBytes(product.y_type);
  if (absl::Status s = gate_up_.Reserve(2 * bytes); !s.ok()) return s;
  void* const up_y = Offset(gate_up_.data(), product.y_type, count);
  const std::array<Product, 2> products = {
      {{product.gate, gate_up_.data(), product.y_type}, {product.up, up_y, product.y_type}}};
  if (absl::Status s = Run(rows, x, norm, products); !s.ok()) return s;
  return device_->Check(
      LaunchSwiGlu(gate_up_.data(), up_y, product.y, product.y_type, count, device_->stream()),
      "swiglu");
}

}  // namespace osdn::kernels::cuda
