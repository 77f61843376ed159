#include "kernels/cuda/memory.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace osdn::kernels::cuda {
namespace {

// Of a piece of a large copy: long enough for full PCIe speed.
constexpr size_t kPiece = size_t{4} << 20;

constexpr size_t RoundUp(size_t value, size_t step) { return (value + step - 1) / step * step; }

// Of a pinned block for a piece: powers of two, so that blocks seldom grow.
size_t BlockBytes(size_t piece) { return std::bit_ceil(std::max(piece, size_t{64} << 10)); }

void FreeDevice(void* device, void* data) {
  static_cast<Device*>(device)->MemoryWentAway();  // recorded steps may name it
  cudaFree(data);
  cudaGetLastError();  // of a device that failed before: nobody is left to be told
}

}  // namespace

absl::StatusOr<Buffer> AllocateZeroed(Device* device, size_t bytes) {
  if (absl::Status s = device->Usable(); !s.ok()) return s;
  if (absl::Status s = device->NotRecording("Allocate"); !s.ok()) return s;
  if (bytes == 0) return Buffer();
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, bytes);
  if (error == cudaErrorMemoryAllocation || error == cudaErrorInvalidValue) {
    cudaGetLastError();
    size_t free = 0;
    size_t total = 0;
    if (absl::Status s = device->Check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo"); !s.ok()) {
      return s;
    }
    return absl::ResourceExhaustedError(absl::StrCat(
        "CUDA memory: an allocation of ", bytes, " bytes (", bytes >> 20,
        " MiB) failed: ", free >> 20, " MiB of ", total >> 20,
        " MiB are free; lower the number of state slots, the ", "batch limits or the cache sizes"));
  }
  if (absl::Status s = device->Check(error, "cudaMalloc"); !s.ok()) return s;
  Buffer buffer(data, bytes, &FreeDevice, device);
  if (absl::Status s =
          device->Check(cudaMemsetAsync(data, 0, bytes, device->stream()), "cudaMemsetAsync");
      !s.ok()) {
    return s;
  }
  return buffer;
}

PinnedBlocks::PinnedBlocks(Device* device, int count) : device_(device), blocks_(count) {}

PinnedBlocks::~PinnedBlocks() {
  for (Block& block : blocks_) {
    if (block.in_flight) cudaEventSynchronize(block.done);
    if (block.done != nullptr) cudaEventDestroy(block.done);
    if (block.data != nullptr) cudaFreeHost(block.data);
  }
  cudaGetLastError();
}

absl::Status PinnedBlocks::WaitFor(Block* block) {
  if (!block->in_flight) return device_->Usable();
  block->in_flight = false;
  return device_->Check(cudaEventSynchronize(block->done), "copy");
}

absl::StatusOr<std::byte*> PinnedBlocks::Next(size_t bytes) {
  if (absl::Status s = device_->NotRecording("a copy from or to the host"); !s.ok()) return s;
  current_ = (current_ + 1) % blocks_.size();
  Block& block = blocks_[current_];
  if (absl::Status s = WaitFor(&block); !s.ok()) return s;
  if (block.done == nullptr) {
    if (absl::Status s = device_->Check(
            cudaEventCreateWithFlags(&block.done, cudaEventDisableTiming), "cudaEventCreate");
        !s.ok()) {
      return s;
    }
  }
  if (block.bytes < bytes) {
    if (block.data != nullptr) cudaFreeHost(block.data);
    block.data = nullptr;
    block.bytes = 0;
    void* data = nullptr;
    if (absl::Status s =
            device_->Check(cudaHostAlloc(&data, bytes, cudaHostAllocDefault), "cudaHostAlloc");
        !s.ok()) {
      return s;
    }
    block.data = static_cast<std::byte*>(data);
    block.bytes = bytes;
  }
  return block.data;
}

absl::Status PinnedBlocks::Record(Block* block) {
  absl::Status status =
      device_->Check(cudaEventRecord(block->done, device_->stream()), "cudaEventRecord");
  block->in_flight = status.ok();
  return status;
}

absl::Status PinnedBlocks::CopyToDevice(void* dst, size_t bytes) {
  Block& block = blocks_[current_];
  if (absl::Status s = device_->Check(
          cudaMemcpyAsync(dst, block.data, bytes, cudaMemcpyHostToDevice, device_->stream()),
          "cudaMemcpyAsync to the device");
      !s.ok()) {
    return s;
  }
  return Record(&block);
}

absl::Status PinnedBlocks::CopyFromDevice(const void* src, size_t bytes) {
  Block& block = blocks_[current_];
  if (absl::Status s = device_->Check(
          cudaMemcpyAsync(block.data, src, bytes, cudaMemcpyDeviceToHost, device_->stream()),
          "cudaMemcpyAsync to the host");
      !s.ok()) {
    return s;
  }
  return Record(&block);
}

absl::StatusOr<const std::byte*> PinnedBlocks::Wait(int back) {
  Block& block = blocks_[(current_ + blocks_.size() - back) % blocks_.size()];
  if (absl::Status s = WaitFor(&block); !s.ok()) return s;
  return block.data;
}

absl::Status HostCopies::ToDevice(void* dst, const void* src, size_t bytes) {
  auto* to = static_cast<std::byte*>(dst);
  const auto* from = static_cast<const std::byte*>(src);
  while (bytes > 0) {
    const size_t piece = std::min(bytes, kPiece);
    const absl::StatusOr<std::byte*> block = blocks_.Next(BlockBytes(piece));
    if (!block.ok()) return block.status();
    std::memcpy(*block, from, piece);
    if (absl::Status s = blocks_.CopyToDevice(to, piece); !s.ok()) return s;
    to += piece;
    from += piece;
    bytes -= piece;
  }
  return absl::OkStatus();
}

absl::Status HostCopies::RowsToDevice(void* dst, size_t dst_stride, const void* src,
                                      size_t row_bytes, int64_t rows) {
  if (dst_stride == row_bytes) return ToDevice(dst, src, row_bytes * static_cast<size_t>(rows));
  auto* to = static_cast<std::byte*>(dst);
  const auto* from = static_cast<const std::byte*>(src);
  const auto rows_a_piece = static_cast<int64_t>(std::max<size_t>(kPiece / dst_stride, 1));
  for (int64_t first = 0; first < rows; first += rows_a_piece) {
    const int64_t count = std::min(rows - first, rows_a_piece);
    const size_t piece = dst_stride * static_cast<size_t>(count);
    const absl::StatusOr<std::byte*> block = blocks_.Next(std::max(piece, kPiece));
    if (!block.ok()) return block.status();
    std::memset(*block, 0, piece);
    for (int64_t row = 0; row < count; ++row) {
      std::memcpy(*block + dst_stride * static_cast<size_t>(row), from, row_bytes);
      from += row_bytes;
    }
    if (absl::Status s = blocks_.CopyToDevice(to, piece); !s.ok()) return s;
    to += piece;
  }
  return absl::OkStatus();
}

absl::Status HostCopies::ToHost(void* dst, const void* src, size_t bytes) {
  auto* to = static_cast<std::byte*>(dst);
  const auto* from = static_cast<const std::byte*>(src);
  // One piece is on its way while the one before it is copied out.
  size_t asked = 0;
  size_t taken = 0;
  size_t last_piece = 0;
  while (taken < bytes) {
    const size_t piece = std::min(bytes - asked, kPiece);
    if (piece > 0) {
      const absl::StatusOr<std::byte*> block = blocks_.Next(BlockBytes(piece));
      if (!block.ok()) return block.status();
      if (absl::Status s = blocks_.CopyFromDevice(from + asked, piece); !s.ok()) return s;
      asked += piece;
      if (last_piece == 0) {  // the first: nothing to copy out yet, unless it is all
        last_piece = piece;
        if (asked < bytes) continue;
      }
    }
    const bool more_in_flight = asked - taken > last_piece;
    const absl::StatusOr<const std::byte*> block = blocks_.Wait(more_in_flight ? 1 : 0);
    if (!block.ok()) return block.status();
    std::memcpy(to + taken, *block, last_piece);
    taken += last_piece;
    last_piece = asked - taken;
  }
  return absl::OkStatus();
}

absl::Status Scratch::Reserve(size_t bytes) {
  if (bytes <= buffer_.bytes()) return absl::OkStatus();
  if (absl::Status s = device_->NotRecording("growing scratch"); !s.ok()) return s;
  buffer_ = Buffer();  // first: both at once may not fit
  absl::StatusOr<Buffer> grown = AllocateZeroed(device_, bytes);
  if (!grown.ok()) return grown.status();
  buffer_ = *std::move(grown);
  return absl::OkStatus();
}

absl::Status Uploads::Put(absl::Span<const absl::Span<const std::byte>> parts,
                          absl::Span<const void*> addresses) {
  size_t total = 0;
  for (const absl::Span<const std::byte>& part : parts) total += RoundUp(part.size(), kAlignment);
  if (total == 0) total = kAlignment;
  const size_t reserved = std::max(RoundUp(total, 4096), size_t{64} << 10);
  if (absl::Status s = memory_.Reserve(reserved); !s.ok()) return s;
  const absl::StatusOr<std::byte*> block = blocks_.Next(reserved);
  if (!block.ok()) return block.status();
  size_t offset = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    if (!parts[i].empty()) std::memcpy(*block + offset, parts[i].data(), parts[i].size());
    addresses[i] = static_cast<const std::byte*>(memory_.data()) + offset;
    offset += RoundUp(parts[i].size(), kAlignment);
  }
  return blocks_.CopyToDevice(memory_.data(), total);
}

}  // namespace osdn::kernels::cuda
