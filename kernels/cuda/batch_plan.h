// A step's batch as the kernels want it: flat arrays, made on the host from a BatchView, copied to
// the device once a step. Pure logic: tested without a GPU.
#ifndef OSDN_KERNELS_CUDA_BATCH_PLAN_H_
#define OSDN_KERNELS_CUDA_BATCH_PLAN_H_

#include <cstdint>
#include <vector>

#include "kernels/include/tensor.h"

namespace osdn::kernels::cuda {

// A prefill span. Its chunks lie between absolute multiples of kChunk; the first and the last may
// be shorter.
struct SpanPlan {
  int32_t row = 0;          // first row in the packed activations
  int32_t length = 0;       // tokens
  int32_t slot = 0;         // of the state
  int32_t first_chunk = 0;  // in BatchPlan::chunks
  int32_t chunks = 0;
};

// A piece of a span, at most kChunk rows.
struct ChunkPlan {
  int32_t row = 0;   // first row
  int32_t rows = 0;  // 1 to kChunk
  int32_t span = 0;  // in BatchPlan::spans
};

struct BatchPlan {
  int32_t rows = 0;
  // Slot of each decode row; -1: the row is padding and touches no state.
  std::vector<int32_t> decode_slots;
  std::vector<SpanPlan> spans;    // prefill only
  std::vector<ChunkPlan> chunks;  // of all spans, span by span
};

BatchPlan PlanBatch(const BatchView& batch);

// The plan's arrays on the device.
struct DevicePlan {
  int32_t rows = 0;
  int32_t decode_rows = 0;
  int32_t num_spans = 0;
  int32_t num_chunks = 0;
  int32_t max_chunks = 0;  // of one span
  const int32_t* decode_slots = nullptr;
  const SpanPlan* spans = nullptr;
  const ChunkPlan* chunks = nullptr;
};

// Decode batches are padded to one of these numbers of rows, so that few graphs serve all of them:
// 1, 2, 4, 8, then multiples of 8 to 64, of 16 to 128, of 32 to 256, of 64 beyond.
int64_t DecodeBucket(int64_t rows);

}  // namespace osdn::kernels::cuda

#endif  // OSDN_KERNELS_CUDA_BATCH_PLAN_H_
