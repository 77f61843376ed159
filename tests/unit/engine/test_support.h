// Shared by the engine's tests: temporary folders and model directories.
#ifndef OSDN_TESTS_UNIT_ENGINE_TEST_SUPPORT_H_
#define OSDN_TESTS_UNIT_ENGINE_TEST_SUPPORT_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/model_config.h"
#include "engine/safetensors.h"
#include "kernels/backend.h"

namespace osdn::testing_support {

// A folder of its own, removed with its content.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  const std::string& path() const { return path_; }
  std::string File(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

std::string TestData(const std::string& name);
std::string ReadFile(const std::string& path);
void WriteFile(const std::string& path, const std::string& content);

// Sizes and digests of the files that are there now.
FileDigest DigestOf(const std::string& dir, const std::string& name);

// The golden checkpoints "tiny" and "tiny_apf_gate" (tests/data/golden/README.md).
ArchitectureConfig GoldenArchitecture(const std::string& name);
// Makes a model directory out of one.
ModelConfig WriteGoldenModel(const std::string& name, const std::string& dir);

// float32 tensors by name.
using TensorMap = std::map<std::string, std::vector<float>>;
// Random weights of a sane scale for any architecture. The same seed gives the same tensors.
TensorMap RandomTensors(const ArchitectureConfig& arch, uint64_t seed);
// Writes weights.safetensors and model.yaml; matrices are rounded to config.dtype.
ModelConfig WriteModel(ModelConfig config, const TensorMap& tensors, const std::string& dir);

// A small architecture with odd sizes.
ArchitectureConfig SmallArchitecture();

std::unique_ptr<kernels::Backend> MakeBackend(const std::string& name);
// Names of the backends every machine has, or those that OSDN_TEST_BACKENDS names
// (comma-separated).
std::vector<std::string> HostBackends();

}  // namespace osdn::testing_support

#endif  // OSDN_TESTS_UNIT_ENGINE_TEST_SUPPORT_H_
