#include "kernels/cuda/step_graphs.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"

namespace osdn::kernels::cuda {
namespace {

// A graph of some 150 kernels takes about a megabyte on the device.
constexpr size_t kMostGraphs = 64;
constexpr int kBlocks = 4;  // steps whose copies may be on their way

// Sets the device to recording for as long as it lives.
class RecordingScope {
 public:
  explicit RecordingScope(Device* device) : device_(device) { device_->set_recording(true); }
  RecordingScope(const RecordingScope&) = delete;
  RecordingScope& operator=(const RecordingScope&) = delete;
  ~RecordingScope() { device_->set_recording(false); }

 private:
  Device* device_;
};

bool SameSpans(absl::Span<const SequenceSpan> a, absl::Span<const SequenceSpan> b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const SequenceSpan& x, const SequenceSpan& y) {
                      return x.row == y.row && x.length == y.length && x.position == y.position &&
                             x.slot == y.slot;
                    });
}

}  // namespace

StepGraphs::StepGraphs(Device* device)
    : device_(device),
      blocks_(device, kBlocks),
      memory_(device),
      plan_uploads_(device),
      id_uploads_(device),
      graphs_(kMostGraphs) {}

StepGraphs::~StepGraphs() { Clear(); }

void StepGraphs::Clear() {
  // A graph that is still running keeps what it needs until it is done.
  graphs_.Clear();
}

absl::Status StepGraphs::RunStep(const StepInputs& step, Body body) {
  if (absl::Status s = device_->Usable(); !s.ok()) return s;
  const PaddedBatch batch = PadDecodeBatch(step.batch, PaddedRows(step.batch, max_rows_));
  if (absl::Status s = Upload(step, batch); !s.ok()) return s;
  absl::Status status;
  if (batch.rows > 0 && batch.rows == batch.decode_rows) {
    status = RunRecorded(step, batch.view(), body);
  } else {
    status = body(batch.view());
  }
  current_.reset();
  return status;
}

absl::Status StepGraphs::Upload(const StepInputs& step, const PaddedBatch& batch) {
  const BatchPlan plan = PlanBatch(batch.view());
  const StepLayout layout = LayOutStep(plan, step.logit_rows.size());
  // Roomy, so that it seldom grows: growing ends the life of all graphs.
  constexpr size_t kLeast = size_t{64} << 10;
  const size_t room = std::max(kLeast, (layout.bytes + kLeast - 1) / kLeast * kLeast);
  if (absl::Status s = memory_.Reserve(room); !s.ok()) return s;
  const absl::StatusOr<std::byte*> block = blocks_.Next(room);
  if (!block.ok()) return block.status();
  WriteStep(plan, step.tokens, step.logit_rows, layout, *block);
  if (absl::Status s = blocks_.CopyToDevice(memory_.data(), layout.bytes); !s.ok()) return s;
  const auto* base = static_cast<const std::byte*>(memory_.data());
  Current current;
  current.inputs = &step;
  current.spans = batch.spans.data();
  current.plan = ViewOfStep(plan, layout, base);
  current.tokens = reinterpret_cast<const int32_t*>(base + layout.tokens);
  current.logit_rows = reinterpret_cast<const int64_t*>(base + layout.logit_rows);
  current_ = current;
  return absl::OkStatus();
}

absl::Status StepGraphs::RunRecorded(const StepInputs& step, const BatchView& batch, Body body) {
  if (graphs_epoch_ != device_->memory_epoch()) {
    graphs_.Clear();
    graphs_epoch_ = device_->memory_epoch();
  }
  auto* entry =
      graphs_.Use({step.key, step.state, batch.rows, static_cast<int64_t>(step.logit_rows.size())});
  if (entry->uses == 0 || entry->refused) return body(batch);
  if (entry->graph.get() == nullptr) {
    absl::StatusOr<StepGraph> graph = Record(batch, body);
    if (!graph.ok()) {
      if (absl::Status s = device_->Usable(); !s.ok()) return s;
      entry->refused = true;
      if (recording_error_.empty()) {
        recording_error_ = std::string(graph.status().message());
        std::fprintf(stderr, "cuda: steps are not recorded as graphs: %s\n",
                     recording_error_.c_str());
      }
      return body(batch);
    }
    entry->graph = *std::move(graph);
  }
  return device_->Check(cudaGraphLaunch(entry->graph.get(), device_->stream()), "cudaGraphLaunch");
}

absl::StatusOr<StepGraph> StepGraphs::Record(const BatchView& batch, Body body) {
  if (absl::Status s = device_->Check(
          cudaStreamBeginCapture(device_->stream(), cudaStreamCaptureModeThreadLocal),
          "cudaStreamBeginCapture");
      !s.ok()) {
    return s;
  }
  absl::Status recorded;
  {
    const RecordingScope scope(device_);
    recorded = body(batch);
  }
  cudaGraph_t graph = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(device_->stream(), &graph);
  absl::Status status = recorded.ok() ? device_->Check(ended, "cudaStreamEndCapture") : recorded;
  if (!recorded.ok()) cudaGetLastError();
  cudaGraphExec_t runnable = nullptr;
  if (status.ok()) {
    status = device_->Check(cudaGraphInstantiate(&runnable, graph, 0), "cudaGraphInstantiate");
  }
  if (graph != nullptr) cudaGraphDestroy(graph);
  if (!status.ok()) return status;
  return StepGraph(runnable);
}

absl::StatusOr<DevicePlan> StepGraphs::PlanOf(const BatchView& batch) {
  if (current_.has_value() && batch.spans.data() == current_->spans &&
      batch.rows == current_->plan.rows) {
    return current_->plan;
  }
  // The ops of a block come one after the other with the same batch.
  if (!device_->recording() && uploaded_plan_.rows == batch.rows &&
      uploaded_plan_.decode_rows == batch.decode_rows && SameSpans(uploaded_spans_, batch.spans)) {
    return uploaded_plan_;
  }
  uploaded_plan_ = DevicePlan();
  const BatchPlan plan = PlanBatch(batch);
  const std::array<absl::Span<const std::byte>, 3> parts = {
      AsBytes(absl::MakeConstSpan(plan.decode_slots)), AsBytes(absl::MakeConstSpan(plan.spans)),
      AsBytes(absl::MakeConstSpan(plan.chunks))};
  std::array<const void*, 3> addresses = {};
  if (absl::Status s = plan_uploads_.Put(parts, absl::MakeSpan(addresses)); !s.ok()) return s;
  DevicePlan view = ViewOfStep(plan, StepLayout(), nullptr);
  view.decode_slots = static_cast<const int32_t*>(addresses[0]);
  view.spans = static_cast<const SpanPlan*>(addresses[1]);
  view.chunks = static_cast<const ChunkPlan*>(addresses[2]);
  uploaded_spans_.assign(batch.spans.begin(), batch.spans.end());
  uploaded_plan_ = view;
  return view;
}

absl::StatusOr<StepGraphs::DeviceIds> StepGraphs::IdsOf(absl::Span<const int32_t> ids) {
  if (current_.has_value() && ids.data() == current_->inputs->tokens.data() &&
      ids.size() == current_->inputs->tokens.size()) {
    return DeviceIds{current_->tokens, current_->plan.rows};
  }
  const absl::Span<const std::byte> part = AsBytes(ids);
  const void* address = nullptr;
  if (absl::Status s = id_uploads_.Put(absl::MakeConstSpan(&part, 1), absl::MakeSpan(&address, 1));
      !s.ok()) {
    return s;
  }
  return DeviceIds{static_cast<const int32_t*>(address), static_cast<int64_t>(ids.size())};
}

absl::StatusOr<const int64_t*> StepGraphs::IndicesOf(absl::Span<const int64_t> indices) {
  if (current_.has_value() && indices.data() == current_->inputs->logit_rows.data() &&
      indices.size() == current_->inputs->logit_rows.size()) {
    return current_->logit_rows;
  }
  const absl::Span<const std::byte> part = AsBytes(indices);
  const void* address = nullptr;
  if (absl::Status s = id_uploads_.Put(absl::MakeConstSpan(&part, 1), absl::MakeSpan(&address, 1));
      !s.ok()) {
    return s;
  }
  return static_cast<const int64_t*>(address);
}

}  // namespace osdn::kernels::cuda
