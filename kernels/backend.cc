#include "kernels/backend.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/module_loader.h"
#include "kernels/reference/reference_backend.h"

namespace osdn::kernels {
namespace {

absl::StatusOr<BackendChoice> ChooseCpu(const BackendOptions& options, std::string reason) {
  absl::StatusOr<std::unique_ptr<Backend>> backend =
      CreateCpuBackend(options.threads, options.cpu_isa);
  if (!backend.ok()) return backend.status();
  return BackendChoice{*std::move(backend), std::move(reason)};
}

absl::StatusOr<BackendChoice> ChooseCuda(const std::string& module_dir, const char* why) {
  absl::StatusOr<LoadedBackend> loaded = LoadCudaBackend(module_dir);
  if (!loaded.ok()) return loaded.status();
  return BackendChoice{std::move(loaded->backend), absl::StrCat(why, ", from ", loaded->path)};
}

}  // namespace

absl::StatusOr<BackendChoice> CreateBackend(const BackendOptions& options) {
  if (options.threads < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("threads: got ", options.threads, ", want >= 0 (0 = one a physical core)"));
  }
  if (options.name == "cpu") return ChooseCpu(options, "cpu, as configured");
  if (options.name == "cuda") return ChooseCuda(options.module_dir, "cuda, as configured");
  if (options.name == "reference") {
    return BackendChoice{CreateReferenceBackend(), "reference, as configured (slow, for tests)"};
  }
  if (options.name == "auto") {
    absl::StatusOr<BackendChoice> cuda = ChooseCuda(options.module_dir, "cuda, chosen by auto");
    if (cuda.ok()) return cuda;
    return ChooseCpu(options, absl::StrCat("cpu, chosen by auto: ", cuda.status().message()));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("backend \"", options.name, "\" is unknown, want auto, cpu, cuda or reference"));
}

}  // namespace osdn::kernels
