#include "kernels/cuda/step_layout.h"

#include <algorithm>
#include <cstring>

namespace osdn::kernels::cuda {
namespace {

constexpr size_t kAlignment = 16;

size_t Place(size_t bytes, size_t* end) {
  const size_t at = *end;
  *end = (at + bytes + kAlignment - 1) / kAlignment * kAlignment;
  return at;
}

template <class T>
void Write(absl::Span<const T> values, size_t offset, std::byte* block) {
  if (!values.empty()) std::memcpy(block + offset, values.data(), values.size() * sizeof(T));
}

}  // namespace

StepLayout LayOutStep(const BatchPlan& plan, size_t logit_rows) {
  StepLayout layout;
  size_t end = 0;
  layout.tokens = Place(static_cast<size_t>(plan.rows) * sizeof(int32_t), &end);
  layout.logit_rows = Place(logit_rows * sizeof(int64_t), &end);
  layout.decode_slots = Place(plan.decode_slots.size() * sizeof(int32_t), &end);
  layout.spans = Place(plan.spans.size() * sizeof(SpanPlan), &end);
  layout.chunks = Place(plan.chunks.size() * sizeof(ChunkPlan), &end);
  layout.bytes = end;
  return layout;
}

int64_t PaddedRows(const BatchView& batch, int64_t max_rows) {
  if (batch.rows == 0 || batch.rows != batch.decode_rows) return batch.rows;
  return std::max(batch.rows, std::min(DecodeBucket(batch.rows), max_rows));
}

PaddedBatch PadDecodeBatch(const BatchView& batch, int64_t rows) {
  PaddedBatch padded;
  padded.spans.assign(batch.spans.begin(), batch.spans.end());
  padded.rows = batch.rows;
  padded.decode_rows = batch.decode_rows;
  if (batch.rows != batch.decode_rows) return padded;
  for (; padded.rows < rows; ++padded.rows) {
    padded.spans.push_back({padded.rows, 1, 0, -1});
    ++padded.decode_rows;
  }
  return padded;
}

void WriteStep(const BatchPlan& plan, absl::Span<const int32_t> tokens,
               absl::Span<const int64_t> logit_rows, const StepLayout& layout, std::byte* block) {
  std::memset(block, 0, layout.bytes);
  Write(tokens, layout.tokens, block);
  Write(logit_rows, layout.logit_rows, block);
  Write(absl::MakeConstSpan(plan.decode_slots), layout.decode_slots, block);
  Write(absl::MakeConstSpan(plan.spans), layout.spans, block);
  Write(absl::MakeConstSpan(plan.chunks), layout.chunks, block);
}

DevicePlan ViewOfStep(const BatchPlan& plan, const StepLayout& layout, const std::byte* block) {
  DevicePlan view;
  view.rows = plan.rows;
  view.decode_rows = static_cast<int32_t>(plan.decode_slots.size());
  view.num_spans = static_cast<int32_t>(plan.spans.size());
  view.num_chunks = static_cast<int32_t>(plan.chunks.size());
  for (const SpanPlan& span : plan.spans) view.max_chunks = std::max(view.max_chunks, span.chunks);
  view.decode_slots = reinterpret_cast<const int32_t*>(block + layout.decode_slots);
  view.spans = reinterpret_cast<const SpanPlan*>(block + layout.spans);
  view.chunks = reinterpret_cast<const ChunkPlan*>(block + layout.chunks);
  return view;
}

}  // namespace osdn::kernels::cuda
