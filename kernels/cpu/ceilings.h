// What this machine can do at most: the figures that measurements of the cpu backend are put
// beside. Measured in the same run as the kernels, because shared machines drift.
#ifndef OSDN_KERNELS_CPU_CEILINGS_H_
#define OSDN_KERNELS_CPU_CEILINGS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/include/tensor.h"

namespace osdn::kernels::cpu {

// Used by one thread, which must not be inside a parallel region; its own threads come from OpenMP,
// as oneDNN's do. Between a measurement and other work lie a few milliseconds of sleep, so that
// neither this team nor the backend's still looks for work while the other is measured.
class Ceilings {
 public:
  struct Options {
    int threads = 0;  // 0: one a physical core this process may use
    // Of the buffer that is read. Should be far larger than the last-level cache, or at least as
    // large as the weights that are compared with it.
    size_t buffer_bytes = size_t{1} << 30;
    // Of the square products to try; where the best lies depends on caches and instructions.
    std::vector<int64_t> gemm_sizes = {1024, 2048, 3072};
  };

  // RESOURCE_EXHAUSTED when the buffer does not fit.
  static absl::StatusOr<std::unique_ptr<Ceilings>> Create(const Options& options);
  ~Ceilings();

  // Bytes a second of all threads reading the buffer, which is in huge pages where allowed, a
  // sequential stream each; best of a few passes with and without prefetching by software.
  double ReadBandwidth();
  // The same of changing the buffer in place, each byte counted as read and as written.
  double UpdateBandwidth();
  // Operations (two a multiply-add) a second of oneDNN on a large square product: float32, bf16, or
  // u8 x s8 for kI8. The first call for a type tries several sizes, and later ones repeat the best
  // of them. UNIMPLEMENTED when oneDNN has no such product here.
  absl::StatusOr<double> GemmPeak(DType dtype);

  int threads() const { return threads_; }
  size_t buffer_bytes() const { return buffer_.bytes(); }

 private:
  struct Gemm;

  Ceilings(int threads, std::vector<int64_t> gemm_sizes, Buffer buffer);

  int threads_;
  std::vector<int64_t> gemm_sizes_;
  Buffer buffer_;
  std::unique_ptr<Gemm> gemm_;
};

namespace internal {

// Sum of `count` words, read with the widest vectors; a multiple of 1024, aligned to 64 bytes.
// `ahead` words further on are prefetched; 0 leaves that to the hardware.
uint64_t SumWords(const uint64_t* words, int64_t count, int64_t ahead);

}  // namespace internal
}  // namespace osdn::kernels::cpu

#endif  // OSDN_KERNELS_CPU_CEILINGS_H_
