#include "kernels/cpu/mixer.h"

#include "kernels/cpu/mixer_chunk.h"
#include "kernels/cpu/mixer_recurrent.h"
#include "kernels/cpu/pieces.h"

namespace osdn::kernels::cpu {
namespace {

MixerHead HeadOfSpan(const MixerArgs& args, const SequenceSpan& span, int64_t head) {
  MixerHead result;
  result.tokens = span.length;
  result.key_dim = args.key_dim;
  result.value_dim = args.value_dim;
  result.key_stride = args.heads * args.key_dim;
  result.value_stride = args.heads * args.value_dim;
  result.gate_stride = args.heads;
  const int64_t key_offset = span.row * result.key_stride + head * args.key_dim;
  const int64_t value_offset = span.row * result.value_stride + head * args.value_dim;
  const int64_t gate_offset = span.row * args.heads + head;
  result.q = args.q + key_offset;
  result.k = args.k + key_offset;
  result.v = args.v + value_offset;
  result.beta = args.beta + gate_offset;
  if (args.log_alpha != nullptr) result.log_alpha = args.log_alpha + gate_offset;
  result.o = args.o + value_offset;
  result.s = args.s.at(span.slot) + head * args.value_dim * args.key_dim;
  if (args.precond.enabled) result.d = args.d.at(span.slot) + head * args.key_dim;
  return result;
}

// S is transposed into scratch once for a run of chunks.
void MixSpan(const MixerHead& head, const SequenceSpan& span, const PreconditionerParams& params,
             Phase1Form form, const MixerScratch& scratch) {
  bool in_scratch = false;
  ForEachPiece(span, [&](const Piece& piece) {
    const MixerHead tokens = head.Slice(piece.offset, piece.length);
    const bool chunk = piece.length >= kMinChunkTokens;
    if (chunk != in_scratch) {
      chunk ? LoadState(head, scratch) : StoreState(head, scratch);
      in_scratch = chunk;
    }
    if (chunk) {
      MixChunk(tokens, params, form, scratch);
    } else {
      MixRecurrent(tokens, params, scratch);
    }
  });
  if (in_scratch) StoreState(head, scratch);
}

}  // namespace

absl::Status Mix(const MixerArgs& args, Phase1Form form, const Threads& threads,
                 ThreadScratch& scratch) {
  const int64_t floats = MixerScratch::Floats(args.key_dim, args.value_dim);
  if (absl::Status status = scratch.Reserve(floats); !status.ok()) return status;
  const auto spans = static_cast<int64_t>(args.batch.spans.size());
  const int64_t work = 6 * args.batch.rows * args.heads * args.key_dim * args.value_dim;
  threads.For(spans * args.heads, work, [&](int64_t task, int thread) {
    const SequenceSpan& span = args.batch.spans[task / args.heads];
    const MixerScratch working(scratch.at(thread), args.key_dim, args.value_dim);
    MixSpan(HeadOfSpan(args, span, task % args.heads), span, args.precond, form, working);
  });
  return absl::OkStatus();
}

}  // namespace osdn::kernels::cpu
