// The machine operations that the mixer's kernels are written in, for two compilers: nvcc, where
// each is an instruction or two, and g++, where kernels/cuda/emulation runs the threads of a block
// one by one. So the same kernel source is tested for its numbers on machines without a GPU.
//
// Kernels are functions OSDN_DEVICE void Body(const Args&, unsigned char* shared) of one block;
// warps have 32 lanes, and every collective below is called by all lanes of a warp.
#ifndef OSDN_KERNELS_CUDA_PRIMITIVES_CUH_
#define OSDN_KERNELS_CUDA_PRIMITIVES_CUH_

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#define OSDN_DEVICE __device__ __forceinline__
#define OSDN_UNROLL _Pragma("unroll")
#else
#include <cmath>

#include "kernels/cuda/emulation/emulator.h"
#define OSDN_DEVICE inline
#define OSDN_UNROLL
#endif

namespace osdn::kernels::cuda {

// Storage of a bfloat16.
struct Bf16 {
  uint16_t bits;
};

constexpr int kWarp = 32;

#ifdef __CUDACC__

OSDN_DEVICE int ThreadIndex() { return static_cast<int>(threadIdx.x); }
OSDN_DEVICE int BlockIndexX() { return static_cast<int>(blockIdx.x); }
OSDN_DEVICE int BlockIndexY() { return static_cast<int>(blockIdx.y); }
OSDN_DEVICE int BlockIndexZ() { return static_cast<int>(blockIdx.z); }
OSDN_DEVICE void SyncThreads() { __syncthreads(); }
OSDN_DEVICE bool SyncThreadsOr(bool value) { return __syncthreads_or(value) != 0; }
OSDN_DEVICE void SyncWarp() { __syncwarp(); }
OSDN_DEVICE float ShuffleXor(float value, int mask) {
  return __shfl_xor_sync(0xFFFFFFFFU, value, mask);
}
OSDN_DEVICE float ShuffleFrom(float value, int lane) {
  return __shfl_sync(0xFFFFFFFFU, value, lane);
}
OSDN_DEVICE float ShuffleUp(float value, int delta) {
  return __shfl_up_sync(0xFFFFFFFFU, value, delta);
}

// D += A B of bf16 with float32 accumulation: A [16, 16] row-major, B [16, 8] column-major.
// Of lane l, with g = l / 4 and p = 2 (l % 4): a = {A[g][p..p+1], A[g+8][p..], A[g][p+8..],
// A[g+8][p+8..]}, b = {B[p..p+1][g], B[p+8..][g]}, d = {D[g][p], D[g][p+1], D[g+8][p],
// D[g+8][p+1]}.
OSDN_DEVICE void Mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

OSDN_DEVICE uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Four 8x8 matrices of 16-bit elements; lane 8 i + r gives the address of row r of matrix i (16
// bytes, aligned). Lane l gets elements [l / 4][2 (l % 4)..] of each; transposed: [2 (l % 4)..][l /
// 4].
OSDN_DEVICE void LoadMatrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(row)));
}
OSDN_DEVICE void LoadMatricesTransposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(row)));
}
// Transposes an 8x8 matrix held by the warp as LoadMatrices gives it.
OSDN_DEVICE uint32_t TransposeMatrix(uint32_t value) {
  uint32_t result;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n" : "=r"(result) : "r"(value));
  return result;
}

// 16 bytes from device memory to shared memory, asynchronously; zeros when not `valid`, and then
// `global` is not read.
OSDN_DEVICE void CopyAsync16(void* shared, const void* global, bool valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(SharedAddress(shared)),
               "l"(global), "r"(bytes)
               : "memory");
}
OSDN_DEVICE void CopyAsyncCommit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Waits until at most `kPending` of the thread's committed groups are under way.
template <int kPending>
OSDN_DEVICE void CopyAsyncWait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

OSDN_DEVICE float BitsToFloat(uint32_t bits) { return __uint_as_float(bits); }
OSDN_DEVICE uint32_t FloatToBits(float value) { return __float_as_uint(value); }
// Two bfloat16, rounded to nearest even, the first in the low half.
OSDN_DEVICE uint32_t PackBf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &pair, sizeof(bits));
  return bits;
}
OSDN_DEVICE float Exp(float x) { return expf(x); }
// To about 2 units in the last place of e^x's argument, a tenth of the instructions.
OSDN_DEVICE float FastExp(float x) { return __expf(x); }
OSDN_DEVICE float FastDivide(float a, float b) { return __fdividef(a, b); }
OSDN_DEVICE float Log1p(float x) { return log1pf(x); }
OSDN_DEVICE float RsqrtExact(float x) { return 1.0F / sqrtf(x); }
OSDN_DEVICE float Max(float a, float b) { return fmaxf(a, b); }
OSDN_DEVICE float Min(float a, float b) { return fminf(a, b); }

#else

OSDN_DEVICE int ThreadIndex() { return emulation::Self().thread; }
OSDN_DEVICE int BlockIndexX() { return emulation::Self().block[0]; }
OSDN_DEVICE int BlockIndexY() { return emulation::Self().block[1]; }
OSDN_DEVICE int BlockIndexZ() { return emulation::Self().block[2]; }
OSDN_DEVICE void SyncThreads() { emulation::SyncThreads(); }
OSDN_DEVICE bool SyncThreadsOr(bool value) { return emulation::SyncThreadsOr(value); }
OSDN_DEVICE void SyncWarp() { emulation::SyncWarp(); }

OSDN_DEVICE float BitsToFloat(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
OSDN_DEVICE uint32_t FloatToBits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
OSDN_DEVICE float ShuffleXor(float value, int mask) {
  return emulation::WarpExchange(
      value, [mask](const float* lanes, int lane) { return lanes[lane ^ mask]; });
}
OSDN_DEVICE float ShuffleFrom(float value, int source) {
  return emulation::WarpExchange(value,
                                 [source](const float* lanes, int) { return lanes[source]; });
}
OSDN_DEVICE float ShuffleUp(float value, int delta) {
  return emulation::WarpExchange(value, [delta](const float* lanes, int lane) {
    return lanes[lane >= delta ? lane - delta : lane];
  });
}
OSDN_DEVICE float Half(uint32_t pair, int which) {
  return BitsToFloat(which == 0 ? pair << 16 : pair & 0xFFFF0000U);
}
OSDN_DEVICE void Mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Operands {
    uint32_t a[4], b[2];
  };
  struct Result {
    float d[4];
  };
  const Operands own = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
  const Result sums = emulation::WarpExchange(own, [](const Operands* lanes, int lane) {
    Result result = {};
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i / 2);
      const int column = 2 * (lane % 4) + i % 2;
      for (int k = 0; k < 16; ++k) {
        const Operands& left = lanes[(row % 8) * 4 + (k % 8) / 2];
        const Operands& right = lanes[column * 4 + (k % 8) / 2];
        result.d[i] += Half(left.a[row / 8 + 2 * (k / 8)], k % 2) * Half(right.b[k / 8], k % 2);
      }
    }
    return result;
  });
  for (int i = 0; i < 4; ++i) d[i] += sums.d[i];
}
OSDN_DEVICE uint32_t MatrixElements(const void* const* rows, int matrix, int lane,
                                    bool transposed) {
  const auto element = [&](int r, int c) {
    uint16_t bits;
    std::memcpy(&bits, static_cast<const unsigned char*>(rows[8 * matrix + r]) + 2 * c, 2);
    return static_cast<uint32_t>(bits);
  };
  const int g = lane / 4;
  const int p = 2 * (lane % 4);
  return transposed ? element(p, g) | element(p + 1, g) << 16
                    : element(g, p) | element(g, p + 1) << 16;
}
struct MatrixRegisters {
  uint32_t r[4];
};
OSDN_DEVICE void LoadMatrices(uint32_t (&r)[4], const void* row, bool transposed = false) {
  const auto loaded = emulation::WarpExchange(row, [transposed](const void* const* rows, int lane) {
    MatrixRegisters result;
    for (int i = 0; i < 4; ++i) result.r[i] = MatrixElements(rows, i, lane, transposed);
    return result;
  });
  for (int i = 0; i < 4; ++i) r[i] = loaded.r[i];
}
OSDN_DEVICE void LoadMatricesTransposed(uint32_t (&r)[4], const void* row) {
  LoadMatrices(r, row, true);
}
OSDN_DEVICE uint32_t TransposeMatrix(uint32_t value) {
  return emulation::WarpExchange(value, [](const uint32_t* lanes, int lane) {
    const auto element = [&](int r, int c) {
      return (lanes[r * 4 + c / 2] >> (16 * (c % 2))) & 0xFFFFU;
    };
    const int p = 2 * (lane % 4);
    return element(p, lane / 4) | element(p + 1, lane / 4) << 16;
  });
}
OSDN_DEVICE void CopyAsync16(void* shared, const void* global, bool valid) {
  emulation::CopyAsync(shared, global, valid);
}
OSDN_DEVICE void CopyAsyncCommit() { emulation::CopyAsyncCommit(); }
template <int kPending>
OSDN_DEVICE void CopyAsyncWait() {
  emulation::CopyAsyncWait(kPending);
}
OSDN_DEVICE uint32_t RoundBf16(float value) {
  const uint32_t bits = FloatToBits(value);
  if (value != value) return 0x7FFFU;
  return (bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16;
}
OSDN_DEVICE uint32_t PackBf16(float low, float high) {
  return RoundBf16(low) | RoundBf16(high) << 16;
}
OSDN_DEVICE float Exp(float x) { return std::exp(x); }
OSDN_DEVICE float FastExp(float x) { return std::exp(x); }
OSDN_DEVICE float FastDivide(float a, float b) { return a / b; }
OSDN_DEVICE float Log1p(float x) { return std::log1p(x); }
OSDN_DEVICE float RsqrtExact(float x) { return 1.0F / std::sqrt(x); }
OSDN_DEVICE float Max(float a, float b) { return std::fmax(a, b); }
OSDN_DEVICE float Min(float a, float b) { return std::fmin(a, b); }

#endif

OSDN_DEVICE float LowBf16(uint32_t pair) { return BitsToFloat(pair << 16); }
OSDN_DEVICE float HighBf16(uint32_t pair) { return BitsToFloat(pair & 0xFFFF0000U); }
OSDN_DEVICE int Lane() { return ThreadIndex() % kWarp; }
OSDN_DEVICE int Warp() { return ThreadIndex() / kWarp; }

OSDN_DEVICE float Load(const float* p) { return *p; }
OSDN_DEVICE float Load(const Bf16* p) { return BitsToFloat(static_cast<uint32_t>(p->bits) << 16); }
OSDN_DEVICE void Store(float* p, float value) { *p = value; }
OSDN_DEVICE void Store(Bf16* p, float value) {
  p->bits = static_cast<uint16_t>(PackBf16(value, 0.0F));
}

// N neighbouring elements, read at once.
template <typename T, int N>
struct alignas(sizeof(T) * N <= 16 ? sizeof(T) * N : 16) Pack {
  T values[N];
};

template <typename T, int N>
OSDN_DEVICE void LoadPack(const T* from, float (&to)[N]) {
  const auto pack = *reinterpret_cast<const Pack<T, N>*>(from);
  OSDN_UNROLL
  for (int i = 0; i < N; ++i) to[i] = Load(&pack.values[i]);
}

template <typename T, int N>
OSDN_DEVICE void StorePack(const float (&from)[N], T* to) {
  Pack<T, N> pack;
  OSDN_UNROLL
  for (int i = 0; i < N; ++i) Store(&pack.values[i], from[i]);
  *reinterpret_cast<Pack<T, N>*>(to) = pack;
}

OSDN_DEVICE float Sigmoid(float x) { return 1.0F / (1.0F + Exp(-x)); }
// The divisor is kept in the range that the fast division has.
OSDN_DEVICE float Silu(float x) { return FastDivide(x, 1.0F + FastExp(Min(-x, 80.0F))); }
// Without overflow on either side.
OSDN_DEVICE float LogSigmoid(float x) { return Min(x, 0.0F) - Log1p(Exp(x < 0 ? x : -x)); }

// The sum over the warp, in every lane, in one order.
OSDN_DEVICE float WarpSum(float value) {
  OSDN_UNROLL
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value += ShuffleXor(value, mask);
  return value;
}

}  // namespace osdn::kernels::cuda

#endif  // OSDN_KERNELS_CUDA_PRIMITIVES_CUH_
