#include "kernels/module_loader.h"

#include <dlfcn.h>

#include <array>
#include <filesystem>
#include <system_error>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/backend_module.h"

namespace osdn::kernels {
namespace {

namespace fs = std::filesystem;

std::vector<fs::path> ModulePaths(const std::string& module_dir) {
  if (!module_dir.empty()) return {fs::path(module_dir) / kCudaModuleFile};
  std::error_code error;
  const fs::path executable = fs::read_symlink("/proc/self/exe", error);
  if (error) return {};
  const fs::path folder = executable.parent_path();
  return {folder / kCudaModuleFile, folder.parent_path() / "lib" / kCudaModuleFile};
}

std::string LastDlError() {
  const char* text = dlerror();
  return text == nullptr ? "unknown error" : text;
}

absl::StatusOr<std::unique_ptr<Backend>> OpenModule(const fs::path& path) {
  std::error_code error;
  if (!fs::exists(path, error)) {
    return absl::NotFoundError(absl::StrCat(path.string(), ": not found"));
  }
  // RTLD_NODELETE keeps the module's code for as long as anything made by it may live.
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (handle == nullptr) {
    // dlerror() starts with the path, or with the library that the module misses.
    return absl::FailedPreconditionError(
        absl::StrCat(path.string(), ": cannot be opened: ", LastDlError()));
  }
  auto* create = reinterpret_cast<CreateBackendFunction*>(dlsym(handle, kCreateCudaBackendSymbol));
  if (create == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat(
        path.string(), ": is no backend module: no symbol ", kCreateCudaBackendSymbol));
  }
  std::array<char, 1024> cause = {};
  std::unique_ptr<Backend> backend(create(kBackendAbiVersion, cause.data(), cause.size()));
  if (backend == nullptr) {
    cause.back() = '\0';
    return absl::FailedPreconditionError(absl::StrCat(
        path.string(), ": ", cause.front() == '\0' ? "refused without a cause" : cause.data()));
  }
  return backend;
}

}  // namespace

absl::StatusOr<LoadedBackend> LoadCudaBackend(const std::string& module_dir) {
  std::vector<std::string> causes;
  bool found_module = false;
  for (const fs::path& path : ModulePaths(module_dir)) {
    absl::StatusOr<std::unique_ptr<Backend>> backend = OpenModule(path);
    if (backend.ok()) return LoadedBackend{*std::move(backend), path.string()};
    found_module = found_module || !absl::IsNotFound(backend.status());
    causes.emplace_back(backend.status().message());
  }
  const char* const remedy =
      found_module ? "install a driver and libraries that fit the module (nvidia-smi shows the "
                     "driver), or choose backend cpu"
                   : "build with -DOSDN_CUDA=ON or install the CUDA package, name the module's "
                     "folder in module_dir, or choose backend cpu";
  return absl::FailedPreconditionError(absl::StrCat(
      "backend cuda cannot run here: ", absl::StrJoin(causes, "; "), "; remedy: ", remedy));
}

}  // namespace osdn::kernels
