// A backend that adds up how long each op of another takes.
#ifndef OSDN_TOOLS_TIMED_BACKEND_H_
#define OSDN_TOOLS_TIMED_BACKEND_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/backend.h"

namespace osdn::tools {

struct OpTime {
  std::string name;  // "mixer", "linear 5632x1024": all outputs of a group by its input
  int64_t calls = 0;
  double seconds = 0;
};

// Forwards everything. While it is recording, each op is timed, and waited for where the inner
// backend runs asynchronously; otherwise nothing is added to the calls. Blocks are a composition of
// ops, each timed by itself, unless the inner backend fuses them: then the two calls of its layer
// runner are. Recorded steps of the inner backend are not used while this one is recording.
class TimedBackend final : public kernels::Backend {
 public:
  explicit TimedBackend(std::unique_ptr<kernels::Backend> inner) : inner_(std::move(inner)) {}

  // Forgets what was recorded and records from now on.
  void StartRecording();
  // Stops, and gives the times by descending share.
  std::vector<OpTime> StopRecording();

  std::string_view name() const override { return inner_->name(); }
  std::string Describe() const override { return inner_->Describe(); }
  absl::StatusOr<kernels::Buffer> Allocate(size_t bytes) override {
    return inner_->Allocate(bytes);
  }
  absl::Status CopyFromHost(void* dst, const void* src, size_t bytes) override;
  absl::Status CopyToHost(void* dst, const void* src, size_t bytes) override;
  absl::Status CopyOnDevice(void* dst, const void* src, size_t bytes) override;
  absl::Status Fill(float* dst, float value, int64_t count) override;
  absl::Status Synchronize() override { return inner_->Synchronize(); }
  absl::StatusOr<std::unique_ptr<kernels::LinearWeight>> PrepareLinear(
      const kernels::HostTensor& weight) override {
    return inner_->PrepareLinear(weight);
  }
  absl::Status Embed(const kernels::LinearWeight& table,
                     const kernels::EmbeddingArgs& args) override;
  absl::Status GatherRows(const kernels::GatherRowsArgs& args) override;
  absl::Status Linear(const kernels::LinearArgs& args) override;
  absl::Status RmsNorm(const kernels::RmsNormArgs& args) override;
  absl::Status OutputNorm(const kernels::OutputNormArgs& args) override;
  absl::Status SwiGlu(const kernels::SwiGluArgs& args) override;
  absl::Status ShortConv(const kernels::ShortConvArgs& args) override;
  absl::Status QkPrepare(const kernels::QkPrepareArgs& args) override;
  absl::Status Gates(const kernels::GateArgs& args) override;
  absl::Status Mixer(const kernels::MixerArgs& args) override;
  absl::StatusOr<std::unique_ptr<kernels::LayerRunner>> CreateLayerRunner(
      const kernels::LayerSpec& spec, int64_t max_rows) override;
  absl::Status RunStep(
      const kernels::StepInputs& step,
      absl::FunctionRef<absl::Status(const kernels::BatchView& batch)> body) override;
  int host_threads() const override { return inner_->host_threads(); }
  void RunOnHost(int64_t tasks, absl::FunctionRef<void(int64_t index, int thread)> task) override {
    inner_->RunOnHost(tasks, task);
  }

 private:
  class Layers;
  // What tells one line of the breakdown from another; sizes are 0 but for products.
  struct Key {
    const char* op;
    int64_t out;
    int64_t in;
    bool operator==(const Key& other) const = default;
  };
  struct Entry {
    Key key;
    int64_t calls = 0;
    double seconds = 0;
  };

  template <class Call>
  absl::Status Time(const Key& key, const Call& call);

  std::unique_ptr<kernels::Backend> inner_;
  bool recording_ = false;
  std::vector<Entry> entries_;  // some ten: searched from the front
};

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_TIMED_BACKEND_H_
