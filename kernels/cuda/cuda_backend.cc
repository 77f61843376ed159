#include "kernels/cuda/cuda_backend.h"

#include <string>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/composed_layers.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/layers.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/memory.h"
#include "kernels/cuda/mixer.h"
#include "kernels/cuda/short_conv.h"
#include "kernels/cuda/step_graphs.h"
#include "kernels/cuda/weight_kernels.h"
#include "kernels/cuda/weights.h"

namespace osdn::kernels::cuda {
namespace {

class CudaBackend final : public Backend {
 public:
  CudaBackend(std::unique_ptr<Device> device, std::unique_ptr<cuda::Linear> linear)
      : device_(std::move(device)),
        linear_(std::move(linear)),
        copies_(device_.get()),
        weights_(device_.get(), &copies_),
        steps_(device_.get()) {}
  CudaBackend(const CudaBackend&) = delete;
  CudaBackend& operator=(const CudaBackend&) = delete;
  ~CudaBackend() override {
    // What is still running uses memory that goes away now.
    cudaStreamSynchronize(device_->stream());
  }

  std::string_view name() const override { return "cuda"; }
  std::string Describe() const override {
    std::string text = absl::StrCat("cuda: ", device_->description());
    if (!steps_.recording_error().empty()) {
      absl::StrAppend(&text, ", without graphs: ", steps_.recording_error());
    }
    return text;
  }

  // --- Memory ---
  absl::StatusOr<Buffer> Allocate(size_t bytes) override {
    return AllocateZeroed(device_.get(), bytes);
  }
  absl::Status CopyFromHost(void* dst, const void* src, size_t bytes) override {
    return copies_.ToDevice(dst, src, bytes);
  }
  absl::Status CopyToHost(void* dst, const void* src, size_t bytes) override {
    return copies_.ToHost(dst, src, bytes);
  }
  absl::Status CopyOnDevice(void* dst, const void* src, size_t bytes) override {
    if (bytes == 0) return device_->Usable();
    return device_->Check(
        cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, device_->stream()),
        "cudaMemcpyAsync on the device");
  }
  absl::Status Fill(float* dst, float value, int64_t count) override {
    return device_->Check(LaunchFill(dst, value, count, device_->stream()), "fill");
  }
  absl::Status Synchronize() override { return device_->Synchronize(); }

  absl::StatusOr<std::unique_ptr<LinearWeight>> PrepareLinear(const HostTensor& weight) override {
    last_operand_ = OperandType(weight.dtype);
    return weights_.Load(weight);
  }

  // --- Ops ---
  absl::Status Embed(const LinearWeight& table, const EmbeddingArgs& args) override {
    if (args.ids.empty()) return device_->Usable();
    const absl::StatusOr<StepGraphs::DeviceIds> ids = steps_.IdsOf(args.ids);
    if (!ids.ok()) return ids.status();
    return device_->Check(
        LaunchEmbed(ViewOf(table), ids->ids, ids->count, args.y, device_->stream()), "embedding");
  }

  absl::Status GatherRows(const GatherRowsArgs& args) override {
    if (args.indices.empty()) return device_->Usable();
    const absl::StatusOr<const int64_t*> indices = steps_.IndicesOf(args.indices);
    if (!indices.ok()) return indices.status();
    return device_->Check(LaunchGatherRows(*indices, static_cast<int64_t>(args.indices.size()),
                                           args.dim, args.x, args.y, device_->stream()),
                          "gather rows");
  }

  absl::Status Linear(const LinearArgs& args) override {
    if (args.jobs.empty()) return device_->Usable();
    std::vector<Product> products;
    products.reserve(args.jobs.size());
    for (const LinearJob& job : args.jobs) {
      products.push_back({job.weight, job.y, ActivationType::kF32, job.accumulate});
    }
    const RowsView x = {args.x, ActivationType::kF32, args.jobs[0].weight->in_features()};
    return linear_->Run(args.batch.rows, x, InputNorm(), products);
  }

  absl::Status RmsNorm(const RmsNormArgs& args) override {
    if (args.rows < 1) return device_->Usable();
    RowNormArgs norm;
    norm.rows = args.rows;
    norm.dim = args.dim;
    norm.eps = args.eps;
    norm.x = args.x;
    norm.weight = args.weight;
    norm.y = args.y;
    norm.y_stride = args.dim;
    return device_->Check(LaunchRowNorm(norm, device_->stream()), "rms norm");
  }

  absl::Status OutputNorm(const OutputNormArgs& args) override {
    if (args.rows < 1) return device_->Usable();
    return device_->Check(LaunchOutputNorm(args, device_->stream()), "output norm");
  }

  absl::Status SwiGlu(const SwiGluArgs& args) override {
    if (args.rows < 1) return device_->Usable();
    return device_->Check(LaunchSwiGlu(args.gate, args.up, args.y, ActivationType::kF32,
                                       args.rows * args.dim, device_->stream()),
                          "swiglu");
  }

  absl::Status ShortConv(const ShortConvArgs& args) override {
    const absl::StatusOr<DevicePlan> plan = steps_.PlanOf(args.batch);
    if (!plan.ok()) return plan.status();
    return device_->Check(LaunchShortConv(args, *plan, device_->stream()), "short convolution");
  }

  absl::Status QkPrepare(const QkPrepareArgs& args) override {
    if (args.rows < 1) return device_->Usable();
    return device_->Check(LaunchQkPrepare(args, device_->stream()), "qk prepare");
  }

  absl::Status Gates(const GateArgs& args) override {
    if (args.rows < 1) return device_->Usable();
    return device_->Check(LaunchGates(args, device_->stream()), "gates");
  }

  absl::Status Mixer(const MixerArgs& args) override;

  // --- Whole steps ---
  absl::StatusOr<std::unique_ptr<LayerRunner>> CreateLayerRunner(const LayerSpec& spec,
                                                                 int64_t max_rows) override {
    if (!CudaLayerRunner::Supports(spec)) {
      steps_.LimitRows(max_rows);
      return CreateComposedLayers(this, spec, max_rows);
    }
    return CudaLayerRunner::Create({device_.get(), linear_.get(), &steps_}, spec, max_rows,
                                   last_operand_);
  }
  absl::Status RunStep(const StepInputs& step,
                       absl::FunctionRef<absl::Status(const BatchView& batch)> body) override {
    return steps_.RunStep(step, body);
  }

 private:
  std::unique_ptr<Device> device_;  // first: it goes last
  std::unique_ptr<cuda::Linear> linear_;
  HostCopies copies_;
  WeightLoader weights_;
  StepGraphs steps_;
  // What the weights prepared last want: layer runners are made for networks loaded before.
  ActivationType last_operand_ = ActivationType::kBF16;
};

absl::Status CudaBackend::Mixer(const MixerArgs& args) {
  if (args.batch.rows < 1) return device_->Usable();
  LayerSpec spec;
  spec.heads = args.heads;
  spec.key_dim = args.key_dim;
  spec.value_dim = args.value_dim;
  spec.use_apf = args.log_alpha != nullptr;
  spec.precond = args.precond;
  const absl::StatusOr<DevicePlan> plan = steps_.PlanOf(args.batch);
  if (!plan.ok()) return plan.status();
  MixerCoreArgs mixer;
  mixer.plan = *plan;
  mixer.fused = false;
  mixer.q = args.q;
  mixer.k = args.k;
  mixer.v = args.v;
  mixer.beta = args.beta;
  mixer.log_alpha = args.log_alpha;
  mixer.s = args.s;
  mixer.d = args.d;
  mixer.o = args.o;
  const MixerResources resources = {nullptr, device_->multiprocessors(), device_->stream(),
                                    device_->overlaps_launches()};
  return LaunchMixer(spec, mixer, resources);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend() {
  absl::StatusOr<std::unique_ptr<Device>> device = Device::Open();
  if (!device.ok()) return device.status();
  absl::StatusOr<std::unique_ptr<Linear>> linear = Linear::Create(device->get());
  if (!linear.ok()) return linear.status();
  return std::make_unique<CudaBackend>(*std::move(device), *std::move(linear));
}

}  // namespace osdn::kernels::cuda
