#include "kernels/cpu/ceilings.h"

#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <map>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "dnnl.hpp"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/threads.h"

namespace osdn::kernels::cpu {
namespace {

constexpr int kPasses = 4;
constexpr int64_t kWordGrain = 1024;

// Longer than thread teams look for work before they sleep.
void Settle() { std::this_thread::sleep_for(std::chrono::milliseconds(8)); }

// Seconds of the fastest pass, after one that warms up.
template <class Pass>
double BestSeconds(const Pass& pass) {
  Settle();
  pass();
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < kPasses; ++i) {
    const auto start = std::chrono::steady_clock::now();
    pass();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::min(best, seconds.count());
  }
  Settle();
  return best;
}

// While alive, OpenMP regions of this thread, oneDNN's too, get this many threads.
class OmpTeamSize {
 public:
  explicit OmpTeamSize(int threads) : previous_(omp_get_max_threads()) {
    omp_set_num_threads(threads);
  }
  ~OmpTeamSize() { omp_set_num_threads(previous_); }
  OmpTeamSize(const OmpTeamSize&) = delete;
  OmpTeamSize& operator=(const OmpTeamSize&) = delete;

 private:
  int previous_;
};

struct GemmTypes {
  dnnl::memory::data_type source, weights, result;
};

GemmTypes TypesOf(DType dtype) {
  using Type = dnnl::memory::data_type;
  if (dtype == DType::kF32) return {Type::f32, Type::f32, Type::f32};
  if (dtype == DType::kBF16) return {Type::bf16, Type::bf16, Type::f32};
  return {Type::u8, Type::s8, Type::s32};
}

}  // namespace

struct Ceilings::Gemm {
  struct Product {
    dnnl::matmul primitive;
    dnnl::memory x, w, y;
    int64_t size;
  };

  // A product of [size, size] matrices of small numbers. Throws dnnl::error.
  Product Make(DType dtype, int64_t size) {
    using dnnl::memory;
    const GemmTypes types = TypesOf(dtype);
    const memory::desc x({size, size}, types.source, memory::format_tag::ab);
    const memory::desc w({size, size}, types.weights, memory::format_tag::any);
    const memory::desc y({size, size}, types.result, memory::format_tag::ab);
    const dnnl::matmul::primitive_desc desc(dnnl::matmul::desc(x, w, y), engine);
    Product product{dnnl::matmul(desc), memory(x, engine), memory(desc.weights_desc(), engine),
                    memory(y, engine), size};
    // Bytes 0x3C are 0.0115 in float32 and bf16 and 60 in int8.
    for (const memory& operand : {product.x, product.w}) {
      std::memset(operand.get_data_handle(), 0x3C, operand.get_desc().get_size());
    }
    return product;
  }

  double Measure(Product* product) {
    const double seconds = BestSeconds([&] {
      product->primitive.execute(
          stream,
          {{DNNL_ARG_SRC, product->x}, {DNNL_ARG_WEIGHTS, product->w}, {DNNL_ARG_DST, product->y}});
      stream.wait();
    });
    const auto size = static_cast<double>(product->size);
    return 2 * size * size * size / seconds;
  }

  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  std::map<DType, Product> best;
};

Ceilings::Ceilings(int threads, std::vector<int64_t> gemm_sizes, Buffer buffer)
    : threads_(threads), gemm_sizes_(std::move(gemm_sizes)), buffer_(std::move(buffer)) {}

Ceilings::~Ceilings() = default;

absl::StatusOr<std::unique_ptr<Ceilings>> Ceilings::Create(const Options& options) {
  const int threads = options.threads > 0 ? options.threads : UsableCores();
  constexpr size_t kGrainBytes = kWordGrain * sizeof(uint64_t);
  const size_t grains = std::max(options.buffer_bytes / kGrainBytes, size_t{1});
  absl::StatusOr<Buffer> buffer = AllocateZeroed(grains * kGrainBytes);
  if (!buffer.ok()) return buffer.status();
  std::unique_ptr<Ceilings> ceilings(new Ceilings(threads, options.gemm_sizes, *std::move(buffer)));
  ceilings->UpdateBandwidth();  // gives every page a frame of its own, not the shared zero page
  return ceilings;
}

double Ceilings::ReadBandwidth() {
  const auto* words = static_cast<const uint64_t*>(buffer_.data());
  const auto grains = static_cast<int64_t>(buffer_.bytes() / sizeof(uint64_t)) / kWordGrain;
  volatile uint64_t sink = 0;
  double best = std::numeric_limits<double>::infinity();
  constexpr int64_t kAhead = 2048 / sizeof(uint64_t);
  for (const int64_t ahead : {int64_t{0}, kAhead}) {
    const double seconds = BestSeconds([&] {
      uint64_t sum = 0;
#pragma omp parallel num_threads(threads_) reduction(+ : sum)
      {
        const int64_t team = omp_get_num_threads();
        const int64_t thread = omp_get_thread_num();
        const int64_t begin = grains * thread / team;
        const int64_t end = grains * (thread + 1) / team;
        sum += internal::SumWords(words + begin * kWordGrain, (end - begin) * kWordGrain, ahead);
      }
      sink = sum;
    });
    best = std::min(best, seconds);
  }
  static_cast<void>(sink);
  return static_cast<double>(buffer_.bytes()) / best;
}

double Ceilings::UpdateBandwidth() {
  auto* words = static_cast<uint64_t*>(buffer_.data());
  const auto count = static_cast<int64_t>(buffer_.bytes() / sizeof(uint64_t));
  const double seconds = BestSeconds([&] {
#pragma omp parallel for schedule(static) num_threads(threads_)
    for (int64_t i = 0; i < count; ++i) words[i] += 3;
  });
  return 2 * static_cast<double>(buffer_.bytes()) / seconds;
}

absl::StatusOr<double> Ceilings::GemmPeak(DType dtype) {
  try {
    const OmpTeamSize scope(threads_);
    if (gemm_ == nullptr) gemm_ = std::make_unique<Gemm>();
    if (auto found = gemm_->best.find(dtype); found != gemm_->best.end()) {
      return gemm_->Measure(&found->second);
    }
    double best = 0;
    for (const int64_t size : gemm_sizes_) {
      Gemm::Product product = gemm_->Make(dtype, size);
      const double rate = gemm_->Measure(&product);
      if (rate <= best) continue;
      best = rate;
      gemm_->best.insert_or_assign(dtype, std::move(product));
    }
    return best;
  } catch (const dnnl::error& error) {
    return absl::UnimplementedError(absl::StrCat("oneDNN: no ", std::string(DTypeName(dtype)),
                                                 " product here: ", error.what()));
  }
}

}  // namespace osdn::kernels::cpu
