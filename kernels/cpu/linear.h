// Linear layers and embedding lookup on weights in panels (kernels/cpu/panels).
#ifndef OSDN_KERNELS_CPU_LINEAR_H_
#define OSDN_KERNELS_CPU_LINEAR_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/panels/kernels.h"
#include "kernels/cpu/panels/packed_weight.h"
#include "kernels/cpu/threads.h"
#include "kernels/include/embedding.h"
#include "kernels/include/linear.h"

namespace osdn::kernels::cpu {

// Every row of a batch meets the same arithmetic, however many there are and wherever they lie.
class LinearOp {
 public:
  LinearOp(const Threads& threads, Isa isa)
      : threads_(threads), kernels_(ChoosePanelKernels(isa)) {}

  absl::StatusOr<std::unique_ptr<LinearWeight>> Prepare(const HostTensor& weight);
  absl::Status Run(const LinearArgs& args);
  void Embed(const PackedWeight& table, const EmbeddingArgs& args) const;

 private:
  // x in one format, padded to one length: what several jobs may share.
  struct PackedRows {
    RowFormat format;
    int64_t padded;
    Scratch data;
    Scratch scales;
  };
  // One panel of one job.
  struct Task {
    const LinearJob* job;
    const PackedRows* rows;
    const PackedWeight* weight;
    int64_t panel;
    int64_t end_bytes;  // of this panel and all before it
  };

  absl::Status RunRows(const LinearArgs& args, int64_t first, int64_t rows);
  absl::StatusOr<PackedRows*> PackX(const LinearArgs& args, int64_t first, int64_t rows,
                                    const PackedWeight& weight);
  absl::Status ListTasks(const LinearArgs& args, int64_t first, int64_t rows);
  void RunTasks(absl::Span<const Task> tasks, int64_t first, int64_t rows) const;
  PanelProduct Product(const Task& task, int64_t first, int64_t rows) const;

  Threads threads_;
  PanelKernels kernels_;
  WeightArena arena_;
  // Working memory of one Run, kept to be reused.
  std::vector<std::unique_ptr<PackedRows>> packed_;  // one a format and length ever met
  std::vector<const PackedRows*> fresh_;             // of them, what holds this call's x
  std::vector<Task> tasks_;
};

}  // namespace osdn::kernels::cpu

#endif  // OSDN_KERNELS_CPU_LINEAR_H_
