#include "kernels/cpu/panels/packed_weight.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_format.h"
#include "kernels/cpu/elementwise.h"

namespace osdn::kernels::cpu {
namespace {

constexpr size_t kArenaBlock = size_t{64} << 20;
constexpr size_t kAlignment = 64;
// Words of a row that are gathered before they are transposed: a block of 64 rows fits the L1
// cache.
constexpr int64_t kWordChunk = 64;

// Bits 4i .. 4i + 3 are input i; see layout.h for what comes out.
uint32_t SpreadNibbles(uint32_t word) {
  uint32_t result = 0;
  for (int i = 0; i < 8; ++i) {
    result |= ((word >> (4 * i)) & 0xFU) << (i / 2 * 4 + i % 2 * 16);
  }
  return result;
}

// Words [first, first + count) of a row of `row_bytes` bytes; zeros past its end.
void GatherWords(const char* row, int64_t row_bytes, int64_t first, int64_t count, bool int4,
                 uint32_t* out) {
  const int64_t begin = first * kWordBytes;
  const int64_t bytes = std::min(count * kWordBytes, std::max<int64_t>(row_bytes - begin, 0));
  std::memcpy(out, row + begin, bytes);
  std::memset(reinterpret_cast<char*>(out) + bytes, 0, count * kWordBytes - bytes);
  if (int4) std::transform(out, out + count, out, SpreadNibbles);
}

}  // namespace

absl::StatusOr<std::shared_ptr<char>> WeightArena::Allocate(size_t bytes) {
  const size_t padded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (block_ == nullptr || block_->bytes() - used_ < padded) {
    absl::StatusOr<Buffer> block = AllocateZeroed(std::max(padded, kArenaBlock));
    if (!block.ok()) return block.status();
    block_ = std::make_shared<Buffer>(*std::move(block));
    used_ = 0;
  }
  std::shared_ptr<char> part(block_, static_cast<char*>(block_->data()) + used_);
  used_ += padded;
  return part;
}

PackedWeight::PackedWeight(const HostTensor& source, int64_t inputs)
    : LinearWeight(source.shape[0], source.shape[1], source.dtype),
      source_(source),
      inputs_(inputs),
      padded_outs_(RoundUp(source.shape[0], kOutBlock)) {}

absl::StatusOr<std::unique_ptr<PackedWeight>> PackedWeight::Pack(const HostTensor& weight,
                                                                 const Threads& threads,
                                                                 WeightArena* arena) {
  if (weight.shape.size() != 2 || weight.shape[0] < 1 || weight.shape[1] < 1) {
    return absl::InvalidArgumentError(
        absl::StrFormat("linear weight: %d dimensions and %d elements, wants a non-empty [out,in]",
                        weight.shape.size(), weight.elements()));
  }
  if (IsQuantized(weight.dtype) && weight.scales == nullptr) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "linear weight [%d,%d]: quantized, but without scales", weight.shape[0], weight.shape[1]));
  }
  std::unique_ptr<PackedWeight> packed(
      new PackedWeight(weight, PaddedInputs(weight.dtype, weight.shape[1])));
  if (absl::Status status = packed->Allocate(arena); !status.ok()) return status;
  threads.For(packed->panels(), weight.elements(),
              [&](int64_t panel, int /*thread*/) { packed->PackPanel(panel); });
  return packed;
}

absl::Status PackedWeight::Allocate(WeightArena* arena) {
  const int64_t word_bytes = inputs_ / InputsPerWord(dtype()) * padded_outs_ * kWordBytes;
  int64_t extra = 0;
  if (dtype() == DType::kI8) extra = padded_outs_ * int64_t{sizeof(float) + sizeof(int32_t)};
  if (dtype() == DType::kI4) {
    extra = inputs_ / kInt4Group * padded_outs_ * int64_t{sizeof(uint16_t)};
  }
  bytes_ = static_cast<size_t>(word_bytes + extra);
  absl::StatusOr<std::shared_ptr<char>> memory = arena->Allocate(bytes_);
  if (!memory.ok()) return memory.status();
  memory_ = *std::move(memory);
  char* behind = memory_.get() + word_bytes;
  words_ = reinterpret_cast<uint32_t*>(memory_.get());
  if (dtype() == DType::kI8) {
    scales_ = reinterpret_cast<float*>(behind);
    sums_ = reinterpret_cast<int32_t*>(scales_ + padded_outs_);
  }
  if (dtype() == DType::kI4) group_scales_ = reinterpret_cast<uint16_t*>(behind);
  return absl::OkStatus();
}

int64_t PackedWeight::Width(int64_t index) const {
  return std::min(kPanelOuts, padded_outs_ - index * kPanelOuts);
}

int64_t PackedWeight::panel_bytes(int64_t index) const {
  return inputs_ / InputsPerWord(dtype()) * Width(index) * kWordBytes;
}

Panel PackedWeight::panel(int64_t index) const {
  const int64_t first = index * kPanelOuts;
  Panel panel;
  panel.words = words_ + inputs_ / InputsPerWord(dtype()) * first;
  panel.inputs = inputs_;
  panel.width = Width(index);
  panel.outs = std::min(kPanelOuts, out_features() - first);
  if (dtype() == DType::kI8) {
    panel.scales = scales_ + first;
    panel.sums = sums_ + first;
  }
  if (dtype() == DType::kI4) panel.group_scales = group_scales_ + inputs_ / kInt4Group * first;
  return panel;
}

void PackedWeight::PackPanel(int64_t index) {
  alignas(64) uint32_t gathered[kPanelOuts * kWordChunk];
  const Panel target = panel(index);
  const int64_t row_bytes = RowBytes(dtype(), in_features());
  const char* source = static_cast<const char*>(source_.data) + index * kPanelOuts * row_bytes;
  const int64_t words = inputs_ / InputsPerWord(dtype());
  for (int64_t first = 0; first < words; first += kWordChunk) {
    const int64_t count = std::min(kWordChunk, words - first);
    for (int64_t o = 0; o < target.outs; ++o) {
      GatherWords(source + o * row_bytes, row_bytes, first, count, dtype() == DType::kI4,
                  gathered + o * kWordChunk);
    }
    auto* to = const_cast<uint32_t*>(target.words) + first * target.width;
    const int64_t run = RunWords(dtype());
    if (run == 1) {
      TransposeWords(gathered, target.outs, count, kWordChunk, to, target.width);
      continue;
    }
    for (int64_t word = 0; word < count; word += run) {
      for (int64_t o = 0; o < target.width; o += kOutBlock) {
        TransposeWords(gathered + o * kWordChunk + word, std::min(kOutBlock, target.outs - o), run,
                       kWordChunk, to + word * target.width + o * run, kOutBlock);
      }
    }
  }
  PackScales(index);
}

void PackedWeight::PackScales(int64_t index) {
  const int64_t first = index * kPanelOuts;
  const Panel target = panel(index);
  if (dtype() == DType::kI8) {
    const auto* q = static_cast<const int8_t*>(source_.data);
    for (int64_t o = first; o < first + target.outs; ++o) {
      scales_[o] = static_cast<const float*>(source_.scales)[o];
      const int8_t* row = q + o * in_features();
      sums_[o] = SumInt8(row, in_features());
    }
  }
  if (dtype() != DType::kI4) return;
  const int64_t groups = Int4Groups(in_features());
  auto* to = const_cast<uint16_t*>(target.group_scales);
  for (int64_t o = 0; o < target.outs; ++o) {
    const auto* from = static_cast<const uint16_t*>(source_.scales) + (first + o) * groups;
    for (int64_t g = 0; g < groups; ++g) to[g * target.width + o] = from[g];
  }
}

void PackedWeight::ReadRow(int64_t row, float* y) const {
  const int64_t in = in_features();
  const char* source = static_cast<const char*>(source_.data) + row * RowBytes(dtype(), in);
  switch (dtype()) {
    case DType::kF32:
      std::memcpy(y, source, in * sizeof(float));
      return;
    case DType::kBF16:
      return WidenBf16(reinterpret_cast<const uint16_t*>(source), in, y);
    case DType::kI8: {
      const auto* q = reinterpret_cast<const int8_t*>(source);
      const float scale = static_cast<const float*>(source_.scales)[row];
      for (int64_t i = 0; i < in; ++i) y[i] = scale * static_cast<float>(q[i]);
      return;
    }
    case DType::kI4: {
      const auto* scales = static_cast<const uint16_t*>(source_.scales) + row * Int4Groups(in);
      for (int64_t begin = 0; begin < in; begin += kInt4Group) {
        float scale = 0;
        WidenBf16(scales + begin / kInt4Group, 1, &scale);
        for (int64_t i = begin; i < std::min(begin + kInt4Group, in); ++i) {
          const int q = (static_cast<uint8_t>(source[i / 2]) >> (i % 2 * 4)) & 0xF;
          y[i] = scale * static_cast<float>(q - 8);
        }
      }
      return;
    }
  }
}

}  // namespace osdn::kernels::cpu
