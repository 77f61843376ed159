#include "kernels/cpu/cpu_backend.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/mixer.h"
#include "kernels/cpu/short_conv.h"
#include "kernels/cpu/threads.h"

namespace osdn::kernels {
namespace {

using cpu::Threads;

constexpr int kMaxThreads = 1024;
// Rough costs in float operations, for the choice between one thread and all.
constexpr int64_t kNormCost = 6;
constexpr int64_t kExpCost = 24;
constexpr int64_t kHostTaskCost = int64_t{1} << 17;  // a task is worth a thread

class CpuBackend : public Backend {
 public:
  CpuBackend(const Threads& threads, cpu::Isa isa)
      : threads_(threads), isa_(isa), linear_(threads, isa), scratch_(threads.count()) {}

  std::string_view name() const override { return "cpu"; }
  std::string Describe() const override {
    return absl::StrCat("cpu: ", std::string(cpu::IsaName(isa_)), " (", cpu::SimdTargetName(),
                        " via Highway), ", threads_.count(),
                        threads_.count() == 1 ? " thread" : " threads");
  }

  absl::StatusOr<Buffer> Allocate(size_t bytes) override { return cpu::AllocateZeroed(bytes); }

  absl::Status CopyFromHost(void* dst, const void* src, size_t bytes) override {
    if (bytes > 0) std::memcpy(dst, src, bytes);
    return absl::OkStatus();
  }
  absl::Status CopyToHost(void* dst, const void* src, size_t bytes) override {
    return CopyFromHost(dst, src, bytes);
  }
  absl::Status CopyOnDevice(void* dst, const void* src, size_t bytes) override {
    return CopyFromHost(dst, src, bytes);
  }
  absl::Status Fill(float* dst, float value, int64_t count) override {
    std::fill_n(dst, count, value);
    return absl::OkStatus();
  }
  absl::Status Synchronize() override { return absl::OkStatus(); }

  absl::StatusOr<std::unique_ptr<LinearWeight>> PrepareLinear(const HostTensor& weight) override {
    return linear_.Prepare(weight);
  }

  absl::Status Embed(const LinearWeight& table, const EmbeddingArgs& args) override {
    linear_.Embed(static_cast<const cpu::PackedWeight&>(table), args);
    return absl::OkStatus();
  }

  absl::Status GatherRows(const GatherRowsArgs& args) override {
    float* y = args.y;
    for (const int64_t index : args.indices) {
      std::memcpy(y, args.x + index * args.dim, args.dim * sizeof(float));
      y += args.dim;
    }
    return absl::OkStatus();
  }

  absl::Status Linear(const LinearArgs& args) override { return linear_.Run(args); }

  absl::Status RmsNorm(const RmsNormArgs& args) override {
    threads_.ForShares(args.rows, 1, args.rows * args.dim * kNormCost,
                       [&](int64_t begin, int64_t end) { cpu::RmsNormRows(args, begin, end); });
    return absl::OkStatus();
  }

  absl::Status OutputNorm(const OutputNormArgs& args) override {
    const int64_t cost = kNormCost + (args.gate != nullptr ? kExpCost : 0);
    threads_.ForShares(args.rows, 1, args.rows * args.heads * args.value_dim * cost,
                       [&](int64_t begin, int64_t end) { cpu::OutputNormRows(args, begin, end); });
    return absl::OkStatus();
  }

  absl::Status SwiGlu(const SwiGluArgs& args) override {
    const int64_t elements = args.rows * args.dim;
    threads_.ForShares(elements, cpu::kLineFloats, elements * kExpCost,
                       [&](int64_t begin, int64_t end) { cpu::SwiGluElements(args, begin, end); });
    return absl::OkStatus();
  }

  absl::Status ShortConv(const ShortConvArgs& args) override {
    return cpu::ShortConv(args, threads_, scratch_);
  }

  absl::Status QkPrepare(const QkPrepareArgs& args) override {
    const int64_t cost =
        2 * (kNormCost + (args.activation == Activation::kIdentity ? 0 : kExpCost));
    threads_.ForShares(args.rows, 1, args.rows * args.heads * args.key_dim * cost,
                       [&](int64_t begin, int64_t end) { cpu::QkPrepareRows(args, begin, end); });
    return absl::OkStatus();
  }

  absl::Status Gates(const GateArgs& args) override {
    threads_.ForShares(args.rows, 1, args.rows * args.heads * 3 * kExpCost,
                       [&](int64_t begin, int64_t end) { cpu::GateRows(args, begin, end); });
    return absl::OkStatus();
  }

  absl::Status Mixer(const MixerArgs& args) override {
    return cpu::Mix(args, cpu::Phase1Form::kTokenLoop, threads_, scratch_);
  }

  int host_threads() const override { return threads_.count(); }
  void RunOnHost(int64_t tasks, absl::FunctionRef<void(int64_t index, int thread)> task) override {
    threads_.For(tasks, tasks * kHostTaskCost, task);
  }

 private:
  Threads threads_;
  cpu::Isa isa_;
  cpu::LinearOp linear_;
  cpu::ThreadScratch scratch_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(int threads, std::string_view isa) {
  if (threads < 0 || threads > kMaxThreads) {
    return absl::InvalidArgumentError(absl::StrCat("cpu backend: ", threads,
                                                   " threads, wants 1 to ", kMaxThreads,
                                                   ", or 0 for one a physical core"));
  }
  const absl::StatusOr<cpu::Isa> level = cpu::ParseIsa(isa);
  if (!level.ok()) return level.status();
  cpu::SelectSimdTarget(*level);
  const Threads team(threads == 0 ? cpu::UsableCores() : threads);
  return std::make_unique<CpuBackend>(team, *level);
}

}  // namespace osdn::kernels
