#include "kernels/cpu/linear.h"

#include <algorithm>
#include <array>

namespace osdn::kernels::cpu {
namespace {

// Rows of x that are multiplied at a time, so that they stay in the L2 cache while panels pass.
constexpr int64_t kRowsBytes = int64_t{1} << 20;
constexpr int64_t kMinRows = 64;

const PackedWeight& Weight(const LinearJob& job) {
  return static_cast<const PackedWeight&>(*job.weight);
}

}  // namespace

absl::StatusOr<std::unique_ptr<LinearWeight>> LinearOp::Prepare(const HostTensor& weight) {
  return PackedWeight::Pack(weight, threads_, &arena_);
}

absl::Status LinearOp::Run(const LinearArgs& args) {
  if (args.jobs.empty()) return absl::OkStatus();
  const int64_t in = args.jobs[0].weight->in_features();
  const int64_t step = std::max(kMinRows, kRowsBytes / (in * 2) / kMinRows * kMinRows);
  for (int64_t first = 0; first < args.batch.rows; first += step) {
    const int64_t rows = std::min(step, args.batch.rows - first);
    if (absl::Status status = RunRows(args, first, rows); !status.ok()) return status;
  }
  return absl::OkStatus();
}

// One parallel region for the panels of all jobs: each thread takes a run of them, of equal bytes.
absl::Status LinearOp::RunRows(const LinearArgs& args, int64_t first, int64_t rows) {
  if (absl::Status status = ListTasks(args, first, rows); !status.ok()) return status;
  const int64_t bytes = tasks_.back().end_bytes;
  const auto count = static_cast<int64_t>(tasks_.size());
  threads_.Each(count, bytes * rows, [&](int64_t share, int64_t shares) {
    // Up to the first panel that ends in a later share.
    const auto border = [&](int64_t share_of_border) {
      const int64_t at = bytes * share_of_border / shares;
      return std::upper_bound(
          tasks_.begin(), tasks_.end(), at,
          [](int64_t wanted, const Task& task) { return wanted < task.end_bytes; });
    };
    const auto begin = border(share);
    RunTasks(absl::MakeConstSpan(tasks_).subspan(begin - tasks_.begin(), border(share + 1) - begin),
             first, rows);
  });
  return absl::OkStatus();
}

absl::Status LinearOp::ListTasks(const LinearArgs& args, int64_t first, int64_t rows) {
  fresh_.clear();
  tasks_.clear();
  int64_t bytes = 0;
  for (const LinearJob& job : args.jobs) {
    const PackedWeight& weight = Weight(job);
    absl::StatusOr<PackedRows*> x = PackX(args, first, rows, weight);
    if (!x.ok()) return x.status();
    for (int64_t panel = 0; panel < weight.panels(); ++panel) {
      bytes += weight.panel_bytes(panel);
      tasks_.push_back({&job, *x, &weight, panel, bytes});
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<LinearOp::PackedRows*> LinearOp::PackX(const LinearArgs& args, int64_t first,
                                                      int64_t rows, const PackedWeight& weight) {
  const RowFormat format = kernels_.For(weight.dtype()).rows;
  const int64_t padded = weight.padded_inputs();
  auto found = std::find_if(packed_.begin(), packed_.end(), [&](const auto& candidate) {
    return candidate->format == format && candidate->padded == padded;
  });
  if (found == packed_.end()) {
    packed_.push_back(std::make_unique<PackedRows>());
    found = packed_.end() - 1;
    (*found)->format = format;
    (*found)->padded = padded;
  }
  PackedRows* target = found->get();
  if (std::find(fresh_.begin(), fresh_.end(), target) != fresh_.end()) return target;
  const size_t bytes = rows * padded * ElementBytes(format);
  if (absl::Status status = target->data.Reserve(bytes); !status.ok()) return status;
  if (absl::Status status = target->scales.Reserve(rows * sizeof(float)); !status.ok()) {
    return status;
  }
  const int64_t in = weight.in_features();
  threads_.ForShares(rows, 1, rows * in * 4, [&](int64_t begin, int64_t end) {
    PackRows({format, args.x + first * in, rows, in, padded, target->data.As<void>(),
              target->scales.As<float>()},
             begin, end);
  });
  fresh_.push_back(target);
  return target;
}

// Neighbours of one type go to their kernel together.
void LinearOp::RunTasks(absl::Span<const Task> tasks, int64_t first, int64_t rows) const {
  constexpr size_t kAtOnce = 32;
  std::array<PanelProduct, kAtOnce> products;
  while (!tasks.empty()) {
    const DType dtype = tasks[0].weight->dtype();
    size_t count = 0;
    while (count < std::min(kAtOnce, tasks.size()) && tasks[count].weight->dtype() == dtype) {
      products[count] = Product(tasks[count], first, rows);
      ++count;
    }
    kernels_.For(dtype).multiply(absl::MakeConstSpan(products.data(), count));
    tasks.remove_prefix(count);
  }
}

PanelProduct LinearOp::Product(const Task& task, int64_t first, int64_t rows) const {
  PanelProduct product;
  product.panel = task.weight->panel(task.panel);
  product.x = task.rows->data.As<void>();
  product.x_scales = task.rows->scales.As<float>();
  product.rows = rows;
  product.y_stride = task.weight->out_features();
  product.y = task.job->y + first * product.y_stride + task.panel * kPanelOuts;
  product.accumulate = task.job->accumulate;
  return product;
}

void LinearOp::Embed(const PackedWeight& table, const EmbeddingArgs& args) const {
  const int64_t dim = table.in_features();
  const auto rows = static_cast<int64_t>(args.ids.size());
  threads_.For(rows, rows * dim, [&](int64_t row, int /*thread*/) {
    table.ReadRow(args.ids[row], args.y + row * dim);
  });
}

}  // namespace osdn::kernels::cpu
