#include "tools/timed_backend.h"

#include <algorithm>
#include <chrono>

#include "absl/strings/str_cat.h"
#include "kernels/composed_layers.h"

namespace osdn::tools {

template <class Call>
absl::Status TimedBackend::Time(const Key& key, const Call& call) {
  if (!recording_) return call();
  const auto start = std::chrono::steady_clock::now();
  if (absl::Status status = call(); !status.ok()) return status;
  if (absl::Status status = inner_->Synchronize(); !status.ok()) return status;
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  auto entry = std::find_if(entries_.begin(), entries_.end(),
                            [&key](const Entry& known) { return known.key == key; });
  if (entry == entries_.end()) entry = entries_.insert(entry, Entry{.key = key});
  entry->calls += 1;
  entry->seconds += seconds.count();
  return absl::OkStatus();
}

void TimedBackend::StartRecording() {
  entries_.clear();
  recording_ = true;
}

std::vector<OpTime> TimedBackend::StopRecording() {
  recording_ = false;
  std::vector<OpTime> times;
  for (const Entry& entry : entries_) {
    std::string name = entry.key.op;
    if (entry.key.out > 0) absl::StrAppend(&name, " ", entry.key.out, "x", entry.key.in);
    times.push_back({std::move(name), entry.calls, entry.seconds});
  }
  std::stable_sort(times.begin(), times.end(),
                   [](const OpTime& a, const OpTime& b) { return a.seconds > b.seconds; });
  return times;
}

absl::Status TimedBackend::CopyFromHost(void* dst, const void* src, size_t bytes) {
  return Time({"copy", 0, 0}, [&] { return inner_->CopyFromHost(dst, src, bytes); });
}

absl::Status TimedBackend::CopyToHost(void* dst, const void* src, size_t bytes) {
  return Time({"copy", 0, 0}, [&] { return inner_->CopyToHost(dst, src, bytes); });
}

absl::Status TimedBackend::CopyOnDevice(void* dst, const void* src, size_t bytes) {
  return Time({"copy", 0, 0}, [&] { return inner_->CopyOnDevice(dst, src, bytes); });
}

absl::Status TimedBackend::Fill(float* dst, float value, int64_t count) {
  return Time({"fill", 0, 0}, [&] { return inner_->Fill(dst, value, count); });
}

absl::Status TimedBackend::Embed(const kernels::LinearWeight& table,
                                 const kernels::EmbeddingArgs& args) {
  return Time({"embedding", 0, 0}, [&] { return inner_->Embed(table, args); });
}

absl::Status TimedBackend::GatherRows(const kernels::GatherRowsArgs& args) {
  return Time({"gather rows", 0, 0}, [&] { return inner_->GatherRows(args); });
}

absl::Status TimedBackend::Linear(const kernels::LinearArgs& args) {
  Key key = {"linear", 0, 0};
  for (const kernels::LinearJob& job : args.jobs) {
    key.out += job.weight->out_features();
    key.in = job.weight->in_features();
  }
  return Time(key, [&] { return inner_->Linear(args); });
}

absl::Status TimedBackend::RmsNorm(const kernels::RmsNormArgs& args) {
  return Time({"rms norm", 0, 0}, [&] { return inner_->RmsNorm(args); });
}

absl::Status TimedBackend::OutputNorm(const kernels::OutputNormArgs& args) {
  return Time({"output norm", 0, 0}, [&] { return inner_->OutputNorm(args); });
}

absl::Status TimedBackend::SwiGlu(const kernels::SwiGluArgs& args) {
  return Time({"swiglu", 0, 0}, [&] { return inner_->SwiGlu(args); });
}

absl::Status TimedBackend::ShortConv(const kernels::ShortConvArgs& args) {
  return Time({"short conv", 0, 0}, [&] { return inner_->ShortConv(args); });
}

absl::Status TimedBackend::QkPrepare(const kernels::QkPrepareArgs& args) {
  return Time({"qk prepare", 0, 0}, [&] { return inner_->QkPrepare(args); });
}

absl::Status TimedBackend::Gates(const kernels::GateArgs& args) {
  return Time({"gates", 0, 0}, [&] { return inner_->Gates(args); });
}

absl::Status TimedBackend::Mixer(const kernels::MixerArgs& args) {
  return Time({"mixer", 0, 0}, [&] { return inner_->Mixer(args); });
}

// The inner backend's own blocks, each call timed.
class TimedBackend::Layers final : public kernels::LayerRunner {
 public:
  Layers(TimedBackend* backend, std::unique_ptr<kernels::LayerRunner> inner)
      : backend_(backend), inner_(std::move(inner)) {}

  absl::Status Mixer(const kernels::MixerLayerArgs& args) override {
    return backend_->Time({"mixer block", 0, 0}, [&] { return inner_->Mixer(args); });
  }
  absl::Status Mlp(const kernels::MlpLayerArgs& args) override {
    return backend_->Time({"mlp block", 0, 0}, [&] { return inner_->Mlp(args); });
  }
  size_t scratch_bytes() const override { return inner_->scratch_bytes(); }

 private:
  TimedBackend* backend_;
  std::unique_ptr<kernels::LayerRunner> inner_;
};

absl::StatusOr<std::unique_ptr<kernels::LayerRunner>> TimedBackend::CreateLayerRunner(
    const kernels::LayerSpec& spec, int64_t max_rows) {
  // Only cuda fuses: of the others the blocks are made of this backend's ops.
  if (inner_->name() != "cuda") return kernels::CreateComposedLayers(this, spec, max_rows);
  absl::StatusOr<std::unique_ptr<kernels::LayerRunner>> layers =
      inner_->CreateLayerRunner(spec, max_rows);
  if (!layers.ok()) return layers.status();
  return std::make_unique<Layers>(this, *std::move(layers));
}

absl::Status TimedBackend::RunStep(
    const kernels::StepInputs& step,
    absl::FunctionRef<absl::Status(const kernels::BatchView& batch)> body) {
  if (recording_) return body(step.batch);
  return inner_->RunStep(step, body);
}

}  // namespace osdn::tools
