// Whole steps: what they read from the host goes to the device in one copy, and steps of decode
// rows only are padded to a bucket of rows, recorded as a CUDA graph the second time their shape
// comes, and replayed from then on.
#ifndef OSDN_KERNELS_CUDA_STEP_GRAPHS_H_
#define OSDN_KERNELS_CUDA_STEP_GRAPHS_H_

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/backend.h"
#include "kernels/cuda/batch_plan.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/graph_cache.h"
#include "kernels/cuda/memory.h"
#include "kernels/cuda/step_layout.h"

namespace osdn::kernels::cuda {

// An instantiated graph; frees itself.
class StepGraph {
 public:
  StepGraph() = default;
  explicit StepGraph(cudaGraphExec_t graph) : graph_(graph) {}
  StepGraph(const StepGraph&) = delete;
  StepGraph& operator=(const StepGraph&) = delete;
  StepGraph(StepGraph&& other) noexcept : graph_(other.graph_) { other.graph_ = nullptr; }
  StepGraph& operator=(StepGraph&& other) noexcept {
    std::swap(graph_, other.graph_);
    return *this;
  }
  ~StepGraph() {
    if (graph_ != nullptr) cudaGraphExecDestroy(graph_);
  }

  cudaGraphExec_t get() const { return graph_; }

 private:
  cudaGraphExec_t graph_ = nullptr;
};

// Where ops find their batch, ids and indices on the device: those of the step that is running, or
// ones uploaded for the op alone.
class StepGraphs {
 public:
  explicit StepGraphs(Device* device);
  StepGraphs(const StepGraphs&) = delete;
  StepGraphs& operator=(const StepGraphs&) = delete;
  ~StepGraphs();

  absl::Status RunStep(const StepInputs& step,
                       absl::FunctionRef<absl::Status(const BatchView& batch)> body);

  // Steps may be padded to so many rows: the least that any layer runner has room for.
  void LimitRows(int64_t rows) { max_rows_ = std::min(max_rows_, rows); }
  // Forgets all recorded steps: memory or weights that they name are going away.
  void Clear();

  // For ops. Valid for what is enqueued before the next call of the same function.
  absl::StatusOr<DevicePlan> PlanOf(const BatchView& batch);
  struct DeviceIds {
    const int32_t* ids;
    int64_t count;  // with the step's padding
  };
  absl::StatusOr<DeviceIds> IdsOf(absl::Span<const int32_t> ids);
  absl::StatusOr<const int64_t*> IndicesOf(absl::Span<const int64_t> indices);

  // Why the first step that could not be recorded was not; empty when there was none.
  const std::string& recording_error() const { return recording_error_; }

 private:
  // The running step on the device.
  struct Current {
    const StepInputs* inputs;
    const SequenceSpan* spans;  // of the batch that the body was given
    DevicePlan plan;
    const int32_t* tokens;
    const int64_t* logit_rows;
  };
  using Body = absl::FunctionRef<absl::Status(const BatchView& batch)>;

  absl::Status Upload(const StepInputs& step, const PaddedBatch& batch);
  absl::StatusOr<StepGraph> Record(const BatchView& batch, Body body);
  absl::Status RunRecorded(const StepInputs& step, const BatchView& batch, Body body);

  Device* device_;
  PinnedBlocks blocks_;
  Scratch memory_;
  Uploads plan_uploads_;
  Uploads id_uploads_;
  // The batch whose plan was uploaded last, outside of a step.
  std::vector<SequenceSpan> uploaded_spans_;
  DevicePlan uploaded_plan_;
  GraphCache<StepGraph> graphs_;
  int64_t graphs_epoch_ = 0;  // device_->memory_epoch() that the graphs belong to
  int64_t max_rows_ = std::numeric_limits<int64_t>::max();
  std::optional<Current> current_;
  std::string recording_error_;
};

}  // namespace osdn::kernels::cuda

#endif  // OSDN_KERNELS_CUDA_STEP_GRAPHS_H_
