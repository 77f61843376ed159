// Numbers too small to be normal count as zero while this lives, on this thread. The delta rule
// makes them wherever text repeats (its error shrinks geometrically), and a CPU takes a hundred
// cycles for each.
#ifndef OSDN_KERNELS_CPU_DENORMALS_H_
#define OSDN_KERNELS_CPU_DENORMALS_H_

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace osdn::kernels::cpu {

class FlushDenormals {
 public:
  FlushDenormals() : previous_(Read()) {
    if ((previous_ & kFlush) != kFlush) Write(previous_ | kFlush);
  }
  ~FlushDenormals() {
    if ((previous_ & kFlush) != kFlush) Write(previous_);
  }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
#if defined(__x86_64__)
  static constexpr uint64_t kFlush = 0x8040;  // MXCSR: results (FTZ) and operands (DAZ)
  static uint64_t Read() { return _mm_getcsr(); }
  static void Write(uint64_t value) { _mm_setcsr(static_cast<unsigned>(value)); }
#elif defined(__aarch64__)
  static constexpr uint64_t kFlush = uint64_t{1} << 24;  // FPCR.FZ
  static uint64_t Read() {
    uint64_t value;
    asm volatile("mrs %0, fpcr" : "=r"(value));
    return value;
  }
  static void Write(uint64_t value) { asm volatile("msr fpcr, %0" : : "r"(value)); }
#else
  static constexpr uint64_t kFlush = 0;
  static uint64_t Read() { return 0; }
  static void Write(uint64_t /*value*/) {}
#endif

  uint64_t previous_;
};

}  // namespace osdn::kernels::cpu

#endif  // OSDN_KERNELS_CPU_DENORMALS_H_
