#include "kernels/cuda/layers.h"

#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"

namespace osdn::kernels::cuda {
namespace {

constexpr size_t kAlignment = 256;

// Takes places one behind the other; then the same calls give addresses.
class Carver {
 public:
  explicit Carver(void* base) : base_(static_cast<std::byte*>(base)) {}

  void* Take(size_t bytes) {
    void* const place = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return place;
  }
  size_t used() const { return used_; }

 private:
  std::byte* base_;
  size_t used_ = 0;
};

}  // namespace

CudaLayerRunner::CudaLayerRunner(const LayerContext& context, const LayerSpec& spec,
                                 int64_t max_rows)
    : context_(context), spec_(spec), max_rows_(max_rows), scratch_(context.device) {}

CudaLayerRunner::~CudaLayerRunner() { context_.steps->Clear(); }

bool CudaLayerRunner::Supports(const LayerSpec& spec) {
  // Rows that 16-byte accesses fit, whatever their type.
  const auto fits = [](int64_t dim) { return dim > 0 && dim % 8 == 0; };
  return fits(spec.hidden_size) && fits(spec.heads * spec.key_dim) &&
         fits(spec.heads * spec.value_dim) && fits(spec.intermediate_size) && FusesMixer(spec);
}

absl::StatusOr<std::unique_ptr<CudaLayerRunner>> CudaLayerRunner::Create(
    const LayerContext& context, const LayerSpec& spec, int64_t max_rows, ActivationType type) {
  std::unique_ptr<CudaLayerRunner> runner(new CudaLayerRunner(context, spec, max_rows));
  if (absl::Status s = runner->Allocate(type); !s.ok()) {
    return absl::Status(s.code(), absl::StrCat("scratch of ", max_rows, " rows: ", s.message()));
  }
  context.steps->LimitRows(max_rows);
  return runner;
}

absl::Status CudaLayerRunner::Allocate(ActivationType type) {
  const auto rows = static_cast<size_t>(max_rows_);
  const size_t element = ActivationBytes(type);
  const size_t key = rows * static_cast<size_t>(spec_.heads * spec_.key_dim) * element;
  const size_t value = rows * static_cast<size_t>(spec_.heads * spec_.value_dim) * element;
  const size_t inner = rows * static_cast<size_t>(spec_.intermediate_size) * element;
  const size_t gates = rows * static_cast<size_t>(spec_.heads) * sizeof(float);
  const size_t workspace = MixerWorkspaceBytes(spec_, type, max_rows_);
  // Twice: for the size, then for the addresses.
  Places places;
  size_t bytes = 0;
  for (int pass = 0; pass < 2; ++pass) {
    if (pass == 1) {
      if (absl::Status s = scratch_.Reserve(bytes); !s.ok()) return s;
    }
    Carver carver(pass == 0 ? nullptr : scratch_.data());
    places.q = places.inner = carver.Take(key);
    places.k = carver.Take(key);
    places.v = carver.Take(value);
    if (spec_.use_gate) places.gate = carver.Take(value);
    places.beta = static_cast<float*>(carver.Take(gates));
    if (spec_.use_apf) places.log_alpha = static_cast<float*>(carver.Take(gates));
    places.o = carver.Take(value);
    places.workspace = carver.Take(workspace);
    bytes = std::max(carver.used(), inner);
  }
  places_ = places;
  type_ = type;
  const int64_t widest =
      std::max({spec_.hidden_size, spec_.heads * spec_.value_dim, spec_.intermediate_size});
  return context_.linear->Reserve(type, max_rows_, widest, spec_.intermediate_size);
}

absl::Status CudaLayerRunner::CheckRows(const BatchView& batch) const {
  if (batch.rows <= max_rows_) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("batch of ", batch.rows, " rows, the layers' ",
                                                 "scratch has room for ", max_rows_));
}

absl::Status CudaLayerRunner::Project(int64_t rows, const MixerLayerArgs& args) {
  const MixerLayerWeights& weights = *args.weights;
  std::array<Product, 6> products;
  size_t count = 0;
  products[count++] = {weights.q_proj, places_.q, type_};
  products[count++] = {weights.k_proj, places_.k, type_};
  products[count++] = {weights.v_proj, places_.v, type_};
  if (spec_.use_gate) products[count++] = {weights.g_proj, places_.gate, type_};
  if (spec_.use_beta) products[count++] = {weights.b_proj, places_.beta, ActivationType::kF32};
  if (spec_.use_apf) products[count++] = {weights.a_proj, places_.log_alpha, ActivationType::kF32};
  return context_.linear->Run(rows, {args.x, ActivationType::kF32, spec_.hidden_size},
                              {weights.norm, spec_.norm_eps},
                              absl::MakeConstSpan(products.data(), count));
}

absl::Status CudaLayerRunner::Mixer(const MixerLayerArgs& args) {
  if (absl::Status s = context_.device->Usable(); !s.ok()) return s;
  if (absl::Status s = CheckRows(args.batch); !s.ok()) return s;
  const MixerLayerWeights& weights = *args.weights;
  const ActivationType type = OperandType(weights.o_proj->dtype());
  if (type != type_) {
    if (absl::Status s = Allocate(type); !s.ok()) return s;
  }
  const int64_t rows = args.batch.rows;
  if (absl::Status s = Project(rows, args); !s.ok()) return s;

  const absl::StatusOr<DevicePlan> plan = context_.steps->PlanOf(args.batch);
  if (!plan.ok()) return plan.status();
  MixerCoreArgs mixer;
  mixer.plan = *plan;
  mixer.type = type_;
  mixer.q = places_.q;
  mixer.k = places_.k;
  mixer.v = places_.v;
  mixer.gate = places_.gate;
  mixer.beta = spec_.use_beta ? places_.beta : nullptr;
  mixer.log_alpha = places_.log_alpha;
  mixer.weights = &weights;
  mixer.s = args.s;
  mixer.d = args.d;
  mixer.conv_q = args.conv_q;
  mixer.conv_k = args.conv_k;
  mixer.conv_v = args.conv_v;
  mixer.o = places_.o;
  const MixerResources resources = {places_.workspace, context_.device->multiprocessors(),
                                    context_.device->stream(),
                                    context_.device->overlaps_launches()};
  if (absl::Status s = LaunchMixer(spec_, mixer, resources); !s.ok()) return s;
  const Product output = {weights.o_proj, args.x, ActivationType::kF32, true};
  return context_.linear->Run(rows, {places_.o, type_, spec_.heads * spec_.value_dim}, {},
                              absl::MakeConstSpan(&output, 1));
}

absl::Status CudaLayerRunner::Mlp(const MlpLayerArgs& args) {
  if (absl::Status s = context_.device->Usable(); !s.ok()) return s;
  if (absl::Status s = CheckRows(args.batch); !s.ok()) return s;
  const MlpLayerWeights& weights = *args.weights;
  const ActivationType type = OperandType(weights.down_proj->dtype());
  if (type != type_) {
    if (absl::Status s = Allocate(type); !s.ok()) return s;
  }
  const int64_t rows = args.batch.rows;
  if (absl::Status s = context_.linear->RunSwiGlu(
          rows, {args.x, ActivationType::kF32, spec_.hidden_size}, {weights.norm, spec_.norm_eps},
          {weights.gate_proj, weights.up_proj, places_.inner, type_});
      !s.ok()) {
    return s;
  }
  const Product output = {weights.down_proj, args.x, ActivationType::kF32, true};
  return context_.linear->Run(rows, {places_.inner, type_, spec_.intermediate_size}, {},
                              absl::MakeConstSpan(&output, 1));
}

}  // namespace osdn::kernels::cuda
