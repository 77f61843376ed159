#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/reference/linear.h"
#include "tests/unit/kernels/host_weight.h"
#include "tests/unit/kernels/ops_under_test.h"
#include "tests/unit/kernels/test_backend.h"

namespace osdn::kernels {
namespace {

// Unit roundoffs: 24 and 8 significant bits.
constexpr double kUnitF32 = 0x1p-24;
constexpr double kUnitBf16 = 0x1p-8;

struct JobShape {
  int64_t out_features = 0;
  bool accumulate = false;
};

class LinearOp : public Op {
 public:
  LinearOp(DType dtype, int64_t in_features, std::vector<JobShape> jobs, Random* random)
      : dtype_(dtype), in_features_(in_features), jobs_(std::move(jobs)) {
    for (const JobShape& job : jobs_) {
      weights_.emplace_back(dtype, job.out_features, in_features, random);
    }
  }

  std::string Describe() const override {
    std::string text =
        absl::StrCat("linear ", std::string(DTypeName(dtype_)), ", in ", in_features_, ", out");
    for (const JobShape& job : jobs_) {
      absl::StrAppend(&text, " ", job.out_features, job.accumulate ? "+" : "");
    }
    return text;
  }

  OpData<float> MakeData(int64_t rows, int64_t /*slots*/, Random* random) const override {
    OpData<float> data;
    data.inputs.push_back({in_features_, random->Normals(rows * in_features_)});
    for (const JobShape& job : jobs_) {
      data.outputs.push_back({job.out_features, random->Normals(rows * job.out_features, 3)});
    }
    return data;
  }

  absl::Status Run(Backend* backend, const BatchView& batch,
                   const OpPointers& data) const override {
    std::vector<std::unique_ptr<LinearWeight>> weights;
    std::vector<LinearJob> jobs;
    for (size_t i = 0; i < jobs_.size(); ++i) {
      absl::StatusOr<std::unique_ptr<LinearWeight>> weight =
          backend->PrepareLinear(weights_[i].tensor());
      if (!weight.ok()) return weight.status();
      weights.push_back(*std::move(weight));
      jobs.push_back({weights.back().get(), data.outputs[i], jobs_[i].accumulate});
    }
    const absl::Status status = backend->Linear({batch, data.inputs[0], jobs});
    return status.ok() ? backend->Synchronize() : status;
  }

  void Truth(int64_t tokens, OpData<double>* data, OpData<double>* tolerance) const override {
    for (size_t i = 0; i < jobs_.size(); ++i) {
      const std::vector<float>& values = weights_[i].values();
      const std::vector<double> weight(values.begin(), values.end());
      std::vector<double>& y = data->outputs[i].values;
      SetTolerance(weight, data->inputs[0].values, jobs_[i].accumulate ? y : std::vector<double>(),
                   &tolerance->outputs[i].values);
      reference::Linear<double>({jobs_[i].out_features, in_features_, weight.data()}, tokens,
                                data->inputs[0].values.data(), jobs_[i].accumulate, y.data());
    }
  }

 private:
  // float32 accumulation in any order: n u sum |x w|. Inputs rounded to bf16: independent errors,
  // uniform within at most u |x w|, whose deviation is u |x w| / sqrt(3) or less (0.71 of that on
  // average over a significand's range): 4.5 of these are 6.4 true deviations of the sum. Inputs
  // rounded to int8: uniform within half a step of max |x| / 127, 6.4 deviations. int4 weights may
  // be rounded to bf16 as well when they are widened (cuda does for many rows): another such error.
  void SetTolerance(const std::vector<double>& weight, const std::vector<double>& x,
                    const std::vector<double>& initial, std::vector<double>* tolerance) const {
    const auto out_features = static_cast<int64_t>(weight.size()) / in_features_;
    for (size_t index = 0; index < tolerance->size(); ++index) {
      const int64_t row = static_cast<int64_t>(index) / out_features;
      const int64_t column = static_cast<int64_t>(index) % out_features;
      double sum = initial.empty() ? 0 : std::abs(initial[index]);
      double squares = 0;
      double weight_squares = 0;
      double most = 0;
      for (int64_t i = 0; i < in_features_; ++i) {
        const double product = x[row * in_features_ + i] * weight[column * in_features_ + i];
        sum += std::abs(product);
        squares += product * product;
        weight_squares += weight[column * in_features_ + i] * weight[column * in_features_ + i];
        most = std::max(most, std::abs(x[row * in_features_ + i]));
      }
      (*tolerance)[index] = kUnitF32 * static_cast<double>(in_features_ + 4) * sum;
      if (dtype_ == DType::kI8) {
        (*tolerance)[index] += 6.4 * most / 127 * std::sqrt(weight_squares / 12);
      }
      if (dtype_ == DType::kBF16 || dtype_ == DType::kI4) {
        const double roundings = dtype_ == DType::kI4 ? 2 : 1;
        (*tolerance)[index] += 4.5 * kUnitBf16 * std::sqrt(roundings * squares / 3);
      }
    }
  }

  DType dtype_;
  int64_t in_features_;
  std::vector<JobShape> jobs_;
  std::vector<HostWeight> weights_;
};

}  // namespace

OpList LinearOps(DType dtype, Random* random) {
  OpList ops;
  const auto add = [&](int64_t in_features, std::vector<JobShape> jobs) {
    ops.push_back(std::make_unique<LinearOp>(dtype, in_features, std::move(jobs), random));
  };
  add(1, {{1, false}});
  add(3, {{5, true}});
  add(16, {{16, false}});
  add(17, {{33, false}, {2, true}});
  add(64, {{48, false}, {48, false}, {96, false}, {3, false}});
  add(96, {{257, true}});
  add(130, {{130, false}, {67, true}});
  add(257, {{31, false}});
  add(512, {{64, true}});
  return ops;
}

}  // namespace osdn::kernels
