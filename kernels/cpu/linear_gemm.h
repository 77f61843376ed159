// Products of prefill tiles (16 to 64 rows) by oneDNN, with weights repacked once.
#ifndef OSDN_KERNELS_CPU_LINEAR_GEMM_H_
#define OSDN_KERNELS_CPU_LINEAR_GEMM_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <tuple>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "dnnl.hpp"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/threads.h"
#include "kernels/include/tensor.h"

namespace osdn::kernels::cpu {

// Rows of a product are a multiple of this, up to kChunk: few shapes, so few compiled primitives,
// and bits that depend on the tile's shape only.
inline constexpr int64_t kTileRowStep = 16;

// A weight in oneDNN's layout; `type` is also the type of the x it multiplies.
class PackedWeight {
 public:
  PackedWeight(int64_t out_features, int64_t in_features, DType type, Buffer buffer,
               dnnl::memory memory)
      : out_features_(out_features),
        in_features_(in_features),
        type_(type),
        buffer_(std::move(buffer)),
        memory_(std::move(memory)) {}

  int64_t out_features() const { return out_features_; }
  int64_t in_features() const { return in_features_; }
  DType type() const { return type_; }
  size_t bytes() const { return buffer_.bytes(); }
  const dnnl::memory& memory() const { return memory_; }

 private:
  int64_t out_features_;
  int64_t in_features_;
  DType type_;
  Buffer buffer_;
  dnnl::memory memory_;
};

// oneDNN's engine, stream and compiled primitives for one backend. Used by one thread at a time.
class Gemm {
 public:
  static absl::StatusOr<std::unique_ptr<Gemm>> Create(const Threads& threads);

  // Whether bf16 weights multiply as bf16 (the CPU has the instruction) or as float32 copies.
  bool has_fast_bf16() const { return has_fast_bf16_; }
  // "oneDNN 2.6.3 (bf16: avx512_core_bf16)"
  std::string Describe() const;

  absl::StatusOr<std::unique_ptr<PackedWeight>> Pack(const HostTensor& weight);

  // y[rows, out] = (y +) x[rows, in] W^T. `rows` is a multiple of kTileRowStep up to kChunk; x has
  // the weight's type. Nothing is allocated once a shape has been seen.
  absl::Status Multiply(const PackedWeight& weight, int64_t rows, const void* x, float* y,
                        bool accumulate);

 private:
  struct Shape {
    int64_t rows;
    int64_t out_features;
    int64_t in_features;
    DType type;
    bool accumulate;
    auto operator<=>(const Shape&) const = default;
  };
  // A compiled product; `x` and `y` are handles that each call points at its operands.
  struct Product {
    dnnl::matmul primitive;
    dnnl::memory x;
    dnnl::memory y;
    dnnl::memory scratchpad;
  };

  explicit Gemm(const Threads& threads);

  dnnl::matmul::primitive_desc Plan(const Shape& shape, const dnnl::memory::desc& weight) const;
  absl::Status PackInto(const HostTensor& weight, PackedWeight& packed);
  absl::StatusOr<Product*> Find(const Shape& shape, const PackedWeight& weight);

  Threads threads_;
  dnnl::engine engine_;
  dnnl::stream stream_;
  bool has_fast_bf16_ = false;
  std::string implementation_;
  Scratch scratchpad_;
  std::map<Shape, Product> products_;
};

}  // namespace osdn::kernels::cpu

#endif  // OSDN_KERNELS_CPU_LINEAR_GEMM_H_
