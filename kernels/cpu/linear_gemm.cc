#include "kernels/cpu/linear_gemm.h"

#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/cpu/elementwise.h"

namespace osdn::kernels::cpu {
namespace {

using dnnl::memory;

memory::data_type DataType(DType type) {
  return type == DType::kBF16 ? memory::data_type::bf16 : memory::data_type::f32;
}

absl::Status DnnlError(absl::string_view what, const dnnl::error& error) {
  const std::string text = absl::StrCat("oneDNN: ", what, ": ", error.what());
  return error.status == dnnl_out_of_memory ? absl::ResourceExhaustedError(text)
                                            : absl::InternalError(text);
}

// Instruction sets on which oneDNN multiplies bf16 natively; elsewhere it emulates, slower than
// f32.
const char* NativeBf16Isa() {
  switch (dnnl::get_effective_cpu_isa()) {
    case dnnl::cpu_isa::avx512_core_bf16:
      return "avx512_core_bf16";
    case dnnl::cpu_isa::avx512_core_amx:
      return "avx512_core_amx";
    default:
      return nullptr;
  }
}

}  // namespace

Gemm::Gemm(const Threads& threads)
    : threads_(threads), engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) {}

absl::StatusOr<std::unique_ptr<Gemm>> Gemm::Create(const Threads& threads) {
  try {
    std::unique_ptr<Gemm> gemm(new Gemm(threads));
    if (const char* isa = NativeBf16Isa(); isa != nullptr) {
      const ScopedOmpThreads scope(threads);
      const Shape probe{kChunk, 256, 256, DType::kBF16, false};
      const memory::desc weight({256, 256}, memory::data_type::bf16, memory::format_tag::any);
      const std::string name = gemm->Plan(probe, weight).impl_info_str();
      gemm->has_fast_bf16_ = !absl::StrContains(name, "ref");
      if (gemm->has_fast_bf16_) gemm->implementation_ = isa;
    }
    return gemm;
  } catch (const dnnl::error& error) {
    return DnnlError("engine", error);
  }
}

std::string Gemm::Describe() const {
  const dnnl_version_t* version = dnnl_version();
  return absl::StrFormat("oneDNN %d.%d.%d (bf16: %s)", version->major, version->minor,
                         version->patch, has_fast_bf16_ ? implementation_ : "as f32");
}

dnnl::matmul::primitive_desc Gemm::Plan(const Shape& shape, const memory::desc& weight) const {
  const memory::desc x({shape.rows, shape.in_features}, DataType(shape.type),
                       memory::format_tag::ab);
  const memory::desc y({shape.rows, shape.out_features}, memory::data_type::f32,
                       memory::format_tag::ab);
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  if (shape.accumulate) {
    dnnl::post_ops post_ops;
    post_ops.append_sum(1.0F);
    attributes.set_post_ops(post_ops);
  }
  return {dnnl::matmul::desc(x, weight, y), attributes, engine_};
}

absl::StatusOr<std::unique_ptr<PackedWeight>> Gemm::Pack(const HostTensor& weight) {
  const int64_t out = weight.shape[0];
  const int64_t in = weight.shape[1];
  const DType type = has_fast_bf16_ ? weight.dtype : DType::kF32;
  try {
    const ScopedOmpThreads scope(threads_);
    const memory::desc any({in, out}, DataType(type), memory::format_tag::any);
    // The layout of full tiles serves the smaller ones too.
    const memory::desc layout = Plan({kChunk, out, in, type, false}, any).weights_desc();
    absl::StatusOr<Buffer> buffer = AllocateZeroed(layout.get_size());
    if (!buffer.ok()) return buffer.status();
    memory target(layout, engine_, buffer->data());
    auto packed = std::make_unique<PackedWeight>(out, in, type, *std::move(buffer), target);
    if (absl::Status status = PackInto(weight, *packed); !status.ok()) return status;
    return packed;
  } catch (const dnnl::error& error) {
    return DnnlError(absl::StrFormat("packing a weight [%d,%d]", out, in), error);
  }
}

absl::Status Gemm::PackInto(const HostTensor& weight, PackedWeight& packed) {
  const void* source = weight.data;
  Scratch widened;
  if (packed.type() != weight.dtype) {
    if (absl::Status status = widened.Reserve(weight.elements() * sizeof(float)); !status.ok()) {
      return status;
    }
    WidenBf16(static_cast<const uint16_t*>(weight.data), weight.elements(), widened.As<float>());
    source = widened.As<float>();
  }
  // Row-major [out, in] is column-major to oneDNN, whose weights are [in, out].
  const memory::desc plain({packed.in_features(), packed.out_features()}, DataType(packed.type()),
                           memory::format_tag::ba);
  memory from(plain, engine_, const_cast<void*>(source));
  memory to = packed.memory();
  dnnl::reorder(from, to).execute(stream_, from, to);
  stream_.wait();
  return absl::OkStatus();
}

absl::StatusOr<Gemm::Product*> Gemm::Find(const Shape& shape, const PackedWeight& weight) {
  if (auto found = products_.find(shape); found != products_.end()) return &found->second;
  const dnnl::matmul::primitive_desc desc = Plan(shape, weight.memory().get_desc());
  const memory::desc scratchpad = desc.scratchpad_desc();
  if (absl::Status status = scratchpad_.Reserve(scratchpad.get_size()); !status.ok()) {
    return status;
  }
  Product product{dnnl::matmul(desc), memory(desc.src_desc(), engine_, nullptr),
                  memory(desc.dst_desc(), engine_, nullptr), memory(scratchpad, engine_, nullptr)};
  return &products_.emplace(shape, std::move(product)).first->second;
}

absl::Status Gemm::Multiply(const PackedWeight& weight, int64_t rows, const void* x, float* y,
                            bool accumulate) {
  const Shape shape{rows, weight.out_features(), weight.in_features(), weight.type(), accumulate};
  try {
    const ScopedOmpThreads scope(threads_);
    absl::StatusOr<Product*> found = Find(shape, weight);
    if (!found.ok()) return found.status();
    Product& product = **found;
    product.x.set_data_handle(const_cast<void*>(x), stream_);
    product.y.set_data_handle(y, stream_);
    product.scratchpad.set_data_handle(scratchpad_.As<void>(), stream_);
    // The C call takes its arguments as an array; the C++ one would allocate a map.
    const dnnl_exec_arg_t arguments[] = {{DNNL_ARG_SRC, product.x.get()},
                                         {DNNL_ARG_WEIGHTS, weight.memory().get()},
                                         {DNNL_ARG_DST, product.y.get()},
                                         {DNNL_ARG_SCRATCHPAD, product.scratchpad.get()}};
    dnnl::error::wrap_c_api(
        dnnl_primitive_execute(product.primitive.get(), stream_.get(), 4, arguments), "matmul");
    stream_.wait();
    return absl::OkStatus();
  } catch (const dnnl::error& error) {
    return DnnlError(absl::StrFormat("matmul of %d rows by [%d,%d]", rows, weight.out_features(),
                                     weight.in_features()),
                     error);
  }
}

}  // namespace osdn::kernels::cpu
