#include "kernels/cuda/gemm.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace osdn::kernels::cuda {
namespace {

constexpr size_t kWorkspaceBytes = size_t{32} << 20;
constexpr uint32_t kMostAlignment = 256;
// Plans kept: shapes are few but for the number of rows. Beyond, all are forgotten.
constexpr size_t kMostPlans = 4096;

absl::Status CheckBlas(cublasStatus_t status, const char* call) {
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("CUDA: ", call, ": ", cublasLtGetStatusName(status), ": ",
                                          cublasLtGetStatusString(status)));
}

cudaDataType_t DataType(ActivationType type) {
  return type == ActivationType::kBF16 ? CUDA_R_16BF : CUDA_R_32F;
}

// The largest power of two, up to kMostAlignment, that divides all addresses.
uint32_t Alignment(std::initializer_list<const void*> addresses) {
  uintptr_t bits = kMostAlignment;
  for (const void* address : addresses) bits |= reinterpret_cast<uintptr_t>(address);
  return static_cast<uint32_t>(bits & (~bits + 1));
}

struct LayoutShape {
  int64_t rows;
  int64_t columns;
  int64_t stride;
  int64_t batch_stride;
};

absl::Status MakeLayout(ActivationType type, const LayoutShape& shape, int64_t batch,
                        cublasLtMatrixLayout_t* layout) {
  const auto rows = static_cast<uint64_t>(shape.rows);
  const auto columns = static_cast<uint64_t>(shape.columns);
  if (absl::Status s =
          CheckBlas(cublasLtMatrixLayoutCreate(layout, DataType(type), rows, columns, shape.stride),
                    "cublasLtMatrixLayoutCreate");
      !s.ok()) {
    return s;
  }
  if (batch == 1) return absl::OkStatus();
  const auto count = static_cast<int32_t>(batch);
  if (absl::Status s =
          CheckBlas(cublasLtMatrixLayoutSetAttribute(*layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT,
                                                     &count, sizeof(count)),
                    "cublasLtMatrixLayoutSetAttribute");
      !s.ok()) {
    return s;
  }
  return CheckBlas(
      cublasLtMatrixLayoutSetAttribute(*layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                       &shape.batch_stride, sizeof(shape.batch_stride)),
      "cublasLtMatrixLayoutSetAttribute");
}

// What the heuristics may choose among; freed with it.
class Preference {
 public:
  Preference() = default;
  Preference(const Preference&) = delete;
  Preference& operator=(const Preference&) = delete;
  ~Preference() {
    if (preference_ != nullptr) cublasLtMatmulPreferenceDestroy(preference_);
  }

  absl::Status Set(uint32_t alignment) {
    if (absl::Status s = CheckBlas(cublasLtMatmulPreferenceCreate(&preference_),
                                   "cublasLtMatmulPreferenceCreate");
        !s.ok()) {
      return s;
    }
    const uint64_t workspace = kWorkspaceBytes;
    if (absl::Status s = Set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace); !s.ok()) {
      return s;
    }
    for (const auto attribute :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
      if (absl::Status s = Set(attribute, alignment); !s.ok()) return s;
    }
    return absl::OkStatus();
  }
  cublasLtMatmulPreference_t get() const { return preference_; }

 private:
  template <class T>
  absl::Status Set(cublasLtMatmulPreferenceAttributes_t attribute, const T& value) {
    return CheckBlas(
        cublasLtMatmulPreferenceSetAttribute(preference_, attribute, &value, sizeof(value)),
        "cublasLtMatmulPreferenceSetAttribute");
  }

  cublasLtMatmulPreference_t preference_ = nullptr;
};

}  // namespace

struct Gemm::Plan {
  Plan() = default;
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;
  ~Plan() {
    if (w != nullptr) cublasLtMatrixLayoutDestroy(w);
    if (x != nullptr) cublasLtMatrixLayoutDestroy(x);
    if (y != nullptr) cublasLtMatrixLayoutDestroy(y);
    if (product != nullptr) cublasLtMatmulDescDestroy(product);
  }

  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t w = nullptr;
  cublasLtMatrixLayout_t x = nullptr;
  cublasLtMatrixLayout_t y = nullptr;
  cublasLtMatmulAlgo_t algorithm = {};
  size_t workspace_bytes = 0;
};

Gemm::Gemm(Device* device) : device_(device), workspace_(device) {}

absl::StatusOr<std::unique_ptr<Gemm>> Gemm::Create(Device* device) {
  std::unique_ptr<Gemm> gemm(new Gemm(device));
  if (absl::Status s = CheckBlas(cublasLtCreate(&gemm->handle_), "cublasLtCreate"); !s.ok()) {
    return s;
  }
  if (absl::Status s = gemm->workspace_.Reserve(kWorkspaceBytes); !s.ok()) return s;
  return gemm;
}

Gemm::~Gemm() {
  plans_.clear();
  if (handle_ != nullptr) cublasLtDestroy(handle_);
}

Gemm::Key Gemm::KeyOf(const GemmArgs& args) {
  Key key = {};
  key.m = args.m;
  key.n = args.n;
  key.k = args.k;
  key.x_stride = args.x_stride;
  key.w_stride = args.w_stride;
  key.y_stride = args.y_stride;
  key.batch = args.batch;
  key.w_batch_stride = args.w_batch_stride;
  key.y_batch_stride = args.y_batch_stride;
  key.alignment = Alignment({args.x, args.w, args.y});
  key.type = args.type;
  key.y_type = args.y_type;
  key.accumulate = args.accumulate;
  return key;
}

absl::StatusOr<const Gemm::Plan*> Gemm::PlanFor(const GemmArgs& args) {
  const Key key = KeyOf(args);
  if (const auto it = plans_.find(key); it != plans_.end()) return it->second.get();
  auto plan = std::make_unique<Plan>();
  if (absl::Status s = MakePlan(key, plan.get()); !s.ok()) return s;
  if (plans_.size() >= kMostPlans) plans_.clear();
  return plans_.emplace(key, std::move(plan)).first->second.get();
}

// cuBLASLt is column-major: there y^T [n, m] = W [k, n]^T x^T [k, m].
absl::Status Gemm::MakePlan(const Key& key, Plan* plan) {
  if (absl::Status s =
          CheckBlas(cublasLtMatmulDescCreate(&plan->product, CUBLAS_COMPUTE_32F, CUDA_R_32F),
                    "cublasLtMatmulDescCreate");
      !s.ok()) {
    return s;
  }
  const cublasOperation_t transpose = CUBLAS_OP_T;
  if (absl::Status s =
          CheckBlas(cublasLtMatmulDescSetAttribute(plan->product, CUBLASLT_MATMUL_DESC_TRANSA,
                                                   &transpose, sizeof(transpose)),
                    "cublasLtMatmulDescSetAttribute");
      !s.ok()) {
    return s;
  }
  if (absl::Status s = MakeLayout(key.type, {key.k, key.n, key.w_stride, key.w_batch_stride},
                                  key.batch, &plan->w);
      !s.ok()) {
    return s;
  }
  if (absl::Status s = MakeLayout(key.type, {key.k, key.m, key.x_stride, 0}, key.batch, &plan->x);
      !s.ok()) {
    return s;
  }
  if (absl::Status s = MakeLayout(key.y_type, {key.n, key.m, key.y_stride, key.y_batch_stride},
                                  key.batch, &plan->y);
      !s.ok()) {
    return s;
  }
  Preference preference;
  if (absl::Status s = preference.Set(key.alignment); !s.ok()) return s;
  cublasLtMatmulHeuristicResult_t best = {};
  int found = 0;
  const cublasStatus_t status =
      cublasLtMatmulAlgoGetHeuristic(handle_, plan->product, plan->w, plan->x, plan->y, plan->y,
                                     preference.get(), 1, &best, &found);
  if (status != CUBLAS_STATUS_SUCCESS || found == 0) {
    return absl::InternalError(absl::StrCat("CUDA: cuBLASLt has no algorithm for a product of ",
                                            key.m, " x ", key.k, " by ", key.n, " x ", key.k, ", ",
                                            key.batch, " of them, addresses aligned to ",
                                            key.alignment, ": ", cublasLtGetStatusName(status)));
  }
  plan->algorithm = best.algo;
  plan->workspace_bytes = best.workspaceSize;
  return absl::OkStatus();
}

absl::Status Gemm::Run(const GemmArgs& args) {
  if (absl::Status s = device_->Usable(); !s.ok()) return s;
  const absl::StatusOr<const Plan*> plan = PlanFor(args);
  if (!plan.ok()) return plan.status();
  const float one = 1.0F;
  const float beta = args.accumulate ? 1.0F : 0.0F;
  return CheckBlas(
      cublasLtMatmul(handle_, (*plan)->product, &one, args.w, (*plan)->w, args.x, (*plan)->x, &beta,
                     args.y, (*plan)->y, args.y, (*plan)->y, &(*plan)->algorithm, workspace_.data(),
                     (*plan)->workspace_bytes, device_->stream()),
      "cublasLtMatmul");
}

}  // namespace osdn::kernels::cuda
