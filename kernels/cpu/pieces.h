// Cutting a span at the multiples of kChunk in absolute position.
#ifndef OSDN_KERNELS_CPU_PIECES_H_
#define OSDN_KERNELS_CPU_PIECES_H_

#include <cstdint>

#include "kernels/cpu/sizes.h"
#include "kernels/include/tensor.h"

namespace osdn::kernels::cpu {

struct Piece {
  int64_t offset = 0;  // first token, counted from the span's first
  int64_t length = 0;  // 1 .. kChunk tokens
};

// Calls visit(Piece) in order.
template <class Visit>
void ForEachPiece(const SequenceSpan& span, const Visit& visit) {
  int64_t offset = 0;
  while (offset < span.length) {
    const int64_t to_border = kChunk - (span.position + offset) % kChunk;
    const Piece piece{offset, Min(to_border, span.length - offset)};
    visit(piece);
    offset += piece.length;
  }
}

}  // namespace osdn::kernels::cpu

#endif  // OSDN_KERNELS_CPU_PIECES_H_
