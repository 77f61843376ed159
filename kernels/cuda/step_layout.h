// What a step sends to the device, in one block: ids, rows of logits, and the batch's plan. Pure
// logic: tested without a GPU.
#ifndef OSDN_KERNELS_CUDA_STEP_LAYOUT_H_
#define OSDN_KERNELS_CUDA_STEP_LAYOUT_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/cuda/batch_plan.h"
#include "kernels/include/tensor.h"

namespace osdn::kernels::cuda {

// Where each array lies in the block. The same numbers of elements give the same places, so that
// steps of one shape can run one recorded graph.
struct StepLayout {
  size_t tokens = 0;  // offsets in bytes
  size_t logit_rows = 0;
  size_t decode_slots = 0;
  size_t spans = 0;
  size_t chunks = 0;
  size_t bytes = 0;
};

StepLayout LayOutStep(const BatchPlan& plan, size_t logit_rows);

// A batch of decode rows only, lengthened to `rows` with rows that touch no slot (slot -1); any
// other batch as it is.
struct PaddedBatch {
  std::vector<SequenceSpan> spans;
  int64_t rows = 0;
  int64_t decode_rows = 0;

  BatchView view() const { return {rows, decode_rows, spans}; }
};
PaddedBatch PadDecodeBatch(const BatchView& batch, int64_t rows);

// Rows that a step of `batch` runs: its bucket's, at most `max_rows`, for decode rows only; its own
// otherwise.
int64_t PaddedRows(const BatchView& batch, int64_t max_rows);

// Writes the block. Tokens of padding rows are 0.
void WriteStep(const BatchPlan& plan, absl::Span<const int32_t> tokens,
               absl::Span<const int64_t> logit_rows, const StepLayout& layout, std::byte* block);

// The plan's arrays in the block at `block` (device memory).
DevicePlan ViewOfStep(const BatchPlan& plan, const StepLayout& layout, const std::byte* block);

}  // namespace osdn::kernels::cuda

#endif  // OSDN_KERNELS_CUDA_STEP_LAYOUT_H_
