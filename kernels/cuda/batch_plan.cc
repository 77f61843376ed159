#include "kernels/cuda/batch_plan.h"

#include <algorithm>

namespace osdn::kernels::cuda {

BatchPlan PlanBatch(const BatchView& batch) {
  BatchPlan plan;
  plan.rows = static_cast<int32_t>(batch.rows);
  const auto decode_rows = static_cast<size_t>(batch.decode_rows);
  plan.decode_slots.reserve(decode_rows);
  for (const SequenceSpan& span : batch.spans.first(decode_rows)) {
    plan.decode_slots.push_back(span.slot);
  }
  for (const SequenceSpan& span : batch.spans.subspan(decode_rows)) {
    SpanPlan planned;
    planned.row = static_cast<int32_t>(span.row);
    planned.length = static_cast<int32_t>(span.length);
    planned.slot = span.slot;
    planned.first_chunk = static_cast<int32_t>(plan.chunks.size());
    for (int64_t done = 0; done < span.length;) {
      ChunkPlan chunk;
      const int64_t rows = std::min(span.length - done, kChunk - (span.position + done) % kChunk);
      chunk.row = static_cast<int32_t>(span.row + done);
      chunk.rows = static_cast<int32_t>(rows);
      chunk.span = static_cast<int32_t>(plan.spans.size());
      plan.chunks.push_back(chunk);
      done += rows;
    }
    planned.chunks = static_cast<int32_t>(plan.chunks.size()) - planned.first_chunk;
    plan.spans.push_back(planned);
  }
  return plan;
}

int64_t DecodeBucket(int64_t rows) {
  const auto round_up = [rows](int64_t step) { return (rows + step - 1) / step * step; };
  if (rows <= 2) return rows;
  if (rows <= 4) return 4;
  if (rows <= 64) return round_up(8);
  if (rows <= 128) return round_up(16);
  if (rows <= 256) return round_up(32);
  return round_up(64);
}

}  // namespace osdn::kernels::cuda
