// The op table: everything the engine may ask of a device, behind one interface that is chosen once
// at start. `reference` (obvious, slow), `cpu` and `cuda` implement it and pass the same tests.
//
// Ownership: the caller owns Buffers and LinearWeights; the backend must outlive both.
// Thread-safety: a backend is used by one thread at a time (the engine's loop); several backends
// may coexist in a process. Pointers in op arguments are device pointers unless their header says
// host memory. Ops may run asynchronously; CopyToHost and Synchronize wait. Errors: INTERNAL when
// the device fails, RESOURCE_EXHAUSTED when memory does not suffice, with the numbers. Shapes are
// the caller's promise (the engine checks them once, at load).
#ifndef OSDN_KERNELS_BACKEND_H_
#define OSDN_KERNELS_BACKEND_H_

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/include/embedding.h"
#include "kernels/include/layer.h"
#include "kernels/include/linear.h"
#include "kernels/include/mixer.h"
#include "kernels/include/norm.h"
#include "kernels/include/short_conv.h"
#include "kernels/include/tensor.h"

namespace osdn::kernels {

// Zero-initialised, 64-byte aligned memory on a backend's device. Move-only; frees itself.
class Buffer {
 public:
  using Deleter = void (*)(void* context, void* data);

  Buffer() = default;
  Buffer(void* data, size_t bytes, Deleter deleter, void* context)
      : data_(data), bytes_(bytes), deleter_(deleter), context_(context) {}
  ~Buffer() { Reset(); }
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept;

  void* data() const { return data_; }
  float* floats() const { return static_cast<float*>(data_); }
  size_t bytes() const { return bytes_; }

 private:
  void Reset();

  void* data_ = nullptr;
  size_t bytes_ = 0;
  Deleter deleter_ = nullptr;
  void* context_ = nullptr;
};

// What one step reads from the host.
struct StepInputs {
  // Whose body it is: steps of one key, one state and the same numbers of rows, decode rows and
  // logit rows call the same ops with the same pointers.
  const void* key = nullptr;
  const void* state = nullptr;  // whose slots: where the pool's memory begins
  BatchView batch;
  absl::Span<const int32_t> tokens;      // [batch.rows], for Embed
  absl::Span<const int64_t> logit_rows;  // for GatherRows
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string_view name() const = 0;
  // One line for the start-up log: device, instruction set, threads.
  virtual std::string Describe() const = 0;

  // --- Memory ---
  virtual absl::StatusOr<Buffer> Allocate(size_t bytes) = 0;
  virtual absl::Status CopyFromHost(void* dst, const void* src, size_t bytes) = 0;
  virtual absl::Status CopyToHost(void* dst, const void* src, size_t bytes) = 0;
  // From device memory to device memory; the ranges do not overlap. By way of the host unless the
  // backend knows better.
  // (Inline: backends are modules of their own and link nothing of backend.cc.)
  virtual absl::Status CopyOnDevice(void* dst, const void* src, size_t bytes) {
    std::vector<std::byte> host(bytes);
    if (absl::Status s = CopyToHost(host.data(), src, bytes); !s.ok()) return s;
    return CopyFromHost(dst, host.data(), bytes);
  }
  virtual absl::Status Fill(float* dst, float value, int64_t count) = 0;
  virtual absl::Status Synchronize() = 0;

  // --- Weights ---
  // `weight` is [out, in]. It must outlive the result.
  virtual absl::StatusOr<std::unique_ptr<LinearWeight>> PrepareLinear(const HostTensor& weight) = 0;

  // --- Ops (contracts in kernels/include) ---
  // `table` is a LinearWeight [vocab, dim], so that tied embeddings are held once.
  virtual absl::Status Embed(const LinearWeight& table, const EmbeddingArgs& args) = 0;
  virtual absl::Status GatherRows(const GatherRowsArgs& args) = 0;
  virtual absl::Status Linear(const LinearArgs& args) = 0;
  virtual absl::Status RmsNorm(const RmsNormArgs& args) = 0;
  virtual absl::Status OutputNorm(const OutputNormArgs& args) = 0;
  virtual absl::Status SwiGlu(const SwiGluArgs& args) = 0;
  virtual absl::Status ShortConv(const ShortConvArgs& args) = 0;
  virtual absl::Status QkPrepare(const QkPrepareArgs& args) = 0;
  virtual absl::Status Gates(const GateArgs& args) = 0;
  virtual absl::Status Mixer(const MixerArgs& args) = 0;

  // --- Whole steps ---
  // Blocks of `spec` over at most `max_rows` rows; the backend outlives the result. Unless the
  // backend knows better, a composition of the ops above (kernels/composed_layers.h).
  virtual absl::StatusOr<std::unique_ptr<LayerRunner>> CreateLayerRunner(const LayerSpec& spec,
                                                                         int64_t max_rows);
  // Calls `body` with the batch to run: `step.batch`, or a longer one of the same spans with rows
  // added that touch no slot and whose results are nobody's. A backend may record the ops that a
  // body calls and run the record for later steps of the same key and shape instead of the body, so
  // a body does nothing but call ops of this backend, with the same pointers for the same key; ids
  // and indices it passes on are those of `step`, which the backend reads anew each time.
  virtual absl::Status RunStep(const StepInputs& step,
                               absl::FunctionRef<absl::Status(const BatchView& batch)> body) {
    return body(step.batch);
  }

  // --- The caller's own work on the host, between steps ---
  // How many threads RunOnHost uses; at least 1.
  virtual int host_threads() const { return 1; }
  // Calls task(index, thread) for every index in [0, tasks), in any order, thread in
  // [0, host_threads()), on the threads that the backend has for its ops: others would take turns
  // with them. Returns when all are done. Denormals may count as 0 in tasks.
  virtual void RunOnHost(int64_t tasks, absl::FunctionRef<void(int64_t index, int thread)> task) {
    for (int64_t i = 0; i < tasks; ++i) task(i, 0);
  }
};

struct BackendOptions {
  // auto | cpu | cuda | reference. `auto` takes cuda when its module loads and finds a device, else
  // cpu.
  std::string name = "auto";
  // Worker threads of the cpu backend; 0 = one a physical core this process may use.
  int threads = 0;
  // Instruction set of the cpu backend: auto (the best this CPU has) or a lower one, to compare or
  // to have the same bits on different machines: amx, avx512_bf16, avx512, avx2, neon, baseline.
  std::string cpu_isa = "auto";
  // Folder searched for backend modules (libosdn_cuda.so); empty = beside the executable, then
  // ../lib.
  std::string module_dir;
};

struct BackendChoice {
  std::unique_ptr<Backend> backend;
  std::string reason;  // why this one: for the start-up log
};

// Errors: INVALID_ARGUMENT for an unknown name (lists the known ones), FAILED_PRECONDITION when a
// named backend cannot run here, with the cause (module missing, no device, driver too old) and the
// remedy.
absl::StatusOr<BackendChoice> CreateBackend(const BackendOptions& options);

}  // namespace osdn::kernels

#endif  // OSDN_KERNELS_BACKEND_H_
